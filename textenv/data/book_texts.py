"""Texts to summarize as books, with what is known of them: files of one's own, and a few that come with textenv."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from textenv.data.books import BOOK_KINDS, read_book
from textenv.data.descriptions import split_of
from textenv.data.papers import load_papers
from textenv.data.records import RECORD_KINDS, kind_of, read_records
from textenv.data.values import as_text, short
from textenv.types import TextEnvError

__all__ = ["ACLSUM", "FEW", "BookSplit", "BookText", "load_books"]

ACLSUM = "aclsum"
"""The name of 250 papers with their abstracts, which are fetched on first use (``textenv.data.papers``)."""
FEW = "few"
"""The name of a few short stories, made up for tests and demonstrations, which come with textenv."""

BookSplit = Literal["all", "train", "heldout"]


@dataclass(frozen=True, slots=True)
class BookText:
    """A text to summarize as a book.

    Attributes:
        name: What it is called.
        text: The text.
        split: ``"train"``, or ``"heldout"`` for measuring.
        columns: What else is known of it, for rewards: ``reference``, a summary by people, where there is one.
    """

    name: str
    text: str
    split: Literal["train", "heldout"]
    columns: Mapping[str, Any] = field(default_factory=dict)


def load_books(sources: Sequence[str | Path], split: BookSplit = "all") -> list[BookText]:
    """Return texts to summarize as books.

    Args:
        sources: Names, and files: a book (.txt, .md, .html, .epub), or records (.jsonl, .json, .csv, .parquet) with
            ``text`` and further columns. ``"few"`` are short stories that come with textenv, and ``"aclsum"`` papers,
            whose ``reference`` is the abstract; those of its test split are held out. A file's texts are held out where
            ``textenv.data.descriptions.split_of`` of the text says so, which a tenth are.
        split: Which of them.

    Raises:
        TextEnvError: A file cannot be read, a record has no text, or no text is in the split.
    """
    found = [book for source in sources for book in _load(str(source))]
    kept = [book for book in found if split in ("all", book.split)]
    if not kept:
        raise TextEnvError(
            f"books={short(list(map(str, sources)))}: none of {len(found)} is in the split {split!r}; expected one at "
            "least. Take split='all', or more books."
        )
    return kept


def _load(source: str) -> Sequence[BookText]:
    if source in _NAMED:
        return _NAMED[source]()
    path = Path(source)
    if kind_of(path, (*BOOK_KINDS, *RECORD_KINDS)) in BOOK_KINDS:
        text = read_book(path)
        return [BookText(path.stem, text, _split_of(text))]
    return list(_records(path))


def _records(path: Path) -> Iterator[BookText]:
    for where, row in read_records(path, what="books"):
        text = as_text(row.get("text", ""), f"{where}: text")
        if not text.strip():
            raise TextEnvError(f"{where}: text is {short(row.get('text'))}; expected that of a book.")
        yield BookText(where, text, _split_of(text), {name: row[name] for name in row if name != "text"})


def _split_of(text: str) -> Literal["train", "heldout"]:
    return "heldout" if split_of(text) == "heldout" else "train"


@functools.cache
def _few() -> tuple[BookText, ...]:
    content = (resources.files("textenv") / "data" / "few_books.json").read_text("utf-8")
    return tuple(
        BookText(row["name"], row["text"], row["split"], {"reference": row["reference"]}) for row in json.loads(content)
    )


def _aclsum() -> list[BookText]:
    return [
        BookText(
            paper.title,
            paper.text,
            "heldout" if paper.split == "test" else "train",
            {"reference": paper.abstract, "id": paper.id, "summaries": list(paper.summaries)},
        )
        for paper in load_papers()
    ]


_NAMED: Mapping[str, Callable[[], Sequence[BookText]]] = {FEW: _few, ACLSUM: _aclsum}
