"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.rewards._inner import check_reward, check_state, inner_scores, load_state, state_of
from textenv.types import Reward, TextEnvError
from textenv.validation import validate

__all__ = ["WeightedSum"]


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """``sum_i weights[i] * rewards[i]``.

    Attributes:
        rewards: The rewards, at least one.
        weights: A finite number for each; None for 1 each. A negative weight makes a reward a penalty.

    Raises:
        TextEnvError: If the two differ in number, or hold anything else.
    """

    rewards: Sequence[Reward]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rewards, str) or not isinstance(self.rewards, Sequence) or not self.rewards:
            raise TextEnvError(f"WeightedSum(rewards={self.rewards!r}): expected a non-empty list of rewards.")
        for reward in self.rewards:
            check_reward("WeightedSum", reward)
        validate(self, owner="WeightedSum")
        if self.weights is None:
            object.__setattr__(self, "weights", (1.0,) * len(self.rewards))
        elif len(self.weights) != len(self.rewards):
            raise TextEnvError(
                f"WeightedSum(weights={self.weights!r}): expected {len(self.rewards)} finite numbers, "
                "one for each reward."
            )

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` weighted sums."""
        terms = [
            inner_scores(reward, prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
            for reward in self.rewards
        ]
        weights = self.weights or ()
        return [
            math.fsum(weight * score for weight, score in zip(weights, row, strict=True))
            for row in zip(*terms, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped rewards' states as JSON values, in their order."""
        return {"rewards": [state_of(reward) for reward in self.rewards]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that ``state_dict`` returned.

        Raises:
            TextEnvError: If it is another reward's.
        """
        check_state("WeightedSum", state, {"rewards"})
        states = state["rewards"]
        if not isinstance(states, list | tuple) or len(states) != len(self.rewards):
            raise TextEnvError(
                f"WeightedSum of {len(self.rewards)} rewards was given the states {states!r}; expected one for each."
            )
        for reward, inner in zip(self.rewards, states, strict=True):
            load_state(reward, inner)
