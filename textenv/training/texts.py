"""Reading what language models are trained on: documents, and pairs of a prompt and a completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from textenv.data.records import ROW_KINDS, kind_of, read_records, read_text
from textenv.data.values import as_text, short
from textenv.types import TextEnvError

__all__ = ["read_pairs", "read_texts"]


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


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return prompt and completion of each record of a file; a record with ``text`` has an empty prompt.

    Raises:
        TextEnvError: As ``read_texts``.
    """
    return list(_pairs(path))


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for where, row in read_records(path):
        try:
            if row.get("text") is not None:
                yield "", as_text(row["text"], "text")
            elif row.get("prompt") is not None and row.get("completion") is not None:
                yield as_text(row["prompt"], "prompt"), as_text(row["completion"], "completion")
            else:
                raise TextEnvError(f"{short(row)}; expected the text 'text', or the texts 'prompt' and 'completion'.")
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
