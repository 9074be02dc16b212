"""Closeness to a target length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError
from textenv.validation import Count, validate

__all__ = ["Length"]


@dataclass(frozen=True, slots=True)
class Length:
    """How close the completion's length is to a target, from 0 to 1.

    The score is the ratio of the shorter to the longer, ``min(length, target) / max(length, target)``: 1 on target, 1/2
    at half and at twice the target, 0 for an empty completion. It never becomes flat beyond the target, so that a
    policy that writes far too much still learns to write less.

    Attributes:
        target: The desired length, at least 1.
        unit: ``"words"``, separated by white space, or ``"tokens"``, as sampled, the end-of-sequence token
            included.

    Raises:
        TextEnvError: If ``target`` is not a positive integer, or ``unit`` is unknown; when called, if tokens are to be
            counted and only texts are given.
    """

    target: Count
    unit: Literal["words", "tokens"] = "words"

    def __post_init__(self) -> None:
        validate(self, owner="Length")

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores from 0 to 1."""
        texts = completion_texts(completions)
        if self.unit == "tokens" and any(text and not ids for text, ids in zip(texts, completion_ids, strict=True)):
            raise TextEnvError(
                "Length(unit='tokens') was given texts without their token ids; use unit='words', or give the tokens "
                "of every completion."
            )
        items = completion_ids if self.unit == "tokens" else [text.split() for text in texts]
        return [min(len(item), self.target) / max(len(item), self.target) for item in items]
