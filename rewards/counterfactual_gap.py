"""How much another reward depends on the gender of the words in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textenv.env.reward_calls import Value, total
from textenv.models.counterfactual import swap_gender
from textenv.rewards._inner import Wrapped, check_reward, of_other_texts
from textenv.types import Reward

__all__ = ["CounterfactualGap"]


@dataclass(frozen=True, slots=True)
class CounterfactualGap(Wrapped):
    """How far another reward ``r`` is from the same of the text with the gender swapped: ``-|r(x, y) - r(x', y')|``.

    Prompt ``x'`` and completion ``y'`` are those of the other gender, word by word (``textenv.models.counterfactual``).
    It is 0, the most it can be, where the reward says the same of both; a text without gendered words has no other
    version. Weigh it beside the reward that is to be had, so that the agent learns to earn it without texts that are
    only worth more for one gender: ``{"name": "weighted_sum", "rewards": ["learned", {"name": "counterfactual_gap",
    "reward": "learned"}], "weights": [1, 4]}``. The reward is asked twice for each text.

    Huang et al., 2019: *Reducing Sentiment Bias in Language Models via Counterfactual Evaluation*. English only.

    Attributes:
        reward: The reward. It has to read the texts: of the text that was swapped there are no tokens, and those of
            the text that was written are handed on.

    Raises:
        TextEnvError: ``reward`` is no reward.
    """

    reward: Reward

    def __post_init__(self) -> None:
        check_reward("CounterfactualGap", self.reward)

    @property
    def inner_rewards(self) -> tuple[Reward, Reward]:
        """The wrapped reward, and the same of the swapped texts."""
        return self.reward, of_other_texts(self.reward, _swapped)

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return ``n`` numbers of at most 0; None where the wrapped reward does not apply."""
        return [
            None if one is None or other is None else -abs(total(one) - total(other))
            for one, other in zip(*said, strict=True)
        ]


def _swapped(prompts: Sequence[Any], completions: Sequence[Any], _: Any) -> tuple[list[Any], list[Any]]:
    return [_other(each) for each in prompts], [_other(each) for each in completions]


def _other(said: Any) -> Any:
    """Return a text, or each message of a conversation, with the gender swapped."""
    if isinstance(said, str):
        return swap_gender(said)
    return [{**message, "content": swap_gender(message["content"])} for message in said]
