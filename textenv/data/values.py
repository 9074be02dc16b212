"""What a text, a conversation, a completion, a rank, an annotator and a margin may be, in files and in Python alike.

Every function takes a value and returns it checked. What is wrong with it is said without its place, which the caller
knows and puts before it. Those for the values of a ``Ranking`` are in ``textenv.types``, where it checks itself; here
are those for the other values of a record.

- A *text* is Unicode: half of a surrogate pair is refused. It may be empty: a policy may end its text at once.
- A *conversation* is a list of messages with a known role and a text as content, not empty.
- *Completions* are two to nine texts, which may be equal: policies do write the same.
- *Ranks* are whole numbers from 0, the best, below the number of completions, or None; one of them is 0.
- An *annotator* is a text, or a whole number, which other tools use; None and blank texts name nobody.
- A *margin* is a finite number, or None.
- A *column* of a prompt, which a reward is given as it is, holds no number that is not finite and no text that is no
  Unicode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from textenv.types import (
    MOST_COMPLETIONS,
    TextEnvError,
    as_annotator,
    as_completions,
    as_conversation,
    as_margin,
    as_number,
    as_prompt,
    as_ranks,
    as_text,
    short,
)

__all__ = [
    "DEEPEST",
    "MOST_COMPLETIONS",
    "as_annotator",
    "as_completions",
    "as_conversation",
    "as_mapping",
    "as_mappings",
    "as_margin",
    "as_number",
    "as_prompt",
    "as_ranks",
    "as_text",
    "as_whole_number",
    "check_cell",
    "short",
]

DEEPEST = 100
"""How deep the lists and objects of a value may be nested, so that whatever copies or writes it can."""


def as_whole_number(value: Any, name: str, count: int | None = None) -> int:
    """Return a whole number, from 0 and below ``count`` where that is given.

    Raises:
        TextEnvError: It is none; true and false are none either.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (count is not None and not 0 <= value < count):
        below = f" from 0, below {count}" if count else ""
        raise TextEnvError(f"{name} is {short(value)}; expected a whole number{below}.")
    return int(value)


def as_mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Return a mapping, an empty one for None.

    Raises:
        TextEnvError: It is something else.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TextEnvError(f"{name} is {short(value)}; expected an object.")
    return value or {}


def as_mappings(value: Any, name: str) -> list[Mapping[str, Any]]:
    """Return a list of mappings, an empty one for None.

    Raises:
        TextEnvError: It is something else.
    """
    if value is not None and not isinstance(value, list):
        raise TextEnvError(f"{name} is {short(value)}; expected a list of objects.")
    return [as_mapping(each, name) for each in value or []]


def check_cell(value: Any, name: str, *, deepest: int = DEEPEST) -> None:
    """Check that the numbers in a value are finite and its texts Unicode; objects of other types pass.

    Args:
        value: What a column of a row holds: a number, a text, or lists and mappings of such.
        name: What it is called in the message.
        deepest: How deep it may be nested.

    Raises:
        TextEnvError: They are not, or its lists and mappings are nested too deeply.
    """
    if isinstance(value, str):
        as_text(value, name)
    elif isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise TextEnvError(f"{name} is {float(value)}; expected a finite number, or null where there is none.")
    elif isinstance(value, (Mapping, list, tuple)):
        if not deepest:
            raise TextEnvError(f"{name}: lists and objects are nested more than {DEEPEST} deep.")
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in inside:
            if isinstance(key, str):
                as_text(key, f"a key of {name}")
            check_cell(item, f"{name}[{short(key)}]", deepest=deepest - 1)
