"""The corpus: cleaning on small folders of the packages' form, and pairs that put the text back together."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data import corpora
from textenv.data.corpora import SOURCES, Source, write_general_corpus, write_review_pairs
from textenv.data.reviews import Review

WORDNET = """  1 This is the license, which every file begins with.
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived to have its own existence; "an example"
00001930 03 a 01 able(p) 0 001 ! 00002098 a 0101 | (usually followed by `to') having the means | or the skill
00002098 04 n 02 motion_picture 0 film 0 000 | a form of entertainment
"""
JARGON = """hacker

 [originally, someone who makes furniture with an
 axe] n. A person who enjoys {exploring} programs.

\f
"""
PAGE = """<html><head><p class="x">not this</p></head><body>
<h1>A heading</h1>
<p>Anarchism is a <em>political</em> theory , as we
 argue &amp; show [<b>The Book</b>, p. 12] here .</p>
<p>Second [sic] paragraph [Op. Cit., pp. 3-4].</p></body></html>
"""


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def no_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "load_reviews", lambda *_, **__: [])


# -- cleaning -----------------------------------------------------------------------------------------------------


def test_wordnet(tmp_path: Path) -> None:
    folder = put(tmp_path, {f"usr/share/wordnet/data.{part}": WORDNET for part in ("noun", "verb", "adj", "adv")})
    found = list(corpora._wordnet(folder))
    assert len(found) == 12
    assert found[:3] == [
        'Entity: that which is perceived to have its own existence; "an example"',
        "Able: (usually followed by `to') having the means | or the skill",
        "Motion picture: a form of entertainment",
    ]


def test_fortunes(tmp_path: Path) -> None:
    quotes = b"To be,\n\tor not to be.\n%\nCaf\xe9.\n%\n"
    names = ("quotes", "quotes.dat", "quotes.u8", "ascii-art", "translate-me", "linuxcookie")
    folder = put(tmp_path, {f"usr/share/games/fortunes/{name}": quotes for name in names})
    (folder / "usr/share/games/fortunes/off").mkdir()
    assert list(corpora._fortunes(folder)) == ["To be, or not to be.", "Caf\ufffd.", ""]


def test_dictionaries(tmp_path: Path) -> None:
    folder = put(tmp_path, {"usr/share/dictd/jargon.dict.dz": gzip.compress(JARGON.encode()), "usr/x.index": "no"})
    assert list(corpora._dictionary(folder)) == [
        "hacker",
        "[originally, someone who makes furniture with an axe] n. A person who enjoys exploring programs.",
        "",
    ]


def test_web_pages(tmp_path: Path) -> None:
    folder = put(tmp_path, {"usr/share/doc/a.html": PAGE, "usr/share/doc/a.txt": "<p>no</p>"})
    assert list(corpora._web_pages(folder)) == [
        "Anarchism is a political theory, as we argue & show here.",
        "Second [sic] paragraph.",
    ]


def test_every_source_is_named_with_its_license() -> None:
    assert len({source.package for source in SOURCES}) == len(SOURCES) >= 5
    assert all(source.title and source.license and callable(source.documents) for source in SOURCES)


# -- the general corpus -------------------------------------------------------------------------------------------


def test_the_corpus_has_every_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, other = "x" * 40, "ü\u2028\n" + "y" * 50

    def documents(folder: Path) -> Iterator[str]:
        assert folder.name == "unpacked"
        yield from (long, "short", long, other)

    monkeypatch.setattr(corpora, "unpack_package", lambda package, folder, remedy: folder / "unpacked")
    monkeypatch.setattr(corpora, "SOURCES", (Source("a", "A", "MIT", documents), Source("b", "B", "MIT", documents)))
    snippets = {"product": ["z" * 45, long], "editorial": ["tiny"], "tweet": ["w" * 60]}
    monkeypatch.setattr(corpora, "load_reviews", lambda *, domain: [Review(t, 0.0, (0,)) for t in snippets[domain]])
    path = tmp_path / "new" / "general.jsonl"
    assert write_general_corpus(path) == {"a": 93, "vaderSentiment:product": 45, "vaderSentiment:tweet": 60}
    assert [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]] == [
        {"text": long, "source": "a"},
        {"text": other, "source": "a"},
        {"text": "z" * 45, "source": "vaderSentiment:product"},
        {"text": "w" * 60, "source": "vaderSentiment:tweet"},
    ]


@pytest.mark.usefixtures("no_reviews")
def test_a_package_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package")

    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        TextEnvError, match=r"apt-get download wordnet-base failed: E: Unable.*apt-get update.*textenv pretrain"
    ):
        write_general_corpus(tmp_path / "general.jsonl")
    assert not (tmp_path / "general.jsonl").exists()


# -- pairs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made = [" ".join(f"word{k}," for k in range(1 + i % 9)) + "  end ." for i in range(700)] + [
        "one",
        "a\u2028b c\x85d",
    ]
    monkeypatch.setattr(
        corpora, "load_reviews", lambda split: [Review(t, 0.0, (0,)) for t in (made if split == "train" else made[:5])]
    )
    return made


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").removesuffix("\n").split("\n")]


def test_prompt_and_completion_are_the_text(tmp_path: Path, texts: list[str]) -> None:
    assert write_review_pairs(tmp_path / "new") == {"train": len(texts), "validation": 5}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "reviews-train.jsonl",
        "reviews-validation.jsonl",
    ], "the test split stays out"
    pairs = read(tmp_path / "new" / "reviews-train.jsonl")
    assert [pair["prompt"] + pair["completion"] for pair in pairs] == texts
    words = Counter(len(pair["prompt"].split()) for pair in pairs)
    assert set(words) == set(range(7))
    assert min(words.values()) > 20
    for pair in pairs:
        assert pair["completion"].strip(), "something is left to write"
        assert pair["prompt"] == pair["prompt"].strip()
        assert not pair["prompt"] or re.match(r"\s", pair["completion"]), "cut between words"


@pytest.mark.usefixtures("texts")
def test_pairs_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_review_pairs(tmp_path / name, seed=seed)
    a, b, c = (read(tmp_path / name / "reviews-train.jsonl") for name in "abc")
    assert a == b
    assert a != c
