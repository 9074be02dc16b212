"""A synthetic judge, who prefers the clip with the higher score (Christiano et al. 2017, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from textenv.clips.segments import Segment
from textenv.types import TextEnvError

__all__ = ["Oracle", "Score", "true_return"]

Score: TypeAlias = Callable[[Segment], float]
"""How good a clip is, in any unit; only the difference of two scores matters."""


def true_return(clip: Segment) -> float:
    """Return the sum of the task's own rewards."""
    return float(clip.rewards.sum())


class Oracle:
    """Prefers the clip with the higher score; equal scores are a tie.

    A judgement is a function of the seed, its number and the two clips; it does not depend on earlier judgements.
    """

    def __init__(
        self, score: Score = true_return, *, error_rate: float = 0.0, temperature: float = 0.0, seed: int = 0
    ) -> None:
        """Make a judge.

        Args:
            score: The score of a clip.
            error_rate: Share of the judgements that are made at random.
            temperature: In units of score: the first of two clips is preferred with probability
                ``sigmoid(difference / temperature)``. 0 always prefers the better.
            seed: Seeds the random judgements.

        Raises:
            TextEnvError: The error rate is not from 0 to 1, or the temperature is below 0.
        """
        if not 0 <= error_rate <= 1:
            raise TextEnvError(f"error_rate={error_rate}: expected a share from 0 to 1.")
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise TextEnvError(f"temperature={temperature}: expected a finite number of at least 0.")
        self.score, self.error_rate, self.temperature, self.seed = score, error_rate, temperature, seed

    def prefer(self, number: int, first: Segment, second: Segment) -> float:
        """Return 1.0 if the first is preferred, 0.0 if the second, 0.5 for a tie.

        Raises:
            TextEnvError: A score is not finite.
        """
        scores = self.score(first), self.score(second)
        if not all(map(math.isfinite, scores)):
            raise TextEnvError(f"The oracle's scores of two clips are {scores}; expected finite numbers.")
        rng = np.random.default_rng([self.seed, number])
        if rng.random() < self.error_rate:
            return float(rng.random() < 0.5)
        lead = scores[0] - scores[1]
        if self.temperature:
            return float(rng.random() < 0.5 * (1 + math.tanh(lead / self.temperature / 2)))  # the sigmoid
        return 0.5 if lead == 0 else float(lead > 0)
