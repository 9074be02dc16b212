"""Files out of Debian's packages: fetched once, what was published or nothing, and one line where they are missing."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data.debian import fetch_debian_files, unpack_package

CONTROL = "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: tiny\n"
WORDS = b"heron\nstork\n"
MEMBER = "usr/share/words/birds"
MEMBERS = {MEMBER: hashlib.sha256(WORDS).hexdigest()}

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The packages that apt-get was asked for; each has ``MEMBER``."""
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    tree, names, run = tmp_path / "tree", list[str](), subprocess.run
    for name, content in (("DEBIAN/control", CONTROL.encode()), (MEMBER, WORDS)):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)

    def instead(command: list[Any], **kwargs: Any) -> Any:
        if command[0] == "apt-get":
            names.append(command[-1])
            command = ["dpkg-deb", "--root-owner-group", "--build", tree, Path(kwargs["cwd"]) / "tiny_1_all.deb"]
        return run(command, **kwargs)

    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(subprocess, "run", instead)
    return names


@needs_dpkg
def test_files_are_fetched_once_and_kept(asked: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        found = fetch_debian_files("tiny", "words-1", MEMBERS)
        assert found == {MEMBER: tmp_path / "cache" / "words-1" / "birds"}
        assert found[MEMBER].read_bytes() == WORDS
    assert asked == ["tiny"]


@needs_dpkg
@pytest.mark.usefixtures("asked")
def test_other_content_is_refused() -> None:
    with pytest.raises(TextEnvError, match=r"birds of tiny: its SHA-256 is .*, expected 00\. Use the package of"):
        fetch_debian_files("tiny", "words-1", {MEMBER: "00"})
    with pytest.raises(TextEnvError, match="tiny has no file usr/share/none"):
        fetch_debian_files("tiny", "words-1", {"usr/share/none": "00"})
    fetch_debian_files("tiny", "words-1", MEMBERS)[MEMBER].write_bytes(b"changed")
    with pytest.raises(TextEnvError, match=r"Delete .*birds and try again"):
        fetch_debian_files("tiny", "words-1", MEMBERS)


def test_a_machine_without_the_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "dpkg-deb" else f"/usr/bin/{tool}")
    with pytest.raises(TextEnvError, match=r"needs dpkg-deb, which is not on this machine\. Read a book\."):
        unpack_package("tiny", tmp_path, "Read a book.")


def test_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package tiny\nE: No packages\n")

    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TextEnvError) as refused:
        fetch_debian_files("tiny", "words-1", MEMBERS)
    assert "apt-get download tiny failed: E: Unable to locate package tiny E: No packages Connect" in str(refused.value)
    assert f"Or put birds out of that package into {tmp_path / 'cache' / 'words-1'}." in str(refused.value)
    assert "\n" not in str(refused.value)
