"""Shared by the rewards that look for known answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from textenv.types import TextEnvError, short

__all__ = ["as_answers", "matches", "normalized"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def matches(answer: str, right: Sequence[str], *, contained: bool) -> bool:
    """Tell whether an answer is one of the right ones, normalized; with ``contained``, whether it contains one."""
    said, wanted = normalized(answer), [normalized(each) for each in right]
    if contained:
        return any(each and f" {each} " in f" {said} " for each in wanted)
    return bool(said) and said in wanted


def normalized(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and accents, its words between single blanks."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(each if each.isalnum() else " " for each in letters if not unicodedata.combining(each))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def as_answers(value: Any) -> list[str]:
    """Return the answers that a column holds for a completion: a text, a list of texts, or None for none.

    Raises:
        TextEnvError: It holds something else.
    """
    if value is None or isinstance(value, str):
        return [] if value is None else [value]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise TextEnvError(f"The answers are {short(value)}; expected a text, or a list of texts.")
    return list(value)
