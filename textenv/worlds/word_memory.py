"""A word that is shown once and asked for some turns later."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from textenv.types import TextEnvError
from textenv.validation import Count, validate

__all__ = ["WordMemory"]


@dataclass
class WordMemory:
    """Names one of some words, lets turns pass, and pays at the last one for the word it named.

    The best that an agent can earn is ``1``, by writing the word; without memory of the first turn it is
    ``1 / len(words)``.

    Attributes:
        words: What is drawn from, evenly.
        turns: Number of turns; only what is written in the last one is paid.
    """

    words: tuple[str, ...] = ("red", "blue", "green", "black")
    turns: Count = 3

    _word: str = field(default="", init=False, repr=False)
    _turn: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        validate(self)
        if not self.words or len(set(self.words)) < len(self.words) or not all(map(str.strip, self.words)):
            raise TextEnvError(f"words={self.words!r}: expected different words, at least one.")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a word and name it."""
        self._word, self._turn = self.words[int(np.random.default_rng(seed).integers(len(self.words)))], 0
        return f"The word is {self._word}.\n{self._question()}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pass a turn; at the last one, compare the text with the word."""
        self._turn += 1
        if self._turn < self.turns:
            return f"\n{self._question()}", 0.0, False, False, {}
        return "\n", float(action.strip() == self._word), True, False, {}

    def _question(self) -> str:
        left = self.turns - 1 - self._turn
        return "Which word was it? " if left == 0 else f"Wait, {left} more. "
