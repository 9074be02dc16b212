"""The contract of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

__all__ = ["AgentContract"]


class AgentContract:
    """What every agent must do. Subclass it, and name the subclass ``Test...``.

    Attributes:
        steps: Tokens to learn from.
        learns: Whether there is anything to learn: a run that was stopped goes on from its checkpoint then, and the
            ratio of new to old policy is 1 before the first update.
        masked: Whether it draws from fewer tokens than the environment allows, so that its KL does not start at 0.
    """

    steps: ClassVar[int] = 60
    learns: bool = True
    masked: bool = False

    def make_env(self) -> Any:
        """Return a new vector environment with ``AutoresetMode.DISABLED``."""
        raise NotImplementedError

    def make_agent(self, env: Any) -> Any:
        """Return a new agent in an environment, seeded."""
        raise NotImplementedError

    def load_agent(self, folder: Path, env: Any) -> Any:
        """Return an agent that was saved in a folder."""
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

    def test_a_run_that_was_stopped_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        if not self.learns:
            pytest.skip("there is nothing to go on with")

        class StopError(Exception):
            pass

        def run(folder: Path | None, stop: int | None = None) -> list[dict[str, float]]:
            rows: list[dict[str, float]] = []

            def log(steps: int, metrics: Mapping[str, float]) -> None:
                rows.append({"step": steps, **{k: v for k, v in metrics.items() if not k.startswith("time/")}})
                if len(rows) == stop:
                    raise StopError

            try:
                agent = self.make_agent(self.make_env())
                agent.learn(6 * self.steps, progress=log, checkpoints=folder, checkpoint_every=2)
            except StopError:
                return rows[:4]
            tensors = [p.detach().double().sum() for p in agent.policy.parameters()]
            return [*rows, {"weights": float(sum(tensors))}]

        assert len(whole := run(None)) > 6
        first = run(tmp_path, stop=5)  # the last checkpoint was after the fourth iteration
        assert first + run(tmp_path) == whole

    def test_the_first_ratio_is_one_and_the_first_kl_zero(self) -> None:
        history: list[Mapping[str, float]] = []
        self.make_agent(self.make_env()).learn(1, progress=lambda steps, metrics: history.append(metrics))
        if self.learns:
            assert history[0]["train/first_ratio"] == pytest.approx(1.0, abs=1e-4)
            assert self.masked or history[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)

    def test_learning_goes_on_after_loading(self, tmp_path: Path) -> None:
        agent = self.make_agent(self.make_env()).learn(self.steps)
        agent.save(tmp_path / "agent")
        again = self.load_agent(tmp_path / "agent", self.make_env())
        assert again.learn(agent.steps + self.steps).steps >= agent.steps + self.steps
