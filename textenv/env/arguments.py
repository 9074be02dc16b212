"""The arguments of a vector environment, checked row by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from textenv.types import IntArray, TextEnvError

__all__ = ["as_autoreset_mode", "as_seeds", "as_token_ids"]


def as_autoreset_mode(value: AutoresetMode | str) -> AutoresetMode:
    """Return an autoreset mode that was given as such or by its name.

    Raises:
        TextEnvError: There is no such mode.
    """
    names = [mode.value for mode in AutoresetMode]
    if value not in (*AutoresetMode, *names):
        raise TextEnvError(f"autoreset_mode={value!r}: expected an AutoresetMode, or one of {names}.")
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
    tokens = np.asarray(actions)
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
    values = [seed + row for row in range(num_envs)] if isinstance(seed, (int, np.integer)) else seed
    seeds = list(values) if isinstance(values, Iterable) else []
    known = all(value is None or (isinstance(value, (int, np.integer)) and value >= 0) for value in seeds)
    if len(seeds) != num_envs or not known:
        raise TextEnvError(f"seed={seed!r}: expected one number of at least 0, or {num_envs} of them.")
    return [None if value is None else int(value) for value in seeds]
