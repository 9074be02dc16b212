"""The contract of a reward."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from textenv.env.awaiting import wait_for_all
from textenv.env.reward_calls import Batch, Call, Value, call_all, total
from textenv.env.reward_parts import evaluate
from textenv.env.scoring import resolve_reward, unscored
from textenv.types import Reward

__all__ = ["COMPLETIONS", "PROMPTS", "RewardContract"]

PROMPTS = ["The film was", "Once upon a time", "Q: 2 + 2?\nA:", "Ein Mädchen", "no", ""]
COMPLETIONS = [" a great, great success.", "", " 4\n", " sah 日本の猫 😀 e\u0301 \u202eabc", " \t\n", "x" * 2000]


class RewardContract:
    """The contract of ``textenv.types.Reward``.

    The reward is called as an environment calls it: awaited if it is ``async def``, with ``log_extra``, ``log_metric``
    and ``trainer_state`` if it takes them. It scores texts, or with a number for each token what the agent wrote; here
    tokens are bytes.

    Attributes:
        optional: Whether it may return None where it does not apply, as a part of a mix.
        stateful: Whether a score may depend on earlier calls. Batch and single scores may then differ.
        picklable: Whether the reward can travel to another process.
        tolerance: Largest difference between two computations of a score, absolute and relative.
    """

    optional: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    picklable: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-5

    def make_reward(self) -> Reward:
        """Return a new reward."""
        raise NotImplementedError

    def columns(self, n: int) -> dict[str, list[Any]]:
        """Return the columns that the reward needs, ``n`` values each."""
        return {}

    @pytest.fixture
    def reward(self) -> Reward:
        return self.make_reward()

    def batch(self, rows: slice = slice(None), /, **extra: list[Any]) -> Batch:
        """Return some rows of the batch that all tests share, with further columns."""
        completions = COMPLETIONS[rows]
        columns = {name: values[rows] for name, values in self.columns(len(COMPLETIONS)).items()}
        ids = [list(completion.encode()) for completion in completions]
        return Batch(PROMPTS[rows], completions, ids, {**columns, **extra})

    def score(self, reward: Reward, rows: slice = slice(None), /, **extra: list[Any]) -> list[Value]:
        """Score some rows of the batch that all tests share: with a number, with one for each token, or not at all."""
        (call,) = call_all([reward], self.batch(rows, **extra))
        return call.values

    def test_returns_a_finite_score_for_each_completion(self, reward: Reward) -> None:
        scores = self.score(reward)
        assert len(scores) == len(COMPLETIONS)
        assert self.optional or None not in scores, f"{scores}: is it a part of a mix? Then say so with 'optional'."
        assert all(math.isfinite(total(score)) for score in scores if score is not None), scores

    def test_scores_texts_or_tokens_and_never_both(self, reward: Reward) -> None:
        assert len({isinstance(score, tuple) for score in self.score(reward) if score is not None}) <= 1

    def test_is_paid_in_a_mix_what_it_says(self, reward: Reward) -> None:
        found = evaluate(resolve_reward([reward, unscored]), self.batch())
        expected = [0.0 if score is None else total(score) for score in self.score(self.make_reward())]
        assert [total(value) for value in found.values] == self.near(expected)

    def test_scores_an_empty_batch(self, reward: Reward) -> None:
        assert self.score(reward, slice(0, 0)) == []

    def test_scores_a_batch_as_it_scores_one_by_one(self, reward: Reward) -> None:
        if self.stateful:
            pytest.skip("a score of this reward depends on earlier calls")
        single = [self.score(reward, slice(row, row + 1))[0] for row in range(len(COMPLETIONS))]
        assert self.score(reward) == self.near(single)

    def test_is_deterministic(self, reward: Reward) -> None:
        first = self.score(reward)
        assert first == self.near(self.score(self.make_reward()))
        if not self.stateful:
            assert first == self.near(self.score(reward))

    def test_takes_columns_it_does_not_know(self, reward: Reward) -> None:
        names = ("unknown_column", "self", "reward", "cls", "args", "columns", "class", "two words", "")
        extra = self.score(reward, **{name: [None] * len(COMPLETIONS) for name in names})
        assert extra == self.near(self.score(self.make_reward()))

    def test_leaves_its_arguments_alone(self, reward: Reward) -> None:
        arguments: dict[str, Any] = {
            "prompts": list(PROMPTS),
            "completions": list(COMPLETIONS),
            "completion_ids": [[1, 2]] * len(COMPLETIONS),
            **self.columns(len(COMPLETIONS)),
        }
        before = copy.deepcopy(arguments)
        returned = reward(**arguments, **Call(reward, self.batch()).services)
        if inspect.isawaitable(returned):
            wait_for_all([returned])
        assert arguments == before

    def test_a_deep_copy_scores_the_same(self, reward: Reward) -> None:
        assert self.score(copy.deepcopy(reward)) == self.near(self.score(reward))

    def test_a_pickled_copy_scores_the_same(self, reward: Reward) -> None:
        if not self.picklable:
            pytest.skip("this reward stays in its process")
        assert self.score(pickle.loads(pickle.dumps(reward))) == self.near(self.score(reward))

    def near(self, scores: Sequence[Value]) -> Any:
        """Return what compares equal to scores within the tolerance."""
        return [
            None if score is None else pytest.approx(score, rel=self.tolerance, abs=self.tolerance) for score in scores
        ]
