"""Bring a reward to unit scale as it is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textenv.rewards._inner import check_reward, check_state, inner_scores, load_state, state_of
from textenv.types import Reward, TextEnvError

__all__ = ["Normalize"]

# A spread below this is rounding error.
_LEAST_STD = 1e-8


@dataclass(slots=True)
class Normalize:
    """Another reward's scores, divided by the standard deviation of all scores seen so far.

    The mean is kept unless ``keep_mean`` is false: centred on a running mean, the scores of every policy average about
    0, and progress no longer shows. Each batch enters the statistics before it is normalised. Until two scores have
    differed there is no scale, and scores pass at their own. The first batches are normalised by few scores: put
    ``Clip`` around this to bound what they can do.

    Welford, 1962: *Note on a Method for Calculating Corrected Sums of Squares and Products*; the variance is that of
    the population, as in ``numpy.var``.

    Attributes:
        reward: The reward whose scores are normalised.
        keep_mean: Whether scores are divided by the standard deviation only, or centred first.
        training: Whether new scores enter the statistics; set it to false to evaluate.
        count: Number of scores seen.
        mean: Their mean.
        squares: The sum of their squared distances from the mean.

    Raises:
        TextEnvError: If ``reward`` is none.
    """

    reward: Reward
    keep_mean: bool = True
    training: bool = True
    count: int = field(default=0, init=False)
    mean: float = field(default=0.0, init=False)
    squares: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        check_reward("Normalize", self.reward)

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` normalised scores."""
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
        if count < 0 or squares < 0 or not math.isfinite(mean) or not math.isfinite(squares):
            raise TextEnvError(
                f"Normalize.load_state_dict was given count={count!r}, mean={mean!r}, squares={squares!r}; "
                "expected finite numbers, count and squares not negative."
            )
        load_state(self.reward, state["reward"])
        self.count, self.mean, self.squares = int(count), float(mean), float(squares)
