"""The column that overlap metrics score against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.env.reward_calls import SERVICES
from textenv.types import TextEnvError


def references(user: str, column: str, columns: Mapping[str, Sequence[Any]], count: int) -> list[list[str]]:
    """Return the references of each completion, from the data set's columns.

    Args:
        user: The reward that needs them, for the messages.
        column: Name of the column; a value is one string or a non-empty sequence of strings.
        columns: The columns that the reward was called with.
        count: The number of completions.

    Returns:
        ``count`` non-empty lists of references.

    Raises:
        TextEnvError: If the column is missing, has another length, or holds anything else.
    """
    if column not in columns:
        raise TextEnvError(
            f"The reward {user!r} needs the column {column!r}, but the prompts come with "
            f"{sorted(set(columns) - set(SERVICES)) or 'no columns'}. Add it to the prompts, or name another one: "
            f"{{'name': {user!r}, 'column': ...}}."
        )
    values = columns[column]
    if len(values) != count:
        raise TextEnvError(f"The column {column!r} has {len(values)} values for {count} completions; expected as many.")
    return [_as_list(value, column, row) for row, value in enumerate(values)]


def _as_list(value: object, column: str, row: int) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Sequence) and value and all(isinstance(reference, str) for reference in value):
        return list(value)
    raise TextEnvError(
        f"Row {row} of the column {column!r} is {value!r}; expected a string, or a non-empty list of strings."
    )
