"""The contract of a reward."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, ClassVar

import pytest

from textenv.types import Reward

__all__ = ["COMPLETIONS", "PROMPTS", "RewardContract"]

PROMPTS = ["The film was", "Once upon a time", "Q: 2 + 2?\nA:", "Ein Mädchen", "no", ""]
COMPLETIONS = [" a great, great success.", "", " 4\n", " sah 日本の猫 😀 e\u0301 \u202eabc", " \t\n", "x" * 2000]


class RewardContract:
    """The contract of ``textenv.types.Reward``.

    Attributes:
        stateful: Whether a score may depend on earlier calls. Batch and single scores may then differ.
        picklable: Whether the reward can travel to another process.
        tolerance: Largest difference between two computations of a score, absolute and relative.
    """

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

    def score(self, reward: Reward, rows: slice = slice(None), /, **extra: list[Any]) -> list[float]:
        """Score some rows of the batch that all tests share."""
        completions = COMPLETIONS[rows]
        columns = {name: values[rows] for name, values in self.columns(len(COMPLETIONS)).items()}
        ids = [list(completion.encode()) for completion in completions]
        scores = reward(prompts=PROMPTS[rows], completions=completions, completion_ids=ids, **columns, **extra)
        return [float(score) for score in scores]

    def test_returns_a_finite_score_for_each_completion(self, reward: Reward) -> None:
        scores = self.score(reward)
        assert len(scores) == len(COMPLETIONS)
        assert all(math.isfinite(score) for score in scores), scores

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
        reward(**arguments)
        assert arguments == before

    def test_a_deep_copy_scores_the_same(self, reward: Reward) -> None:
        assert self.score(copy.deepcopy(reward)) == self.near(self.score(reward))

    def test_a_pickled_copy_scores_the_same(self, reward: Reward) -> None:
        if not self.picklable:
            pytest.skip("this reward stays in its process")
        assert self.score(pickle.loads(pickle.dumps(reward))) == self.near(self.score(reward))

    def near(self, scores: list[float]) -> Any:
        """Return what compares equal to scores within the tolerance."""
        return pytest.approx(scores, rel=self.tolerance, abs=self.tolerance)
