"""Comparisons and rankings in the file formats of other tools: TRL, OpenAI, Ziegler, the arena, Argilla and so on.

Each format is a file of this folder that defines a ``Format`` named ``FORMAT``, with a function that reads
``textenv.types.Ranking`` and one that writes it; the name of the format is the file's. A ranking that a format cannot
hold is written as all pairs whose order is known, which mean the same. If pairs cannot express it either (a tie in a
format without ties), writing is an error, unless the caller names what to leave out.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from textenv.data.records import RECORD_KINDS, json_cells, read_records, write_records
from textenv.feedback.formats.shared import Format, Row, known_pairs
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMATS", "Droppable", "Format", "find_formats", "read_rankings", "read_records", "write_rankings"]

Droppable: TypeAlias = Literal["ties", "margins", "annotators"]

_DROPPABLE = ("ties", "margins", "annotators")


def find_formats() -> dict[str, Format]:
    """Return the formats by name: of every file of this folder that has a ``FORMAT``."""
    modules = {name: importlib.import_module(f"{__name__}.{name}") for _, name, _ in pkgutil.iter_modules(__path__)}
    return {name: module.FORMAT for name, module in sorted(modules.items()) if hasattr(module, "FORMAT")}


FORMATS: Mapping[str, Format] = find_formats()
"""The formats by name; a file's format is recognized by the keys of its records. Their files name their sources."""


def read_rankings(
    path: str | Path,
    format: str = "auto",
    *,
    decode: Callable[[list[int]], str] | None = None,
    refused: Callable[[TextEnvError], None] | None = None,
) -> list[Ranking]:
    """Read the comparisons and rankings of a file.

    Args:
        path: A file of records, see ``textenv.data.records``.
        format: One of ``FORMATS``, or ``"auto"`` for the one whose keys the first record has.
        decode: Turns token ids into a text, for Ziegler's published labels; they are GPT-2's, padded with 50259. A
            sample is decoded together with the query before it.
        refused: Called with the reason for each record, or judgment in a record of several, that cannot be read, and
            reading continues; None for an error at the first.

    Raises:
        TextEnvError: There is no such file or format, the format cannot be recognized, or a record is not a ranking;
            the message says which record and what is wrong with it.
    """
    path = Path(path)
    chosen = None if format == "auto" else _known(format)
    rankings: list[Ranking] = []
    for where, row in read_records(path):
        if chosen is None:
            chosen = FORMATS[_recognized(row, where)]
        try:
            found = _read(chosen, row, decode, in_csv=path.suffix.lower() == ".csv")
        except TextEnvError as error:
            found = [error]
        for each in found:
            if isinstance(each, Ranking):
                rankings.append(each)
                continue
            located = TextEnvError(f"{where}: {each}")
            if refused is None:
                raise located from each
            refused(located)
    return rankings


def write_rankings(
    path: str | Path, rankings: Iterable[Ranking], format: str = "native", *, drop: Collection[Droppable] = ()
) -> int:
    """Write comparisons and rankings to a file, either all of it or nothing.

    Args:
        path: The file; its suffix, ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``, says of what kind.
        rankings: At least one.
        format: One of ``FORMATS``.
        drop: What to leave out: ``"ties"`` (the tied pairs; the other pairs of the ranking are kept), ``"margins"``,
            ``"annotators"``.

    Returns:
        The number of records.

    Raises:
        TextEnvError: There is no such format or kind of file, or it cannot hold a ranking; nothing was written then.
    """
    path, chosen = Path(path), _known(format)
    kinds = [
        kind
        for kind in RECORD_KINDS
        if (kind != ".csv" or chosen.cells is not None) and (kind != ".parquet" or chosen.table)
    ]
    if path.suffix.lower() not in kinds:
        raise TextEnvError(f"{path}: format {format!r} is written to files of kind {', '.join(kinds)}.")
    unknown = sorted(set(drop) - set(_DROPPABLE))
    if unknown:
        raise TextEnvError(f"drop={unknown}: expected some of {list(_DROPPABLE)}.")
    kept = [part for ranking in rankings for part in _without_dropped(ranking, drop)]
    if not kept:
        raise TextEnvError(f"{path}: no rankings to write.")
    rows = chosen.write(kept)
    write_records(path, rows, json_columns=chosen.cells or ())
    return len(rows)


def _read(
    chosen: Format, row: Row, decode: Callable[[list[int]], str] | None, *, in_csv: bool
) -> Sequence[Ranking | TextEnvError]:
    given = json_cells(row, chosen.cells or ()) if in_csv else row
    missing = [key for key in chosen.keys if key not in given]
    if missing:
        raise TextEnvError(f"{missing} missing; it has {sorted(map(str, given))}.")
    if decode is not None and chosen.decode_row is not None:
        given = chosen.decode_row(given, decode)
    return chosen.read(given)


def _known(format: str) -> Format:
    if format not in FORMATS:
        raise TextEnvError(f"format={format!r}: expected one of {', '.join(FORMATS)}.")
    return FORMATS[format]


def _recognized(row: Mapping[str, Any], where: str) -> str:
    fit = {name: set(found.keys) for name, found in FORMATS.items() if set(found.keys) <= row.keys()}
    best = [name for name, keys in fit.items() if not any(keys < other for other in fit.values())]
    if len(best) != 1:
        keys = "; ".join(f"{name}: {', '.join(found.keys)}" for name, found in FORMATS.items())
        raise TextEnvError(
            f"{where}: {'none' if not best else 'more than one'} of the formats has the keys {sorted(map(str, row))}. "
            f"Name the format. They have at least these keys: {keys}."
        )
    return best[0]


def _without_dropped(ranking: Ranking, drop: Collection[Droppable]) -> list[Ranking]:
    if "margins" in drop:
        ranking = replace(ranking, margin=None)
    if "annotators" in drop:
        ranking = replace(ranking, annotator="")
    if "ties" in drop and any(tied for *_, tied in ranking.pairs()):
        return [pair for pair in known_pairs(ranking) if pair.ranks[0] != pair.ranks[1]]
    return [ranking]
