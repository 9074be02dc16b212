"""Several rewards as one."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv import plugins
from textenv.env.reward_calls import Value
from textenv.env.reward_parts import unique_names
from textenv.rewards._inner import Combined, check_reward, check_state, load_state, state_of
from textenv.types import Reward, TextEnvError
from textenv.validation import NonEmpty, validate

__all__ = ["WeightedSum"]


@dataclass(frozen=True, slots=True)
class WeightedSum(Combined):
    """``sum_i weights[i] * rewards[i]``, over the rewards that apply.

    A reward that returns None for a completion does not apply to it; one at least has to. If one returns a score for
    each token, so does the sum, and the scores of the others are at the last token.

    Attributes:
        rewards: The rewards, at least one.
        weights: A finite number for each; None for 1 each. A negative weight makes a reward a penalty.
        names: A different name for each, under which its scores are reported; None for those of the functions, of the
            built-in rewards, or of the classes, where the second of the same name ends in ``_2``.

    Raises:
        TextEnvError: If these differ in number, or hold anything else.
    """

    rewards: Sequence[Reward]
    weights: Sequence[float] | None = None
    names: Sequence[NonEmpty] | None = None

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
        if self.names is None:
            object.__setattr__(self, "names", tuple(unique_names(list(map(_name, self.rewards)))))
        elif len(set(self.names)) != len(self.rewards):
            raise TextEnvError(
                f"WeightedSum(names={self.names!r}): expected {len(self.rewards)} different names, one for each reward."
            )

    @property
    def inner_rewards(self) -> Sequence[Reward]:
        """The rewards."""
        return self.rewards

    @property
    def part_names(self) -> Sequence[str]:
        """Their names."""
        return self.names or ()

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return ``n`` weighted sums; None where no reward applies."""
        return [_weighted_sum(self.weights or (), row) for row in zip(*said, strict=True)]

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


def _weighted_sum(weights: Sequence[float], values: Sequence[Value]) -> Value:
    """Return the sum of what rewards say of one completion, without those that do not apply."""
    known = [(weight, value) for weight, value in zip(weights, values, strict=True) if value is not None]
    if not known:
        return None
    whole = math.fsum(weight * value for weight, value in known if not isinstance(value, tuple))
    of_tokens = [[weight * score for score in value] for weight, value in known if isinstance(value, tuple)]
    if not of_tokens:
        return whole
    sums = list(map(math.fsum, zip(*of_tokens, strict=True)))
    return (*sums[:-1], sums[-1] + whole) if sums else whole


def _name(reward: Any) -> str:
    """Return the name of a reward: that of the function, of the built-in reward, or of the class."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    named = getattr(reward, "__name__", None)
    if isinstance(named, str):
        return named.strip("<>")  # of a lambda
    cls = type(reward)
    built_in = {f"textenv.rewards.{file}": file for file in plugins.built_in("textenv.rewards")}
    return built_in.get(cls.__module__, cls.__name__)
