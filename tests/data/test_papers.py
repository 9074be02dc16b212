"""Papers with their abstracts, out of a wheel that is read as data."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from textenv.data import papers
from textenv.data.book_texts import load_books
from textenv.data.papers import load_papers

SUMMARY = {"challenge": "Hard.", "approach": "New.", "outcome": "Good."}


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wheel of three papers in place of that of the package."""
    body = [
        {"section": "Introduction", "text": "Ships  sail."},
        {"section": "Introduction", "text": "Some\nsink."},
        {"section": "", "text": "Why?"},
    ]

    def fetch(package: str, version: str, sha256: str) -> Path:
        assert (package, version, len(sha256)) == ("aclsum", "0.1.2", 64)
        path = tmp_path / "aclsum.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for id, split in (("P2", "train"), ("P1", "val"), ("P3", "test")):
                row = {"id": id, "title": f"Paper {id}", "summary": SUMMARY, "sentences": {}}
                archive.writestr(f"aclsum/dataset/{split}.jsonl", json.dumps(row) + "\n")
                parsed = {"abstract": f"Abstract of  {id}.", "pdf_parse": {"body_text": body}}
                archive.writestr(f"aclsum/dataset/paper_jsons/{id}.json", json.dumps(parsed))
            archive.writestr("aclsum/aclsum.py", "raise SystemExit('this was run')")
        return path

    monkeypatch.setattr(papers, "fetch_wheel", fetch)


@pytest.mark.usefixtures("wheel")
def test_papers_are_read_from_the_wheel() -> None:
    found = load_papers()
    assert [(paper.id, paper.split) for paper in found] == [("P1", "val"), ("P2", "train"), ("P3", "test")]
    assert found[0].text == "Introduction\n\nShips sail.\n\nSome sink.\n\nWhy?"
    assert (found[0].title, found[0].abstract) == ("Paper P1", "Abstract of P1.")
    assert found[0].summaries == ("Hard.", "New.", "Good.")


@pytest.mark.usefixtures("wheel")
def test_as_books_the_test_split_is_held_out() -> None:
    train, held_out = load_books(["aclsum"], "train"), load_books(["aclsum"], "heldout")
    assert [book.name for book in train] == ["Paper P1", "Paper P2"]
    assert [(book.columns["id"], book.columns["reference"]) for book in held_out] == [("P3", "Abstract of P3.")]


@pytest.mark.skipif("TEXTENV_TEST_NETWORK" not in os.environ, reason="fetches aclsum: set TEXTENV_TEST_NETWORK")
def test_the_real_ones() -> None:
    found = load_papers()
    sizes = sorted(len(paper.text.split()) for paper in found)
    assert len(found) == 250
    assert 4000 < sizes[125] < 5000
    assert all(paper.abstract and len(paper.summaries) == 3 for paper in found)
    assert {split: sum(paper.split == split for paper in found) for split in ("train", "val", "test")} == {
        "train": 100, "val": 50, "test": 100
    }  # fmt: skip
