"""Where prompts come from: lists, files, data sets, and the bundled openings of movie reviews."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from textenv.types import Conversation, TextEnvError

__all__ = ["PromptSource", "movie_openings", "read_conversation", "read_prompts"]

PromptSource: TypeAlias = str | Path | Iterable[str] | Iterable[Mapping[str, Any]] | Iterable[Sequence[Any]]
"""A file, a list of texts or of conversations, or rows with a ``prompt`` column (such as a ``datasets.Dataset``)."""

_KINDS = (".txt", ".jsonl", ".csv", ".parquet")
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_prompts(source: PromptSource) -> tuple[list[str | Conversation], dict[str, list[Any]]]:
    """Return the prompts and the other columns, handed to the reward as they are.

    A prompt is a text, or a conversation: a list of messages, each a mapping with ``role`` and ``content``.

    Args:
        source: A list of prompts; a list of mappings or a ``datasets.Dataset`` with the column ``prompt``; or the path
            of a ``.txt`` file (a text a line), ``.jsonl``, ``.csv`` or ``.parquet`` (a column ``prompt``).

    Raises:
        TextEnvError: It is none of these, is empty, a row lacks a prompt or a column of the others, or texts and
            conversations are mixed.
    """
    if isinstance(source, (str, Path)):
        rows, name = _read_file(Path(source)), f"{source}"
    elif hasattr(source, "iterrows"):  # iterating over a data frame gives the names of its columns
        raise TextEnvError(f"prompts ({type(source).__name__}): a data frame; give its rows, df.to_dict('records').")
    elif isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
        rows, name = list(source), f"prompts ({type(source).__name__})"
    else:
        raise TextEnvError(
            f"prompts={source!r}: expected a list of strings or of conversations, a list of mappings with 'prompt', a "
            f"datasets.Dataset, or the path of a file ({', '.join(_KINDS)})."
        )
    if not rows:
        raise TextEnvError(f"{name}: no prompts in it; expected at least one.")
    prompts: list[str | Conversation] = []
    names = list(rows[0]) if isinstance(rows[0], Mapping) else []
    if not all(isinstance(column, str) for column in names):
        raise TextEnvError(f"{name}: columns {names}; expected names that are texts.")
    columns: dict[str, list[Any]] = {column: [] for column in names if column != "prompt"}
    for number, row in enumerate(rows):
        values = row if isinstance(row, Mapping) else {"prompt": row}
        prompt = values.get("prompt")
        if not isinstance(prompt, str):
            prompt = _conversation(prompt, f"{name}, row {number}: {_short(row)}")
        if prompts and isinstance(prompt, str) is not isinstance(prompts[0], str):
            raise TextEnvError(
                f"{name}, row {number}: {_short(row)}; the first row holds {_short(prompts[0])}. Expected texts, or "
                "conversations, not both: a reward gets them as they are."
            )
        if (set(values) - {"prompt"}) != set(columns):
            raise TextEnvError(
                f"{name}, row {number}: columns {sorted(map(str, set(values) - {'prompt'}))}, but the first row has "
                f"{sorted(columns)}; expected the same in every row."
            )
        prompts.append(prompt)
        for column, cells in columns.items():
            cells.append(values[column])
    reserved = sorted(columns.keys() & {"prompts", "completions", "completion_ids"})
    if reserved:
        raise TextEnvError(f"{name}: the column(s) {reserved} would hide what the reward is given; rename them.")
    return prompts, columns


def read_conversation(value: object) -> Conversation:
    """Return a list of messages, checked.

    Raises:
        TextEnvError: It is none, or a message lacks a known role or a text content.
    """
    return _conversation(value, f"prompt={_short(value)}")


@functools.cache
def movie_openings(half: Literal["train", "heldout"]) -> tuple[str, ...]:
    """Return the openings of movie reviews, one to six words each, that ``textenv/MovieReview-v0`` starts from.

    Args:
        half: ``"train"``, or ``"heldout"`` for those that are kept for measuring.

    Raises:
        TextEnvError: There is no such half.
    """
    if half not in ("train", "heldout"):
        raise TextEnvError(f"split={half!r}: expected 'train' or 'heldout'.")
    content = (resources.files("textenv") / "data" / "openings.json").read_text("utf-8")
    return tuple(json.loads(content)[half])


def _conversation(value: object, where: str) -> Conversation:
    value = value.tolist() if isinstance(value, np.ndarray) else value  # as pandas reads parquet
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise TextEnvError(
            f"{where}; expected a text, a list of messages such as [{{'role': 'user', 'content': 'Hello'}}], or a "
            "mapping with one of these as 'prompt'."
        )
    messages = []
    for place, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise TextEnvError(
                f"{where}; message {place} is {_short(message)}, expected a mapping with 'role' and 'content'."
            )
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise TextEnvError(f"{where}; message {place} has the role {role!r}, expected one of {list(_ROLES)}.")
        if not isinstance(content, str):
            raise TextEnvError(f"{where}; message {place} has the content {_short(content)}, expected a text.")
        # Tables give every message every key that one of them has.
        messages.append({str(key): item for key, item in message.items() if item is not None})
    return tuple(messages)


def _read_file(path: Path) -> list[Any]:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise TextEnvError(f"prompts={str(path)!r}: expected a list of prompts, or a file of kind {', '.join(_KINDS)}.")
    if not path.is_file():
        raise TextEnvError(f"prompts={str(path)!r}: no such file (looked in {Path.cwd()}).")
    if kind == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets write a byte-order mark, which is no part of the first cell
    except UnicodeDecodeError as error:
        raise TextEnvError(f"{path}: not UTF-8 ({error}); convert it, e.g. with iconv.") from error
    if kind == ".csv":
        return _read_csv(path, text)
    lines = text.split("\n")  # splitlines would also split at U+2028 and its like, which JSON strings may hold
    if kind == ".txt":
        return [line for line in lines if line.strip()]
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise TextEnvError(f"{path}, line {number}: not JSON ({error}): {_short(line)}") from error
    return rows


def _read_csv(path: Path, text: str) -> list[Any]:
    header, *rows = [cells for cells in csv.reader(io.StringIO(text)) if cells] or [[]]
    for number, cells in enumerate(rows):
        if len(cells) != len(header):
            raise TextEnvError(f"{path}, row {number}: {len(cells)} cells under {len(header)} headings {header}.")
    return [dict(zip(header, cells, strict=True)) for cells in rows]


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import parquet  # noqa: PLC0415 (an optional dependency)
    except ImportError as error:
        raise TextEnvError(f"{path}: reading parquet needs pyarrow; run: pip install 'textenv[data]'") from error
    try:
        rows: list[Any] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise TextEnvError(f"{path}: not a parquet file ({error}).") from error
    return rows


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
