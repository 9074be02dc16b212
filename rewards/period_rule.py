"""A sentence that ends in time: another reward's score of the text up to its first period, or a penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.env.reward_calls import Value, total
from textenv.models.codec import TextCodec
from textenv.models.loading import BUNDLED, load_tokenizer, resolve_model
from textenv.rewards._inner import Wrapped, check_reward, of_other_texts
from textenv.rewards._texts import completion_texts
from textenv.types import Reward
from textenv.validation import NonEmpty, NonNegativeInt, validated

__all__ = ["PeriodRule"]


class PeriodRule(Wrapped):
    """Another reward's score of a completion up to its first period at or after a token; a penalty if it has none.

    It keeps texts of a fixed number of tokens from ending within a sentence (Ziegler et al., 2019: *Fine-Tuning
    Language Models from Human Preferences*, section 3.1).

    Args:
        reward: The reward. It is given the texts that were cut, and the tokens of those that were written.
        model: Model whose tokenizer wrote them: a built-in name, a folder or a Hugging Face id.
        after: Tokens, from 0, before which a period does not count.
        penalty: The score of a completion without such a period.

    Raises:
        TextEnvError: ``reward`` is no reward, a number is not what is expected, or there is no such tokenizer.
    """

    @validated
    def __init__(
        self, reward: Reward, *, model: NonEmpty = BUNDLED, after: NonNegativeInt = 16, penalty: float = -1.0
    ) -> None:
        check_reward("PeriodRule", reward)
        self.reward = reward
        self.after = after
        self.penalty = penalty
        self._codec = TextCodec(load_tokenizer(resolve_model(model)))

    @property
    def inner_rewards(self) -> tuple[Reward, Reward]:
        """The wrapped reward of the cut texts, and whether each has a period in time."""
        return of_other_texts(self.reward, self._cut_all), self._in_time

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return ``n`` scores; None where the wrapped reward does not apply."""
        return [
            None if value is None else total(value) if in_time else self.penalty
            for value, in_time in zip(*said, strict=True)
        ]

    def cut(self, completion: str, ids: Sequence[int]) -> str | None:
        """Return a completion up to its first period that counts, with it; None if there is none.

        Args:
            completion: The text.
            ids: Its tokens.
        """
        whole, early = self._codec.decode(ids), self._codec.decode(ids[: self.after])
        stripped = completion.find(whole)  # white space that decoding alone leaves out
        place = completion.find(".", len(early) + max(0, stripped))
        return None if len(ids) <= self.after or place < 0 else completion[: place + 1]

    def _cut_all(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]]
    ) -> tuple[list[Any], list[Any]]:
        cut = []
        for said, text, ids in zip(completions, completion_texts(completions), completion_ids, strict=True):
            shorter = self.cut(text, ids)
            if shorter is None or isinstance(said, str):
                cut.append(said if shorter is None else shorter)
            else:
                cut.append([{"role": "assistant", "content": shorter}])
        return list(prompts), cut

    def _in_time(
        self, /, *, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        texts = completion_texts(completions)
        return [float(self.cut(text, ids) is not None) for text, ids in zip(texts, completion_ids, strict=True)]
