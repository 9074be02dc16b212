"""Keep a reward within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.rewards._inner import check_reward, check_state, inner_scores, load_state, state_of
from textenv.types import Reward, TextEnvError
from textenv.validation import validate

__all__ = ["Clip"]


@dataclass(frozen=True, slots=True)
class Clip:
    """Another reward's scores, clipped to ``[low, high]``.

    NaN is an error and is not clipped, so that a broken reward is noticed.

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

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores from ``low`` to ``high``."""
        scores = inner_scores(
            self.reward, prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )
        return [min(max(score, self.low), self.high) for score in scores]

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
