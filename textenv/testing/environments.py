"""The contract of a text environment."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.env_checker import check_env as stable_baselines3_check_env

from textenv.types import TextEnvError, Turn

__all__ = ["EnvironmentContract", "Trace"]


@dataclass(slots=True)
class Trace:
    """An episode as the caller of ``reset`` and ``step`` saw it; ``info`` is that of the last step."""

    observations: list[dict[str, Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminations: list[bool] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


class EnvironmentContract:
    """What every text environment must do. Subclass it, and name the subclass ``Test...``.

    ``make_env`` and ``make_vec_env`` make the same environment, from keywords that JSON can hold, so that its spec can
    be written down. A world may answer in it, as long as it truncates no episode.

    Attributes:
        tolerance: Largest difference of a KL, in nats, between two ways to compute it: a batched product of matrices
            differs in its last bits from the products of the rows.
    """

    tolerance: ClassVar[float] = 1e-5

    def make_env(self, **settings: Any) -> gym.Env[Any, Any]:
        """Return a new single environment; ``settings`` come on top of its own."""
        raise NotImplementedError

    def make_vec_env(self, num_envs: int, **settings: Any) -> VectorEnv[Any, Any, Any]:
        """Return the same environment, vectorized."""
        raise NotImplementedError

    @pytest.fixture
    def env(self) -> Iterator[gym.Env[Any, Any]]:
        env = self.make_env()
        yield env
        env.close()

    def actions(self, env: Any, seed: int) -> list[int]:
        """Return more random actions than an episode can take, the same for the same seed."""
        space = getattr(env, "single_action_space", env.action_space)
        observation_space = getattr(env, "single_observation_space", env.observation_space)
        length = observation_space["input_ids"].shape[0] + 1
        return [int(action) for action in np.random.default_rng(seed).integers(space.n, size=length)]

    def play(self, env: gym.Env[Any, Any], seed: int, spoil: bool = False) -> Trace:
        """Play the episode of ``seed`` in a single environment; with ``spoil``, overwrite whatever it returns."""
        obs, info = env.reset(seed=seed)
        trace = Trace([copy.deepcopy(obs)])
        for action in self.actions(env, seed):
            if spoil:
                _overwrite(obs)
                _overwrite(info)
            obs, reward, terminated, truncated, info = env.step(np.int64(action))
            assert not truncated
            trace.observations.append(copy.deepcopy(obs))
            trace.rewards.append(float(reward))
            trace.terminations.append(terminated)
            trace.info = copy.deepcopy(info)
            if terminated:
                return trace
        raise AssertionError("the episode does not end")

    def play_batch(self, num_envs: int, seed: int) -> list[Trace]:
        """Play the episodes of ``seed``, ``seed + 1``, ... side by side."""
        envs = self.make_vec_env(num_envs, autoreset_mode=AutoresetMode.DISABLED)
        actions = np.array([self.actions(envs, seed + row) for row in range(num_envs)])
        obs, _ = envs.reset(seed=seed)
        traces = [Trace([{name: values[row] for name, values in obs.items()}]) for row in range(num_envs)]
        over = np.zeros(num_envs, dtype=bool)
        for column in actions.T:
            obs, rewards, terminations, truncations, infos = envs.step(column)
            assert not truncations.any()
            for row in np.flatnonzero(~over):
                traces[row].observations.append({name: values[row] for name, values in obs.items()})
                traces[row].rewards.append(float(rewards[row]))
                traces[row].terminations.append(bool(terminations[row]))
                if terminations[row]:
                    traces[row].info = {name: infos[name][row] for name in infos if not name.startswith("_")}
            over |= terminations
            if over.all():
                envs.close()
                return traces
        raise AssertionError("the episodes do not end")

    def assert_same(self, one: Trace, other: Trace) -> None:
        """Assert that two traces are equal: what the models compute within the tolerance, all else exactly."""
        assert one.terminations == other.terminations
        for mine, yours in zip(one.observations, other.observations, strict=True):
            assert mine.keys() == yours.keys()
            assert all(np.array_equal(mine[name], yours[name]) for name in mine)
        assert one.rewards == pytest.approx(other.rewards, abs=self.tolerance)
        assert one.info.keys() == other.info.keys()
        for name in ("stop_reason", "prompt", "completion", "completion_ids"):
            assert one.info[name] == other.info[name], name
        for name in ("score", "token_kl", "token_rewards"):
            assert one.info[name] == pytest.approx(other.info[name], abs=self.tolerance), name

    def test_passes_the_checker_of_gymnasium(self, env: gym.Env[Any, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gymnasium_check_env(env.unwrapped, skip_render_check=True)

    def test_passes_the_checker_of_stable_baselines3(self, env: gym.Env[Any, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stable_baselines3_check_env(env)

    def test_a_seed_repeats_the_episode_to_the_last_bit(self, env: gym.Env[Any, Any]) -> None:
        first = self.play(env, 7)
        self.play(env, 8)
        assert _equal(first, self.play(env, 7))
        assert _equal(first, self.play(self.make_env(), 7))

    @pytest.mark.parametrize("num_envs", [1, 2, 5])
    def test_vectorized_it_is_the_same_whatever_the_number_of_rows(self, env: gym.Env[Any, Any], num_envs: int) -> None:
        for row, trace in enumerate(self.play_batch(num_envs, 20)):
            self.assert_same(trace, self.play(env, 20 + row))

    def test_every_action_is_legal(self) -> None:
        rows = 128
        envs = self.make_vec_env(rows)
        vocabulary = int(getattr(envs.single_action_space, "n", 0))
        obs, _ = envs.reset(seed=0)
        padding = int(obs["input_ids"][0, -1])
        tokens = np.unique([*np.linspace(0, vocabulary - 1, 3 * rows).astype(int), padding])  # a large one's sample
        for begin in range(0, len(tokens), rows):
            envs.reset(seed=0)
            obs, rewards, *_ = envs.step(np.resize(tokens[begin:], rows))
            assert np.isfinite(rewards).all()
            assert envs.observation_space.contains(obs)

    def test_returns_nothing_that_is_not_finite(self, env: gym.Env[Any, Any]) -> None:
        for seed in range(5):
            trace = self.play(env, seed)
            assert all(math.isfinite(number) for number in _numbers([trace.observations, trace.rewards, trace.info]))

    def test_what_it_returns_is_the_callers_to_overwrite(self, env: gym.Env[Any, Any]) -> None:
        assert _equal(self.play(env, 3), self.play(env, 3, spoil=True))

    def test_terminates_at_the_end_and_not_before(self, env: gym.Env[Any, Any]) -> None:
        trace = self.play(env, 11)
        assert trace.terminations == [False] * (len(trace.terminations) - 1) + [True]
        turns = trace.info.get("turns", ())
        reasons = ("world", "turns", "context") if turns else ("eos", "stop", "length")
        assert trace.info["stop_reason"] in reasons
        written = [int(obs["attention_mask"].sum()) for obs in trace.observations]
        first = turns[0].tokens if turns else len(written)  # at the end of a turn a world adds to the text
        assert written[:first] == list(range(written[0], written[0] + first))

    def test_step_needs_an_episode(self) -> None:
        env = self.make_env().unwrapped
        with pytest.raises(TextEnvError, match="reset"):
            env.step(np.int64(0))
        self.play(env, 0)
        with pytest.raises(TextEnvError, match="reset"):
            env.step(np.int64(0))
        env.reset()
        env.step(np.int64(0))

    def test_rewards_sum_to_the_score_less_the_kl(self, env: gym.Env[Any, Any]) -> None:
        coef = float(env.get_wrapper_attr("kl_coef"))
        for seed in range(5):
            trace = self.play(env, seed)
            expected = trace.info["score"] - coef * math.fsum(trace.info["token_kl"])
            expected += math.fsum(trace.info.get("token_shaping", ()))
            expected += math.fsum(turn.reward for turn in trace.info.get("turns", ()))
            assert math.fsum(trace.rewards) == pytest.approx(expected, abs=self.tolerance)
            assert math.fsum(trace.info["token_rewards"]) == pytest.approx(expected, abs=self.tolerance)

    def test_its_spec_can_be_written_down_and_makes_it_again(self, env: gym.Env[Any, Any]) -> None:
        assert env.spec is not None
        again = gym.make(type(env.spec).from_json(env.spec.to_json()))
        assert _equal(self.play(env, 5), self.play(again, 5))


def _overwrite(value: Any) -> None:
    """Destroy all that can be changed in place, however deep it lies."""
    if isinstance(value, dict):
        for item in value.values():
            _overwrite(item)
        value.clear()
    elif isinstance(value, np.ndarray):
        value.fill(None if value.dtype == object else 1)
    elif isinstance(value, list):
        value.clear()


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Turn):
        value = (value.tokens, value.reward, value.answer_ids)
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, (int, float, np.number)):
        yield float(value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield from value.ravel().tolist()
    elif not isinstance(value, (str, type(None))):
        for item in value:
            yield from _numbers(item)


def _equal(one: Trace, other: Trace) -> bool:
    """Return whether two traces are equal to the last bit."""
    arrays = zip(one.observations, other.observations, strict=True)
    return all(np.array_equal(mine[name], yours[name]) for mine, yours in arrays for name in mine | yours) and (
        one.rewards,
        one.terminations,
        one.info,
    ) == (other.rewards, other.terminations, other.info)
