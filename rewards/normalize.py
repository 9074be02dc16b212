"""Scale a reward to unit variance, by the statistics of the scores so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textenv.env.reward_calls import Value, total
from textenv.rewards._inner import Combined, check_reward, check_state, load_state, state_of
from textenv.types import Reward, TextEnvError
from textenv.validation import validate

__all__ = ["Normalize"]

# A standard deviation below this is rounding error.
_LEAST_STD = 1e-8


@dataclass(slots=True)
class Normalize(Combined):
    """Another reward's scores, divided by the standard deviation of all scores seen so far.

    The mean is kept unless ``keep_mean`` is false: if it were subtracted, the scores of every policy would average
    about 0, and progress would no longer show. A batch is added to the statistics before it is normalized. Until two
    scores have differed, scores are returned as they are. Scores of tokens are divided by the standard deviation of
    their sums, and the mean is subtracted at the last of them. The first batches are normalized by the statistics of
    few scores: put ``Clip`` around this reward to bound them.

    Welford, 1962: *Note on a Method for Calculating Corrected Sums of Squares and Products*; the variance is that of
    the population, as in ``numpy.var``.

    Attributes:
        reward: The reward whose scores are normalized.
        keep_mean: Whether scores are only divided by the standard deviation, or centered first.
        training: Whether new scores are added to the statistics; set it to false to evaluate.
        count: Number of scores seen.
        mean: Their mean.
        squares: The sum of their squared distances from the mean.

    Raises:
        TextEnvError: If an argument is not what is expected.
    """

    reward: Reward
    keep_mean: bool = True
    training: bool = True
    count: int = field(default=0, init=False)
    mean: float = field(default=0.0, init=False)
    squares: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        check_reward("Normalize", self.reward)
        validate(self, owner="Normalize")

    @property
    def inner_rewards(self) -> tuple[Reward]:
        """The wrapped reward."""
        return (self.reward,)

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return ``n`` normalized scores."""
        if self.training:
            for value in said[0]:
                if value is not None:
                    self._add(total(value))
        return [None if value is None else self._normalized(value) for value in said[0]]

    def _add(self, score: float) -> None:
        self.count += 1
        distance = score - self.mean
        self.mean += distance / self.count
        self.squares += distance * (score - self.mean)

    def _normalized(self, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        shift = 0.0 if self.keep_mean else self.mean
        scale = self.std if self.std > _LEAST_STD else 1.0
        if isinstance(value, tuple):
            return tuple(score / scale for score in (*value[:-1], value[-1] - shift)) if value else value
        return (value - shift) / scale

    @property
    def std(self) -> float:
        """Population standard deviation of the scores seen, 0 before the first."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics, and the wrapped reward's state, as JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares, "reward": state_of(self.reward)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that ``state_dict`` returned.

        Raises:
            TextEnvError: If it is another reward's, or no statistics.
        """
        check_state("Normalize", state, {"count", "mean", "squares", "reward"})
        count, mean, squares = state["count"], state["mean"], state["squares"]
        if not all(map(_is_finite, (count, mean, squares))) or count < 0 or squares < 0:
            raise TextEnvError(
                f"Normalize.load_state_dict was given count={count!r}, mean={mean!r}, squares={squares!r}; "
                "expected finite numbers, count and squares not negative."
            )
        load_state(self.reward, state["reward"])
        self.count, self.mean, self.squares = int(count), float(mean), float(squares)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
