"""What a text, a conversation, a completion, a rank, an annotator and a margin may be, in files and in Python alike.

Every function takes a value and returns it checked. What is wrong with it is said without its place, which the caller
knows and puts before it.

- A *text* is Unicode: half of a surrogate pair is refused. It may be empty: a policy may end its text at once.
- A *conversation* is a list of messages with a known role and a text as content, not empty.
- *Completions* are two to nine texts, which may be equal: policies do write the same.
- *Ranks* are whole numbers from 0, the best, below the number of completions, or None; ``Ranking`` checks the rest.
- An *annotator* is a text, or a whole number, which other tools use; None and blank texts name nobody.
- A *margin* is a finite number, or None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from textenv.types import Conversation, TextEnvError

__all__ = [
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
    "check_count",
    "short",
]

MOST_COMPLETIONS = 9
"""Completions that one ranking may hold: each has a digit key on the page where people rank them."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_EXAMPLE = "[{'role': 'user', 'content': 'Hello'}]"


def as_text(value: Any, name: str) -> str:
    """Return a text.

    Raises:
        TextEnvError: It is none, or holds half of a surrogate pair, which no file and no tokenizer can take.
    """
    if not isinstance(value, str):
        raise TextEnvError(f"{name} is {short(value)}; expected a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TextEnvError(
            f"{name} is {short(value)}; character {error.start} is half of a surrogate pair, which is no Unicode. "
            "Write the whole character, or remove it."
        ) from error
    return value


def as_conversation(value: Any, name: str = "prompt") -> Conversation:
    """Return a list of messages, checked; keys of a message without a value are left out.

    Raises:
        TextEnvError: It is none or empty, or a message lacks a known role or a text as content.
    """
    value = value.tolist() if isinstance(value, np.ndarray) else value  # as pandas reads parquet
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise TextEnvError(f"{name} is {short(value)}; expected a list of messages such as {_EXAMPLE}.")
    messages = []
    for place, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise TextEnvError(
                f"{name} is {short(value)}; message {place} is {short(message)}, expected a mapping with 'role' and "
                "'content'."
            )
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise TextEnvError(
                f"{name} is {short(value)}; message {place} has the role {short(role)}, expected one of {list(_ROLES)}."
            )
        as_text(content, f"the content of message {place} of {name}")
        # Tables give every message every key that one of them has.
        messages.append({str(key): item for key, item in message.items() if item is not None})
    return tuple(messages)


def as_prompt(value: Any, name: str = "prompt") -> str | Conversation:
    """Return a text or a conversation.

    Raises:
        TextEnvError: It is neither.
    """
    if isinstance(value, str):
        return as_text(value, name)
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, bytes) and len(value):
        return as_conversation(value, name)
    raise TextEnvError(f"{name} is {short(value)}; expected a text, or a list of messages such as {_EXAMPLE}.")


def as_completions(value: Any, name: str = "completions") -> tuple[str, ...]:
    """Return two to nine texts.

    Raises:
        TextEnvError: It is no list, one of them is no text, or there are fewer or more.
    """
    if not isinstance(value, (list, tuple)):
        raise TextEnvError(f"{name} is {short(value)}; expected a list of texts.")
    check_count(len(value), name)
    return tuple(as_text(text, f"{name}[{place}]") for place, text in enumerate(value))


def check_count(count: int, name: str = "completions") -> None:
    """Check how many completions a ranking has.

    Raises:
        TextEnvError: They are not two to nine.
    """
    if not 2 <= count <= MOST_COMPLETIONS:
        raise TextEnvError(f"{name} has {count} texts; expected 2 to {MOST_COMPLETIONS}. Split a ranking of more.")


def as_ranks(value: Any, count: int, name: str = "ranks") -> tuple[int | None, ...]:
    """Return one rank for each of ``count`` completions.

    Raises:
        TextEnvError: It is no list of so many, or one of them is neither None nor a whole number from 0 below
            ``count``; true and false are no numbers.
    """
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise TextEnvError(f"{name} is {short(value)}; expected a list of {count} ranks, one for each completion.")
    if not all(rank is None or (_is_whole(rank) and 0 <= rank < count) for rank in value):
        raise TextEnvError(
            f"{name} is {short(value)}; expected whole numbers from 0, which is the best, to {count - 1}, or null."
        )
    return tuple(value)


def as_annotator(value: Any, name: str = "annotator") -> str:
    """Return who judged, ``""`` where nobody is named: for None, and for a text that is blank.

    Raises:
        TextEnvError: It is neither a text nor a whole number, such as the id of a user.
    """
    if value is None:
        return ""
    if _is_whole(value):
        return str(value)
    if not isinstance(value, str):
        raise TextEnvError(f"{name} is {short(value)}; expected a name, a text or a whole number.")
    return as_text(value, name) if value.strip() else ""


def as_margin(value: Any, name: str = "margin") -> float | None:
    """Return a margin, in units of score, or None.

    Raises:
        TextEnvError: It is no finite number.
    """
    return None if value is None else as_number(value, name)


def as_number(value: Any, name: str) -> float:
    """Return a finite number.

    Raises:
        TextEnvError: It is none; a text of digits and true and false are none either.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise TextEnvError(f"{name} is {short(value)}; expected a finite number.")
    return float(value)


def as_whole_number(value: Any, name: str, count: int | None = None) -> int:
    """Return a whole number, from 0 and below ``count`` where that is given.

    Raises:
        TextEnvError: It is none.
    """
    if not _is_whole(value) or (count is not None and not 0 <= value < count):
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


def short(value: object) -> str:
    """Return how a value is shown in a message: its ``repr``, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above every float
        return False
