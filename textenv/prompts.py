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

from textenv.types import TextEnvError

__all__ = ["PromptSource", "movie_openings", "read_prompts"]

PromptSource: TypeAlias = str | Path | Sequence[str] | Sequence[Mapping[str, Any]] | Iterable[Mapping[str, Any]]
"""A file, a list of texts, or rows with a ``prompt`` column (a ``datasets.Dataset`` is such an iterable)."""

_KINDS = (".txt", ".jsonl", ".csv", ".parquet")


def read_prompts(source: PromptSource) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the prompts' texts and the other columns, handed to the reward as they are.

    Args:
        source: A list of strings; a list of mappings or a ``datasets.Dataset`` with the column ``prompt``; or the path
            of a ``.txt`` file (a prompt a line), ``.jsonl``, ``.csv`` or ``.parquet`` (a column ``prompt``).

    Raises:
        TextEnvError: It is none of these, is empty, or a row lacks a text prompt or a column of the others.
    """
    if isinstance(source, (str, Path)):
        rows, name = _read_file(Path(source)), f"{source}"
    elif hasattr(source, "iterrows"):  # iterating over a data frame gives the names of its columns
        raise TextEnvError(f"prompts ({type(source).__name__}): a data frame; give its rows, df.to_dict('records').")
    elif isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
        rows, name = list(source), f"prompts ({type(source).__name__})"
    else:
        raise TextEnvError(
            f"prompts={source!r}: expected a list of strings, a list of mappings with 'prompt', a datasets.Dataset, or "
            f"the path of a file ({', '.join(_KINDS)})."
        )
    if not rows:
        raise TextEnvError(f"{name}: no prompts in it; expected at least one.")
    texts: list[str] = []
    names = list(rows[0]) if isinstance(rows[0], Mapping) else []
    if not all(isinstance(column, str) for column in names):
        raise TextEnvError(f"{name}: columns {names}; expected names that are texts.")
    columns: dict[str, list[Any]] = {column: [] for column in names if column != "prompt"}
    for number, row in enumerate(rows):
        values = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(values, Mapping) or not isinstance(values.get("prompt"), str):
            raise TextEnvError(
                f"{name}, row {number}: {_short(row)}; expected a text, or a mapping with a text 'prompt'."
            )
        if (set(values) - {"prompt"}) != set(columns):
            raise TextEnvError(
                f"{name}, row {number}: columns {sorted(map(str, set(values) - {'prompt'}))}, but the first row has "
                f"{sorted(columns)}; expected the same in every row."
            )
        texts.append(values["prompt"])
        for column, cells in columns.items():
            cells.append(values[column])
    reserved = sorted(columns.keys() & {"prompts", "completions", "completion_ids"})
    if reserved:
        raise TextEnvError(f"{name}: the column(s) {reserved} would hide what the reward is given; rename them.")
    return texts, columns


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
