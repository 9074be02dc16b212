"""A number between two others, to be guessed: the world says higher or lower."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from textenv.validation import Count, validate

__all__ = ["GuessNumber"]

_NUMBER = re.compile(r"-?\d+")


@dataclass
class GuessNumber:
    """Draws a whole number from 1 to ``high`` evenly, and says of each guess whether the number is higher or lower.

    Binary search needs at most ``floor(log2(high)) + 1`` guesses, which is the fewest. A guess that is no such number
    costs what a wrong one does.

    Attributes:
        high: The largest number.
        win: What the right guess pays.
        miss: What any other pays.
    """

    high: Count = 8
    win: float = 1.0
    miss: float = 0.0

    _number: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        validate(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a number."""
        self._number = int(np.random.default_rng(seed).integers(1, self.high + 1))
        return f"Guess my number from 1 to {self.high}.\n", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Compare the first number in a text with the one that was drawn."""
        found = _NUMBER.search(action)
        guess = int(found[0]) if found is not None and len(found[0]) < 20 else None
        if guess is None or not 1 <= guess <= self.high:
            return f"\nFrom 1 to {self.high}.\n", self.miss, False, False, {}
        if guess == self._number:
            return "\nRight.\n", self.win, True, False, {}
        return ("\nHigher.\n" if guess < self._number else "\nLower.\n"), self.miss, False, False, {}
