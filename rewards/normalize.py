"""Scale a reward to unit variance, by the statistics of the scores so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textenv.rewards._inner import check_reward, check_state, inner_scores, load_state, state_of
from textenv.types import Reward, TextEnvError
from textenv.validation import validate

__all__ = ["Normalize"]

# A standard deviation below this is rounding error.
_LEAST_STD = 1e-8


@dataclass(slots=True)
class Normalize:
    """Another reward's scores, divided by the standard deviation of all scores seen so far.

    The mean is kept unless ``keep_mean`` is false: if it were subtracted, the scores of every policy would average
    about 0, and progress would no longer show. A batch is added to the statistics before it is normalized. Until two
    scores have differed, scores are returned as they are. The first batches are normalized by the statistics of few
    scores: put ``Clip`` around this reward to bound them.

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

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` normalized scores."""
        scores = inner_scores(
            self.reward, prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )
        if self.training:
            for score in scores:
                self.count += 1
                distance = score - self.mean
                self.mean += distance / self.count
                self.squares += distance * (score - self.mean)
        shift = 0.0 if self.keep_mean else self.mean
        scale = self.std if self.std > _LEAST_STD else 1.0
        return [(score - shift) / scale for score in scores]

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
