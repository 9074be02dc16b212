"""The contract of a reward, of those that are awaited, score tokens, log, or do not always apply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from textenv.testing import COMPLETIONS, RewardContract
from textenv.types import Reward, TextEnvError


async def vowels(completions: Any, **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return [sum(text.count(vowel) for vowel in "aeiou") / 10 for text in completions]


def letters(completion_ids: Any, **_: Any) -> list[list[float]]:
    return [[float(chr(token).isalpha()) for token in ids] for ids in completion_ids]


async def logged(completions: Any, log_extra: Any, log_metric: Any, trainer_state: Any, **_: Any) -> list[float]:
    log_extra("lengths", list(map(len, completions)))
    log_metric("step", float(trainer_state.global_step))
    return [1.0] * len(completions)


def of_words(completions: Any, completion_ids: Any, **_: Any) -> list[list[float] | None]:
    """Score the tokens of a text that has words."""
    rows = zip(completions, completion_ids, strict=True)
    return [[0.5] * len(ids) if text.split() else None for text, ids in rows]


class TestAsync(RewardContract):
    def make_reward(self) -> Reward:
        return vowels


class TestProcess(RewardContract):
    def make_reward(self) -> Reward:
        return letters

    def test_the_scores_are_those_of_the_tokens(self, reward: Reward) -> None:
        assert self.score(reward, slice(2, 3)) == [(0.0, 0.0, 0.0)]
        assert self.score(reward, slice(5, 6)) == [(1.0,) * 2000]


class TestOptional(RewardContract):
    optional = True

    def make_reward(self) -> Reward:
        return of_words

    def test_it_says_nothing_of_blanks(self, reward: Reward) -> None:
        assert [score is None for score in self.score(reward)] == [not text.split() for text in COMPLETIONS]


class TestLogs(RewardContract):
    def make_reward(self) -> Any:
        return logged


def check(function: Callable[..., Any], test: str) -> None:
    class Contract(RewardContract):
        def make_reward(self) -> Reward:
            return function

    contract = Contract()
    getattr(contract, test)(contract.make_reward())


async def halves(completion_ids: Any, **_: Any) -> list[list[float]]:
    return [[0.5] for _ in completion_ids]


def turns(completions: Any, **_: Any) -> list[list[float] | float]:
    return [1.0 if text else [] for text in completions]


async def greedy(completions: Any, completion_ids: Any, **_: Any) -> list[float]:
    completion_ids[0].clear()
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "test", "message"),
    [
        (halves, "test_returns_a_finite_score_for_each_completion", "1 scores for the 24 tokens"),
        (of_words, "test_returns_a_finite_score_for_each_completion", "say so with 'optional'"),
        (turns, "test_scores_texts_or_tokens_and_never_both", "<= 1"),
        (greedy, "test_leaves_its_arguments_alone", "completion_ids"),
    ],
    ids=lambda given: getattr(given, "__name__", None) or str(given),
)
def test_a_reward_that_breaks_it_is_found(function: Callable[..., Any], test: str, message: str) -> None:
    with pytest.raises((AssertionError, TextEnvError), match=message):
        check(function, test)
