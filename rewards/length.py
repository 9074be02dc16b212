"""Closeness to a target length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError

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
        TextEnvError: If ``target`` is not a positive integer, or ``unit`` is unknown.
    """

    target: int
    unit: Literal["words", "tokens"] = "words"

    def __post_init__(self) -> None:
        if not isinstance(self.target, int) or self.target < 1:
            raise TextEnvError(f"Length(target={self.target!r}): expected a whole number of {self.unit}, at least 1.")
        if self.unit not in {"words", "tokens"}:
            raise TextEnvError(f"Length(unit={self.unit!r}): expected 'words' or 'tokens'.")

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
        items = completion_ids if self.unit == "tokens" else [text.split() for text in completion_texts(completions)]
        return [min(len(item), self.target) / max(len(item), self.target) for item in items]
