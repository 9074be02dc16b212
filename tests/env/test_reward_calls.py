"""What a reward is called with, and the forms of what it returns."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.complaints import one_line
from textenv.env.reward_calls import Batch, Call, call_all
from textenv.types import TrainerState

IDS = [[1], [2, 3], [4, 5, 6]]


def batch(state: TrainerState | None = None, **columns: Sequence[Any]) -> Batch:
    return Batch(["a", "b", "c"], ["x", "yy", "zzz"], IDS, columns, state or TrainerState())


def call(reward: Callable[..., Any], **given: Any) -> Call:
    (found,) = call_all([reward], batch(**given))
    return found


def returning(value: Any) -> Callable[..., Any]:
    def constant(**columns: Any) -> Any:
        return value

    return constant


@pytest.mark.parametrize(
    "second",
    [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5], requires_grad=True), [np.float32(1), 2.5]],
    ids=["list", "tuple", "array", "tensor", "numbers of numpy"],
)
def test_a_reward_scores_texts_and_tokens_and_may_not_apply(second: Any) -> None:
    assert call(returning([0.5, second, None])).values == [0.5, (1.0, 2.5), None]


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0]], ids=len)
def test_another_number_of_scores_than_of_tokens_is_told_with_both(scores: list[float]) -> None:
    with one_line(f"constant returned {len(scores)} scores for the 2 tokens of a completion. The prompt is 'b'"):
        call(returning([1.0, scores, 1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300, "1", None, [1.0]], ids=repr)
def test_a_token_without_a_finite_score_is_told(bad: Any) -> None:
    with one_line("for a token. The prompt is 'b' and the completion 'yy'. Expected a finite float32 number"):
        call(returning([1.0, [1.0, bad], 1.0]))


class Async:
    async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]


async def awaited(scale: float, completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return [scale * len(text) for text in completions]


async def slow_failure(**columns: Any) -> list[float]:
    await asyncio.sleep(0)
    raise ConnectionError("no server")


class TestAwaited:
    @pytest.mark.parametrize("reward", [Async(), functools.partial(awaited, 1.0), Async().__call__], ids=type)
    def test_is_awaited_in_every_form(self, reward: Any) -> None:
        assert call(reward).values == [1.0, 2.0, 3.0]

    def test_is_awaited_where_a_loop_runs(self) -> None:
        async def notebook() -> list[Any]:
            return call(Async()).values

        assert asyncio.run(notebook()) == [1.0, 2.0, 3.0]

    def test_several_are_awaited_together(self) -> None:
        # Each waits until the other has begun.
        begun = {"one": asyncio.Event(), "other": asyncio.Event()}

        async def waiting(mine: str, theirs: str, completions: list[str], **columns: Any) -> list[float]:
            begun[mine].set()
            await asyncio.wait_for(begun[theirs].wait(), 20)
            return [1.0] * len(completions)

        pair = [functools.partial(waiting, *names) for names in (("one", "other"), ("other", "one"))]
        assert [each.values for each in call_all(pair, batch())] == [[1.0] * 3] * 2

    def test_its_exception_is_told_with_its_name(self) -> None:
        with one_line("slow_failure raised ConnectionError: no server. It was scoring a batch of 3"):
            call(slow_failure)

    def test_nothing_is_left_unawaited_where_another_fails(self) -> None:
        def broken(**columns: Any) -> list[float]:
            raise KeyError("x")

        with one_line("broken raised KeyError"):  # a warning of a coroutine that nobody awaits is an error here
            call_all([Async(), broken], batch())


def names_them(completions: Any, log_extra: Any, log_metric: Any, trainer_state: Any, **columns: Any) -> list[float]:
    assert set(columns) == {"prompts", "completion_ids"}
    log_extra("length", [len(text) for text in completions])
    log_metric("mean", np.float32(2.0))
    log_metric("mean", torch.tensor(3.0))
    return [float(trainer_state.global_step)] * len(completions)


def takes_them(**columns: Any) -> list[float]:
    return names_them(**columns)


def takes_one(prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any = None) -> list[float]:
    return [float(trainer_state.max_steps)] * len(completions)


class Module(torch.nn.Module):
    def forward(self, prompts: Any, completions: Any, completion_ids: Any) -> torch.Tensor:
        return torch.ones(len(completions))


class TestServices:
    @pytest.mark.parametrize("reward", [names_them, takes_them], ids=["by name", "by **columns"])
    def test_are_given_where_they_are_taken(self, reward: Any) -> None:
        found = call(reward, state=TrainerState(global_step=7))
        assert found.values == [7.0] * 3
        assert found.extra == {"length": [1, 2, 3]}
        assert found.metrics == {"mean": [2.0, 3.0]}

    def test_are_not_given_where_they_are_not(self) -> None:
        assert call(takes_one, state=TrainerState(max_steps=9)).values == [9.0] * 3
        assert call(Module()).values == [1.0] * 3  # whose ``__call__`` takes anything

    def test_a_column_cannot_have_their_name(self) -> None:
        with one_line("columns named ['trainer_state']"):
            batch(trainer_state=[1, 2, 3])

    @pytest.mark.parametrize(
        ("name", "arguments", "said"),
        [
            ("log_extra", ("up", ["x"]), "logged 1 values of 'up' for 3 completions"),
            ("log_metric", ("mean", "high"), "logged as 'mean' is 'high'; expected a finite number"),
            ("log_metric", ("mean", math.nan), "logged as 'mean' is nan; expected a finite number"),
        ],
    )
    def test_what_cannot_be_logged_is_told(self, name: str, arguments: tuple[Any, ...], said: str) -> None:
        def logging(completions: Any, **columns: Any) -> list[float]:
            columns[name](*arguments)
            return [0.0] * len(completions)

        with one_line(said):
            call(logging)
