"""What every implementation of a textenv protocol must do, as base classes to subclass in a test module.

A contract is a class of tests with a few hooks. Pytest collects the subclass, not the contract::

    class TestMyReward(RewardContract):
        def make_reward(self) -> Reward:
            return MyReward()
"""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from textenv.types import Reward

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

    def score(self, reward: Reward, rows: slice = slice(None), **extra: list[Any]) -> list[float]:
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
        extra = self.score(reward, unknown_column=[None] * len(COMPLETIONS))
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


class AgentContract:
    """What every agent must do. Subclass it, and name the subclass ``Test...``.

    ``make_env`` returns a vector environment with ``AutoresetMode.DISABLED``, ``make_agent`` an agent in it, and
    ``load_agent`` one that was saved.
    """

    steps: ClassVar[int] = 60

    def make_env(self) -> Any:
        raise NotImplementedError

    def make_agent(self, env: Any) -> Any:
        raise NotImplementedError

    def load_agent(self, folder: Path, env: Any) -> Any:
        raise NotImplementedError

    def test_learn_takes_at_least_its_steps_and_returns_the_agent(self) -> None:
        env = self.make_env()
        agent = self.make_agent(env)
        assert agent.learn(self.steps) is agent
        assert agent.steps >= self.steps

    def test_learning_twice_from_one_seed_gives_the_same_actions(self) -> None:
        actions = []
        for _ in range(2):
            env = self.make_env()
            agent = self.make_agent(env).learn(self.steps)
            obs, _ = env.reset(seed=5)
            actions.append(agent.predict(obs))
        assert np.array_equal(actions[0], actions[1])

    def test_predict_returns_actions_of_the_space_batched_and_single(self) -> None:
        env = self.make_env()
        agent = self.make_agent(env)
        obs, _ = env.reset(seed=1)
        batch = agent.predict(obs)
        assert env.action_space.contains(np.asarray(batch))
        single = agent.predict({name: values[0] for name, values in obs.items()})
        assert env.single_action_space.contains(np.int64(single))
        assert int(single) == int(batch[0])

    def test_predict_is_repeatable_and_can_explore(self) -> None:
        env = self.make_env()
        agent = self.make_agent(env)
        obs, _ = env.reset(seed=1)
        assert np.array_equal(agent.predict(obs), agent.predict(obs))
        drawn = {tuple(agent.predict(obs, deterministic=False)) for _ in range(20)}
        assert len(drawn) > 1

    def test_saved_and_loaded_it_acts_alike(self, tmp_path: Path) -> None:
        env = self.make_env()
        agent = self.make_agent(env).learn(self.steps)
        agent.save(tmp_path / "agent")
        files = [path.suffix for path in (tmp_path / "agent").rglob("*") if path.is_file()]
        assert set(files) <= {".json", ".safetensors", ".txt", ".jinja", ".model"}  # nothing that is unpickled
        again = self.load_agent(tmp_path / "agent", self.make_env())
        obs, _ = env.reset(seed=2)
        assert np.array_equal(agent.predict(obs), again.predict(obs))

    def test_learning_goes_on_after_loading(self, tmp_path: Path) -> None:
        agent = self.make_agent(self.make_env()).learn(self.steps)
        agent.save(tmp_path / "agent")
        again = self.load_agent(tmp_path / "agent", self.make_env())
        assert again.learn(agent.steps + self.steps).steps >= agent.steps + self.steps
