"""Keep a reward within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.env.reward_calls import Value, total
from textenv.rewards._inner import Combined, check_reward, check_state, load_state, state_of
from textenv.types import Reward, TextEnvError
from textenv.validation import validate

__all__ = ["Clip"]


@dataclass(frozen=True, slots=True)
class Clip(Combined):
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

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped reward's state as JSON values."""
        return {"reward": state_of(self.reward)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that ``state_dict`` returned.

        Raises:
            TextEnvError: If it is another reward's.
        """
        check_state("Clip", state, {"reward"})
        load_state(self.reward, state["reward"])
