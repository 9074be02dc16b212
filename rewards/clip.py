"""Keep a reward within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textenv.env.reward_calls import Value, total
from textenv.rewards._inner import Wrapped, check_reward
from textenv.types import Reward, TextEnvError
from textenv.validation import validate

__all__ = ["Clip"]


@dataclass(frozen=True, slots=True)
class Clip(Wrapped):
    """Another reward's scores, clipped to ``[low, high]``.

    NaN is an error and is not clipped, so that a broken reward is noticed. Of a reward that scores tokens the sum is
    clipped, and paid at the end.

    Attributes:
        reward: The reward whose scores are clipped.
        low: The lowest score.
        high: The highest score, above ``low``.

    Raises:
        TextEnvError: If ``reward`` is not a reward, or the bounds are not finite and in order.
    """

    reward: Reward
    low: float
    high: float

    def __post_init__(self) -> None:
        check_reward("Clip", self.reward)
        validate(self, owner="Clip")
        if not self.low < self.high:
            raise TextEnvError(f"Clip(low={self.low!r}, high={self.high!r}): expected finite numbers with low < high.")

    @property
    def inner_rewards(self) -> tuple[Reward]:
        """The wrapped reward."""
        return (self.reward,)

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return ``n`` scores from ``low`` to ``high``."""
        return [None if value is None else min(max(total(value), self.low), self.high) for value in said[0]]
