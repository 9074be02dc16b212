"""The forms that the labeling page sends: their size, their fields, and what the fields may hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from urllib.parse import parse_qs

from fastapi import Request
from starlette.exceptions import HTTPException

from textenv.data.values import MOST_COMPLETIONS
from textenv.feedback.store import Verdict
from textenv.web.guard import is_media_type

__all__ = [
    "LARGEST_ANSWER",
    "LONGEST_TEXT",
    "Form",
    "confidence_of",
    "note_of",
    "only_value",
    "place_of",
    "ranks_of",
    "read_form",
    "seconds_of",
    "texts_of",
    "verdict_of",
]

_LARGEST_FORM = 64_000  # bytes
_LONGEST_NOTE = 4_000
LONGEST_TEXT = 20_000
"""Characters of a text that is written on the page."""
LARGEST_ANSWER = 1_000_000
"""Bytes of a form with such texts: a character takes twelve at most."""
_VERDICTS: dict[str, Verdict] = {"ranked": "ranked", "both_bad": "both_bad", "cant_tell": "cant_tell"}

Form: TypeAlias = Mapping[str, list[str]]
"""The values of each field by its name."""


async def read_form(request: Request, *, largest: int = _LARGEST_FORM) -> Form:
    """Read the form that a request sends.

    Args:
        request: The request.
        largest: The most bytes that it may have.

    Raises:
        HTTPException: It is no form, too large, or cannot be read.
    """
    if not is_media_type(request.headers.get("content-type", ""), "application/x-www-form-urlencoded"):
        raise HTTPException(415, "Expected a form (application/x-www-form-urlencoded).")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise HTTPException(413, f"The form is larger than {largest:,} bytes; write a shorter text.")
    try:
        return parse_qs(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=64
        )
    except ValueError as error:
        raise HTTPException(422, f"The form cannot be read ({error}).") from error


def only_value(form: Form, name: str, default: str | None = None) -> str:
    """Return the value of a field that is sent once; the default, if there is one and the field is missing."""
    values = form.get(name, [] if default is None else [default])
    if len(values) != 1:
        raise HTTPException(422, f"The form has {len(values)} fields named {name!r}; expected one.")
    return values[0]


def verdict_of(value: str) -> Verdict:
    """Return a verdict as the store takes it."""
    if value not in _VERDICTS:
        raise HTTPException(422, f"verdict={value!r}: expected one of {', '.join(_VERDICTS)}.")
    return _VERDICTS[value]


def ranks_of(values: Sequence[str]) -> list[int | None]:
    """Return ranks from 0 without gaps; an item without a rank is ranked last if it is the only one."""
    if not all(re.fullmatch(f"[1-{MOST_COMPLETIONS}]?", value, re.ASCII) for value in values):
        raise HTTPException(422, f"rank={list(values)}: expected numbers from 1 to {MOST_COMPLETIONS}, or nothing.")
    known = sorted({int(value) for value in values if value})
    ranks = [known.index(int(value)) if value else None for value in values]
    return [len(known) if rank is None else rank for rank in ranks] if ranks.count(None) == 1 else ranks


def confidence_of(value: str) -> int | None:
    """Return a confidence from 1 to 5; None if nothing was chosen."""
    if not re.fullmatch("[1-5]?", value, re.ASCII):
        raise HTTPException(422, f"confidence={value!r}: expected a number from 1 to 5, or nothing.")
    return int(value) if value else None


def note_of(value: str) -> str:
    """Return a note with plain line breaks."""
    note = value.replace("\r\n", "\n").strip()  # browsers end lines with both characters
    if len(note) > _LONGEST_NOTE:
        raise HTTPException(422, f"A note has at most {_LONGEST_NOTE} characters; this one has {len(note)}.")
    return note


def texts_of(values: Sequence[str], *, chat: bool) -> list[str]:
    """Return the texts of an answer with plain line breaks; boxes at the end that were left empty are none.

    Args:
        values: What the boxes hold.
        chat: They are messages, without white space around them. Otherwise the text goes on from the prompt as it
            stands, so that only white space at its end is left out.

    Raises:
        HTTPException: A text is blank, or too long.
    """
    plain = (value.replace("\r\n", "\n") for value in values)
    texts = [text.strip() if chat else text.rstrip() for text in plain]
    while texts and not texts[-1]:
        texts.pop()
    if not texts or not all(texts):
        raise HTTPException(422, "A text is empty; write something, and end with an answer.")
    if len(longest := max(texts, key=len)) > LONGEST_TEXT:
        raise HTTPException(
            422, f"A text has {len(longest):,} characters; expected {LONGEST_TEXT:,} at most. Write a shorter one."
        )
    return texts


def place_of(value: str, count: int) -> int | None:
    """Return a place from 0 of one of ``count`` items, which forms count from 1; None if none was named."""
    if value and not (re.fullmatch("[1-9]", value, re.ASCII) and int(value) <= count):
        raise HTTPException(422, f"{value[:20]!r} is the number of no completion; expected one from 1 to {count}.")
    return int(value) - 1 if value else None


def seconds_of(value: str) -> float | None:
    """Return the seconds that a judgement took; None if the page did not say."""
    if not re.fullmatch(r"(?:\d{1,9}(?:\.\d{1,9})?)?", value, re.ASCII):
        raise HTTPException(422, f"seconds={value!r}: expected a number of seconds, or nothing.")
    return float(value) if value else None
