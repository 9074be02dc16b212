"""Where prompts come from: lists, files and data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from textenv.data.openings import movie_openings
from textenv.data.records import ROW_KINDS, read_rows
from textenv.data.values import as_conversation, as_prompt, as_text, check_cell, short
from textenv.types import Conversation, TextEnvError

__all__ = ["PromptSource", "movie_openings", "read_conversation", "read_prompts"]

PromptSource: TypeAlias = str | Path | Iterable[str] | Iterable[Mapping[str, Any]] | Iterable[Sequence[Any]]
"""A file, a list of texts or of conversations, or rows with a ``prompt`` column (such as a ``datasets.Dataset``)."""


def read_prompts(source: PromptSource) -> tuple[list[str | Conversation], dict[str, list[Any]]]:
    """Return the prompts and the other columns, handed to the reward as they are.

    A prompt is a text, or a conversation: a list of messages, each a mapping with ``role`` and ``content``.

    Args:
        source: A list of prompts; a list of mappings or a ``datasets.Dataset`` with the column ``prompt``; or the path
            of a file that ``textenv.data.records`` reads: ``.txt`` (a text a line), ``.jsonl``, ``.json``, ``.csv`` or
            ``.parquet`` (a column ``prompt``).

    Raises:
        TextEnvError: It is none of these, is empty, a row lacks a prompt or a column of the others, or texts and
            conversations are mixed, or a number in a column is not finite or a text no Unicode.
    """
    rows, name = _rows_of(source)
    if not rows:
        raise TextEnvError(f"{name}: no prompts in it; expected at least one.")
    columns = _columns_of(rows[0][1], name)
    prompts: list[str | Conversation] = []
    for where, row in rows:
        try:
            prompt = _add_row(row, columns)
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
        if prompts and isinstance(prompt, str) is not isinstance(prompts[0], str):
            raise TextEnvError(
                f"{where}: {short(row)}; the first row holds {short(prompts[0])}. Expected texts, or conversations, "
                "not both: a reward gets them as they are."
            )
        prompts.append(prompt)
    if reserved := sorted(columns.keys() & {"prompts", "completions", "completion_ids"}):
        raise TextEnvError(f"{name}: the column(s) {reserved} would hide what the reward is given; rename them.")
    return prompts, columns


def _rows_of(source: Any) -> tuple[list[tuple[str, Any]], str]:
    """Return where each row of a source stands, and the row; and what messages call the source."""
    if isinstance(source, (str, Path)):
        if Path(source).suffix.lower() not in ROW_KINDS:
            raise TextEnvError(
                f"prompts={short(str(source))}: expected a list of prompts, or a file of kind {', '.join(ROW_KINDS)}."
            )
        return list(read_rows(source, what="prompts")), f"{source}"
    name = f"prompts ({type(source).__name__})"
    if hasattr(source, "iterrows"):  # iterating over a data frame gives the names of its columns
        raise TextEnvError(f"{name}: a data frame; give its rows, df.to_dict('records').")
    if isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
        return [(f"{name}, row {number}", row) for number, row in enumerate(source)], name
    raise TextEnvError(
        f"prompts={short(source)}: expected a list of strings or of conversations, a list of mappings with 'prompt', a "
        f"datasets.Dataset, or the path of a file ({', '.join(ROW_KINDS)})."
    )


def _columns_of(first: Any, name: str) -> dict[str, list[Any]]:
    """Return an empty list for each column of the first row but the prompt."""
    names = list(first) if isinstance(first, Mapping) else []
    if not all(isinstance(column, str) for column in names):
        raise TextEnvError(f"{name}: columns {short(names)}; expected names that are texts.")
    return {as_text(column, "a column's name"): [] for column in names if column != "prompt"}


def _add_row(row: Any, columns: Mapping[str, list[Any]]) -> str | Conversation:
    """Add a row's cells to the columns; return its prompt."""
    values = row if isinstance(row, Mapping) else {"prompt": row}
    if "prompt" not in values:
        raise TextEnvError(f"{short(row)}; expected a text, a list of messages, or a mapping with 'prompt'.")
    prompt = as_prompt(values["prompt"])
    others = set(values) - {"prompt"}
    if others != set(columns):
        raise TextEnvError(
            f"columns {sorted(map(str, others))}, but the first row has {sorted(columns)}; expected the same in every "
            "row."
        )
    for column, cells in columns.items():
        check_cell(values[column], column)
        cells.append(values[column])
    return prompt


def read_conversation(value: object) -> Conversation:
    """Return a list of messages, checked: ``textenv.data.values.as_conversation``.

    Raises:
        TextEnvError: It is none, or a message lacks a known role or a text content.
    """
    return as_conversation(value)
