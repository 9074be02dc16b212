"""A dialogue in letters whose answers are drawn from a known distribution, for ``textenv/Exact-v0``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from textenv.types import TextEnvError, WorldAnswer
from textenv.validation import Count, NonNegativeInt, validate

__all__ = ["LetterDialogue"]


@dataclass
class LetterDialogue:
    """Answers a turn with a letter, whose distribution follows from the last letter of the turn, and pays it.

    A turn ``c_1 .. c_k`` after the answer ``c_0`` is paid ``sum_t (u(c_t) + b(c_{t-1}, c_t)) / (2 T)``, with ``T`` the
    ``length``, and ``u`` and ``b`` drawn uniformly from -1 to 1: what is best depends on what was answered, and with it
    on how the turn before has ended. All that it can answer is known (``textenv.types.EnumerableWorld``), so that the
    best an agent can do is, too.

    Attributes:
        letters: The alphabet, each letter once.
        turns: Turns of a dialogue.
        length: Letters of a full turn.
        answers: How many of the letters are answered.
        seed: Seeds the tables.
    """

    letters: str = "abcdefg"
    turns: Count = 2
    length: Count = 3
    answers: Count = 2
    seed: NonNegativeInt = 0

    _history: tuple[str, ...] = field(default=(), init=False, repr=False)
    _rng: np.random.Generator = field(default_factory=np.random.default_rng, init=False, repr=False)

    def __post_init__(self) -> None:
        """Draw the tables, and check the settings."""
        validate(self)
        count = len(self.letters)
        if not count or len(set(self.letters)) < count or self.answers > count:
            raise TextEnvError(
                f"letters={self.letters!r}, answers={self.answers}: expected letters, each once, and no more answers."
            )
        rng = np.random.default_rng(self.seed)
        self._single, self._pair = rng.uniform(-1, 1, count), rng.uniform(-1, 1, (count, count))
        self._chances = rng.dirichlet(np.ones(self.answers), count + 1)  # after each letter, and after no letter

    def beginnings(self) -> Sequence[tuple[float, str]]:
        """Return what it may say first, with its probability."""
        return [(1.0, self.letters[0])]

    def outcomes(self, history: Sequence[str]) -> Sequence[WorldAnswer]:
        """Return what it may answer after what was said by it and the agent in turn, beginning with it."""
        text, before = history[-1], history[-2]
        over = len(history) // 2 == self.turns
        reward = self._paid(before, text)
        places = [self.letters.find(letter) for letter in text]
        chances = self._chances[places[-1] if places else -1].tolist()
        return [WorldAnswer(chance, self.letters[at], reward, over) for at, chance in enumerate(chances)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin with the first letter."""
        self._rng, self._history = np.random.default_rng(seed), (self.letters[0],)
        return self._history[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Draw an answer."""
        self._history = (*self._history, action)
        found = self.outcomes(self._history)
        answer = found[int(self._rng.choice(len(found), p=[each.chance for each in found]))]
        self._history = (*self._history, answer.said)
        return answer.said, answer.reward, answer.terminated, False, {}

    def _paid(self, before: str, text: str) -> float:
        total, last = 0.0, self.letters.find(before[-1:])
        for letter in text:
            place = self.letters.find(letter)
            if place >= 0:
                total += float(self._single[place]) + (float(self._pair[last, place]) if last >= 0 else 0.0)
            last = place
        return total / (2 * self.length)
