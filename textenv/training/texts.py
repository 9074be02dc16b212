"""Reading what language models are trained on: documents, pairs of a prompt and a completion, and conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from textenv.data.records import ROW_KINDS, kind_of, read_records, read_text
from textenv.data.values import as_conversation, as_text, short
from textenv.types import Conversation, TextEnvError

__all__ = ["Pair", "read_examples", "read_pairs", "read_texts"]


class Pair(NamedTuple):
    """A prompt and its completion."""

    prompt: str
    completion: str


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """Yield the documents of ``.txt`` files (between blank lines) and of files of records (``text``, or a pair).

    Raises:
        TextEnvError: A file cannot be read, is of another kind, holds nothing, or has a record without these keys.
    """
    for path in files:
        if kind_of(path, ROW_KINDS) == ".txt":
            documents = [part.strip() for part in read_text(path).split("\n\n") if part.strip()]
            if not documents:
                raise TextEnvError(f"{path}: no text in it; expected at least one document.")
            yield from documents
        else:
            yield from (prompt + completion for prompt, completion in _pairs(path))


def read_examples(path: Path) -> Iterator[tuple[str, Pair | Conversation]]:
    """Yield where each record of a file stands, and what it holds: a conversation (``messages``), or a pair.

    Raises:
        TextEnvError: As ``read_texts``; or the messages are no conversation.
    """
    for where, row in read_records(path):
        try:
            if row.get("messages") is not None:
                yield where, as_conversation(row["messages"], "messages")
            else:
                yield where, _pair(row, or_else=", or the list 'messages'")
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error


def read_pairs(path: Path) -> list[Pair]:
    """Return prompt and completion of each record of a file; a record with ``text`` has an empty prompt.

    Raises:
        TextEnvError: As ``read_texts``.
    """
    return list(_pairs(path))


def _pairs(path: Path) -> Iterator[Pair]:
    for where, row in read_records(path):
        try:
            yield _pair(row)
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error


def _pair(row: Mapping[str, Any], or_else: str = "") -> Pair:
    if row.get("text") is not None:
        return Pair("", as_text(row["text"], "text"))
    if row.get("prompt") is not None and row.get("completion") is not None:
        return Pair(as_text(row["prompt"], "prompt"), as_text(row["completion"], "completion"))
    raise TextEnvError(f"{short(row)}; expected the text 'text', or the texts 'prompt' and 'completion'{or_else}.")
