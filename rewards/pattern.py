"""A regular expression as a reward."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError
from textenv.validation import validate

__all__ = ["Pattern"]

Mode = Literal["search", "fullmatch", "count"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Whether, or how often, the completion matches a regular expression.

    Flags are written into the pattern: ``(?i)`` ignores case, ``(?s)`` lets the dot match line breaks.

    Attributes:
        pattern: The expression, as the module ``re`` reads it.
        mode: ``"search"`` gives 1 for a match anywhere and 0 otherwise, ``"fullmatch"`` gives 1 if the whole completion
            matches (a required format) and 0 otherwise, ``"count"`` gives the number of matches that do not overlap.

    Raises:
        TextEnvError: If the expression does not compile, or ``mode`` is unknown.
    """

    pattern: str
    mode: Mode = "search"

    def __post_init__(self) -> None:
        validate(self, owner="Pattern")
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise TextEnvError(
                f"Pattern(pattern={self.pattern!r}) is not a regular expression ({error}). "
                "A literal special character needs a backslash: re.escape(text) adds them."
            ) from error

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores: 0 or 1, or with ``mode="count"`` a number from 0 up."""
        expression, texts = re.compile(self.pattern), completion_texts(completions)
        if self.mode == "count":
            return [float(sum(1 for _ in expression.finditer(text))) for text in texts]
        match = expression.fullmatch if self.mode == "fullmatch" else expression.search
        return [float(match(text) is not None) for text in texts]
