"""Descriptions of packages: what is read of apt's lists, and what is kept of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data import descriptions
from textenv.data.descriptions import Description, load_descriptions, parse_descriptions, split_of

WORDS = " ".join(["word"] * 21)


def packages(*names: str, md5: str = "1") -> str:
    return "".join(
        f"Package: {name}\nSource: big (1.2)\nVersion: 3\nDescription-md5: {md5}\nTag: a,\n b\nSection: games\n\n"
        for name in names
    )


def translations(*names: str, text: str = f" {WORDS}\n {WORDS}\n") -> str:
    return "".join(
        f"Package: {name}\nDescription-md5: 1\nDescription-en: synopsis of {name}\n{text}\n" for name in names
    )


def parsed(known: str, texts: str) -> list[Description]:
    return list(parse_descriptions(known.splitlines(keepends=True), texts.splitlines(keepends=True)))


def test_a_description_is_joined_with_its_package() -> None:
    assert parsed(packages("a", "b"), translations("b", "c")) == [
        Description("b", "big", "games", "synopsis of b", f"{WORDS} {WORDS}")
    ]
    (found,) = parsed("Package: b\nDescription-md5: 1", translations("b"))
    assert (found.source, found.section) == ("b", "")  # a package without a source is its own


def test_lines_are_unwrapped_but_for_paragraphs_and_lists() -> None:
    text = f" {WORDS}\n more\n .\n Second: {WORDS}\n  * one\n  * two\n"
    (found,) = parsed(packages("a"), translations("a", text=text))
    assert found.text == f"{WORDS} more\nSecond: {WORDS}\n* one\n* two"


@pytest.mark.parametrize(
    ("known", "texts"),
    [
        (packages("a-dev", "a-doc", "a-data"), translations("a-dev", "a-doc", "a-data")),
        (packages("a", md5="2"), translations("a")),
        (packages("a"), translations("a", text=f" {WORDS}\n")),
        (packages("a"), translations("a", text=f" {WORDS}\n" * 10)),
        ("", ""),
    ],
    ids=["accompanying", "of another version", "short", "long", "empty"],
)
def test_what_is_left_out(known: str, texts: str) -> None:
    assert parsed(known, texts) == []


def test_splits_are_fixed_by_the_source() -> None:
    assert [split_of(name) for name in ("0ad", "vim", "zeroinstall-injector")] == ["train", "judge", "heldout"]
    shares = Counter(split_of(f"source-{number}") for number in range(5000))
    assert [round(shares[name] / 500) for name in ("train", "judge", "heldout")] == [6, 3, 1]


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What apt-get was asked for; it leaves the lists of an archive of Debian and of another one."""
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        folder = Path(next(part for part in command if part.startswith("Dir::State::Lists=")).partition("=")[2])
        for archive, origin, names in (("deb_", "Debian", ("vim", "same")), ("x_", "Somebody", ("theirs",))):
            (folder / f"{archive}InRelease").write_text(f"Hash: x\nOrigin: {origin}\n")
            (folder / f"{archive}main_binary-amd64_Packages").write_text(packages(*names))
            (folder / f"{archive}main_i18n_Translation-en").write_text(translations(*names))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_lists_are_fetched_once_into_a_folder_of_ours(apt: list[list[str]], tmp_path: Path) -> None:
    (found,) = load_descriptions()  # of two with the same text one is kept
    assert found.package == "same"
    assert load_descriptions() == [found]
    assert load_descriptions(split_of("big")) == [found]
    assert sum(len(load_descriptions(split)) for split in ("train", "judge", "heldout")) == 1
    (command,) = apt
    assert command[:2] == ["apt-get", "update"]
    assert "Acquire::Languages=en" in command
    (tmp_path / "cache" / "debian-descriptions.jsonl").write_text('{"package": "x"}\n')
    descriptions._read.cache_clear()
    with pytest.raises(TextEnvError, match=r"Description needs source.*Delete .* it is fetched again"):
        load_descriptions()


def test_what_cannot_be_fetched_is_one_line(
    apt: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failed = subprocess.CompletedProcess([], 100, "", "E: no network\nE: at all\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        TextEnvError, match=r"Could not fetch Debian's descriptions: E: no network E: at all\. Check the"
    ):
        load_descriptions()
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(TextEnvError, match=r"apt-get, which is not on this machine; put debian-descriptions\.jsonl of"):
        load_descriptions()
    with pytest.raises(TextEnvError, match="split='test': expected 'train', 'judge'"):
        load_descriptions("test")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.skipif("TEXTENV_TEST_NETWORK" not in os.environ, reason="fetches Debian's lists: set TEXTENV_TEST_NETWORK")
def test_the_lists_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path))
    found = load_descriptions()
    assert len(found) > 10_000
    assert len({each.text for each in found}) == len(found)
