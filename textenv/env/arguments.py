"""The arguments of a vector environment, checked row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from gymnasium.vector import AutoresetMode

from textenv.types import IntArray, TextEnvError, short

__all__ = [
    "RenderMode",
    "as_autoreset_mode",
    "as_options",
    "as_render_mode",
    "as_row_count",
    "as_seeds",
    "as_token_ids",
]

RenderMode: TypeAlias = Literal["ansi", "human", "rgb_array"]


def as_row_count(value: Any) -> int:
    """Return a number of rows.

    Raises:
        TextEnvError: It is no whole number of at least 1.
    """
    if not _is_whole(value) or value < 1:
        raise TextEnvError(f"num_envs={short(value)}: expected a whole number of at least 1.")
    return int(value)


def as_render_mode(value: Any) -> RenderMode | None:
    """Return a render mode.

    Raises:
        TextEnvError: There is none of that name.
    """
    modes = get_args(RenderMode)
    if value is not None and value not in modes:
        raise TextEnvError(f"render_mode={short(value)}: expected {', '.join(map(repr, modes))} or None.")
    mode: RenderMode | None = value
    return mode


def as_options(value: Any) -> dict[str, Any]:
    """Return the options of a ``reset`` as a new dictionary.

    Raises:
        TextEnvError: They are no mapping of names.
    """
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        raise TextEnvError(f"options={short(value)}: expected a mapping such as {{'prompt': 'The film'}}, or None.")
    return dict(value or {})


def as_autoreset_mode(value: AutoresetMode | str) -> AutoresetMode:
    """Return an autoreset mode that was given as such or by its name.

    Raises:
        TextEnvError: There is no such mode.
    """
    names = [mode.value for mode in AutoresetMode]
    if not isinstance(value, (AutoresetMode, str)) or value not in (*AutoresetMode, *names):
        raise TextEnvError(f"autoreset_mode={short(value)}: expected an AutoresetMode, or one of {names}.")
    return AutoresetMode(value)


def as_token_ids(actions: Any, rows: IntArray, *, num_envs: int, vocab_size: int) -> IntArray:
    """Return the actions of all rows as token ids, shape ``(num_envs,)``.

    Args:
        actions: What was given.
        rows: The rows that act; the actions of others may be any numbers.
        num_envs: Number of rows.
        vocab_size: Number of token ids.

    Raises:
        TextEnvError: They are no token ids.
    """
    try:
        tokens = np.asarray(actions)
    except ValueError as error:  # lists of different lengths
        raise TextEnvError(
            f"actions={short(actions)}: expected integers, a token id for each of {num_envs} rows."
        ) from error
    if tokens.shape != (num_envs,) or tokens.dtype.kind not in "iu":
        raise TextEnvError(
            f"actions of shape {tokens.shape} and type {tokens.dtype}: expected integers, a token id for each of "
            f"{num_envs} rows."
        )
    last = vocab_size - 1
    if not 0 <= min(given := tokens.tolist()) <= max(given) <= last:
        acting = tokens[rows]
        if ((acting < 0) | (acting > last)).any():
            raise TextEnvError(f"actions={given}: expected token ids from 0 to {last}.")
    return tokens.astype(np.int64)


def as_seeds(seed: Any, num_envs: int) -> list[int | None]:
    """Return a seed for each row, None for a row that keeps its generator.

    Args:
        seed: A number, to which the row's number is added; a number or None for each row; or None for all.
        num_envs: Number of rows.

    Raises:
        TextEnvError: It is none of these.
    """
    if seed is None:
        return [None] * num_envs
    values = [int(seed) + row for row in range(num_envs)] if _is_whole(seed) else seed
    seeds = list(values) if isinstance(values, Iterable) else []
    known = all(value is None or (_is_whole(value) and value >= 0) for value in seeds)
    if len(seeds) != num_envs or not known:
        raise TextEnvError(f"seed={short(seed)}: expected a whole number of at least 0, or {num_envs} of them.")
    return [None if value is None else int(value) for value in seeds]


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
