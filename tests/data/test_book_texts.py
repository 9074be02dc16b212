"""Texts to summarize as books: files, records, and the few that come with textenv."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.complaints import one_line
from textenv.data.book_texts import BookText, load_books
from textenv.data.descriptions import split_of


def test_a_book_and_a_file_of_records(tmp_path: Path) -> None:
    (tmp_path / "ship.md").write_text("A ship.")
    (tmp_path / "more.jsonl").write_text('{"text": "A king.", "reference": "K.", "year": 1811}\n{"text": "A cook."}\n')
    sources: list[str | Path] = [tmp_path / "ship.md", str(tmp_path / "more.jsonl")]
    ship, king, cook = load_books(sources)
    assert (ship.name, ship.text, ship.columns) == ("ship", "A ship.", {})
    assert (king.text, king.columns) == ("A king.", {"reference": "K.", "year": 1811})
    assert cook.columns == {}
    assert king.name.endswith("more.jsonl, line 1")


def test_a_tenth_of_a_file_is_held_out_by_its_texts(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    path.write_text("".join(json.dumps({"text": f"Book {number}."}) + "\n" for number in range(400)))
    held_out, train = load_books([path], "heldout"), load_books([path], "train")
    assert {book.text for book in held_out} == {
        text for number in range(400) if split_of(text := f"Book {number}.") == "heldout"
    }
    assert 20 <= len(held_out) <= 60
    assert len(train) == 400 - len(held_out)


def test_the_few_stories_are_in_two_splits() -> None:
    train, held_out = (load_books(["few"], split) for split in ("train", "heldout"))
    assert (len(train), len(held_out)) == (6, 2)
    assert not {book.text for book in train} & {book.text for book in held_out}
    books: list[BookText] = [*train, *held_out]
    assert all(len(book.columns["reference"].split()) < len(book.text.split()) / 5 for book in books)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.jsonl", '{"text": " "}', "b.jsonl, line 1: text is ' '; expected that of a book"),
        ("b.jsonl", '{"text": 3}', "b.jsonl, line 1: text is 3"),
        ("b.jsonl", '{"txt": "x"}', "b.jsonl, line 1: text is None"),
        ("b.jsonl", "", "no books in it"),
        ("b.txt", "", "no text in it"),
        ("b.pdf", "x", "expected a file of kind .txt"),
    ],
    ids=["blank", "number", "missing", "empty", "no text", "kind"],
)
def test_what_is_no_book(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with one_line(message):
        load_books([tmp_path / name])


def test_a_split_without_books(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("A ship.")
    other = "train" if split_of("A ship.") == "heldout" else "heldout"
    with one_line(f"none of 1 is in the split {other!r}; expected one at least. Take split='all'"):
        load_books([tmp_path / "b.txt"], other)  # type: ignore[arg-type]
