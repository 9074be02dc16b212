"""More episodes than rows: rows begin anew as they finish, and every episode is taken down as if it had a row alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from textenv.agents.nlpo import NLPO, NLPOConfig
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.rloo import RLOO, RLOOConfig
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.rewards.clip import Clip
from textenv.rollouts import runtime
from textenv.rollouts.collect import Rollout, collect, sample_episodes, text_env
from textenv.types import TextEnvError

PROMPTS = ["the film", "a plot", "it", "one more of them"]


def count_e(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(text.count("e")) / 4 for text in completions]


def make_envs(lm: CausalLM, num_envs: int, **settings: Any) -> Any:
    keywords: dict[str, Any] = {"model": lm, "prompts": PROMPTS, "reward": count_e, "max_new_tokens": 9}
    keywords |= {"kl_coef": 0.1, "stop": ["a", "o", "t"], **settings}  # so that texts are of many lengths
    return gym.make_vec("textenv/Text-v0", num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **keywords)


def changed(lm: CausalLM) -> TextPolicy:
    """A policy other than the reference, with values other than 0."""
    policy = TextPolicy(lm)
    assert policy.value_head is not None
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            noise = np.random.default_rng(number).normal(size=tuple(parameter.shape))
            parameter.add_(torch.from_numpy(noise).to(parameter), alpha=0.1)
    return policy


def write(lm: CausalLM, rows: int, episodes: int | None = None, **settings: Any) -> tuple[Any, TextPolicy, Rollout]:
    envs, policy = make_envs(lm, rows, **settings), changed(lm)
    return envs, policy, collect(envs, policy, torch.Generator().manual_seed(0), episodes=episodes, seed=0)


@pytest.mark.parametrize("settings", [{"kl_mode": "dense"}, {"kl_mode": "lump"}, {"top_k": 7}], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_episode_is_whole(tiny_lm: CausalLM, rows: int, settings: dict[str, Any]) -> None:
    envs, policy, rollout = write(tiny_lm, rows, 21, **settings)
    assert len({*(rollout.lengths - rollout.starts)}) > 2  # or else no row would begin before the others
    assert rollout.lengths.shape == (21,)
    assert len(rollout.finished) == 21
    with torch.no_grad():
        tensors = rollout.tensors(np.arange(21), policy.lm.device, policy.lm.vocab_size)
        found = policy.evaluate(*tensors)
    if tensors[3] is not None:
        assert (tensors[3].sum(dim=1) == 7).all()  # those of the row itself, not of one that begins anew beside it
    np.testing.assert_allclose(rollout.log_probs[rollout.mask], found.log_probs, atol=1e-4)
    np.testing.assert_allclose(rollout.values[rollout.mask], found.values, atol=1e-4)
    for row, episode in enumerate(rollout.finished):
        ids = (*episode.prompt_ids, *episode.completion_ids)
        assert tuple(rollout.input_ids[row, : rollout.lengths[row]]) == ids
        assert (rollout.input_ids[row, rollout.lengths[row] :] == policy.lm.pad_id).all()
        assert rollout.starts[row] == len(episode.prompt_ids)
        assert rollout.mask[row].tolist() == [
            place < len(episode.completion_ids) for place in range(rollout.mask.shape[1])
        ]
        earned = episode.score - text_env(envs).kl_coef * math.fsum(episode.kl)
        assert float(rollout.rewards[row].sum()) == pytest.approx(earned, abs=1e-5)
        assert not rollout.rewards[row][~rollout.mask[row]].any()


def test_an_episode_a_row_needs_no_more_than_that(tiny_lm: CausalLM) -> None:
    one, other = (write(tiny_lm, 6, episodes)[2] for episodes in (None, 6))
    assert one.episodes == other.episodes
    np.testing.assert_array_equal(one.log_probs, other.log_probs)


def test_each_prompt_has_its_episode_in_its_place(tiny_lm: CausalLM) -> None:
    prompts = [PROMPTS[place % 4] for place in range(23)]
    envs = make_envs(tiny_lm, 5)
    for asked in (prompts, prompts[:5], prompts[:2], []):
        episodes = sample_episodes(envs, changed(tiny_lm), torch.Generator().manual_seed(1), asked)
        assert [episode.prompt for episode in episodes] == asked


def test_all_episodes_of_a_rollout_pay_the_same_for_the_kl(tiny_lm: CausalLM) -> None:
    envs, _, rollout = write(tiny_lm, 3, 24, kl_target=0.01, kl_horizon=50)
    assert text_env(envs).kl_coef > 0.105  # it has moved, for the next
    assert rollout.kl_coef == 0.1
    for row, episode in enumerate(rollout.finished):
        earned = episode.score - 0.1 * math.fsum(episode.kl)
        assert float(rollout.rewards[row].sum()) == pytest.approx(earned, abs=1e-5)


def test_an_outer_time_limit_cuts_each_of_them(tiny_lm: CausalLM) -> None:
    env = gym.make("textenv/Text-v0", model=tiny_lm, prompts=PROMPTS, reward=count_e, max_new_tokens=50)
    agent = PPO(gym.wrappers.TimeLimit(env, 2), PPOConfig(episodes=6))
    assert agent.policy.value_head is not None
    torch.nn.init.constant_(agent.policy.value_head.bias, 2.0)
    rollout = agent.collect()
    assert rollout.mask.shape == (6, 2)
    for row, episode in enumerate(rollout.episodes):
        assert rollout.bootstrap[row] == pytest.approx(2.0 if episode is None else 0.0)
    assert rollout.episodes.count(None) >= 3
    agent.update(rollout)


def test_groups_stay_together(tiny_lm: CausalLM) -> None:
    agent = RLOO(make_envs(tiny_lm, 4), RLOOConfig(samples=3, episodes=12))
    for _ in range(3):
        prompts = [episode.prompt for episode in agent.collect().finished]
        assert all(len({*group}) == 1 for group in zip(prompts[::3], prompts[1::3], prompts[2::3], strict=True))
    assert agent.learn(100).steps >= 100


def test_an_agent_with_masks_of_its_own(tiny_lm: CausalLM) -> None:
    agent = NLPO(make_envs(tiny_lm, 4), NLPOConfig(episodes=10))
    rollout = agent.collect()
    assert rollout.action_masks is not None
    assert agent.update(rollout)["train/first_ratio"] == pytest.approx(1.0, abs=1e-4)


def test_too_few_episodes_are_refused(tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match="episodes=3, with 4 rows: expected at least one for each"):
        PPO(make_envs(tiny_lm, 4), PPOConfig(episodes=3))
    with pytest.raises(TextEnvError, match="episodes=3: expected at least 4"):
        write(tiny_lm, 4, 3)
    with pytest.raises(TextEnvError, match="samples=3 completions of a prompt, with episodes=8: expected a multiple"):
        RLOO(make_envs(tiny_lm, 6), RLOOConfig(samples=3, episodes=8))


class Watched(gym.vector.VectorWrapper):
    """A wrapper that changes nothing, and notes what was paid."""

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        self.paid: list[float] = []

    def step(self, actions: Any) -> Any:
        obs, rewards, *rest = self.env.step(actions)
        self.paid.append(float(rewards.sum()))
        return obs, rewards, *rest


@pytest.mark.parametrize("settings", [{"kl_estimator": "k3"}, {"missing_eos_penalty": 0.5}], ids=str)
@pytest.mark.parametrize("rows", [3, 8])
@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_episodes_that_are_paid_later_are_paid_the_same(
    tiny_lm: CausalLM, rows: int, settings: dict[str, Any], mode: str
) -> None:
    calls: list[int] = []

    def counted(completions: Sequence[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return count_e(completions, **columns)

    found = []
    for wrap in (Watched, lambda envs: envs):
        envs = wrap(make_envs(tiny_lm, rows, kl_mode=mode, kl_target=0.01, kl_horizon=50, reward=counted, **settings))
        calls.clear()
        rollout = collect(envs, changed(tiny_lm), torch.Generator().manual_seed(0), episodes=23, seed=0)
        found.append((rollout, text_env(envs).kl_coef, list(calls)))
    (at_once, coef, often), (later, same_coef, seldom) = found
    np.testing.assert_array_equal(later.input_ids, at_once.input_ids)
    np.testing.assert_allclose(later.rewards, at_once.rewards, atol=1e-5, rtol=1e-5)
    assert same_coef == pytest.approx(coef) != pytest.approx(0.1)
    for one, other in zip(later.finished, at_once.finished, strict=True):
        assert (one.prompt, one.completion, one.stop_reason) == (other.prompt, other.completion, other.stop_reason)
        assert one.completion_ids == other.completion_ids
        assert one.score == pytest.approx(other.score)
        assert one.kl == pytest.approx(other.kl, abs=1e-4, rel=1e-5)
    assert sum(seldom) == sum(often) == 23
    assert len(seldom) == math.ceil(23 / rows) < len(often)


def test_a_wrapper_sees_what_is_paid(tiny_lm: CausalLM) -> None:
    envs = Watched(make_envs(tiny_lm, 4, kl_mode="lump"))
    rollout = collect(envs, changed(tiny_lm), torch.Generator().manual_seed(0), episodes=9, seed=0)
    assert sum(envs.paid) == pytest.approx(float(rollout.rewards.sum()), abs=1e-4)
    assert any(abs(paid) > 1e-3 for paid in envs.paid)


def test_paying_later_is_for_those_who_wait_for_the_end(tiny_lm: CausalLM) -> None:
    settings: dict[str, Any]
    for settings in ({"top_k": 3}, {"kl_estimator": "full"}):
        base = text_env(make_envs(tiny_lm, 2, kl_mode="lump", **settings))
        assert not base.can_pay_later
        with pytest.raises(TextEnvError, match="paid later only with autoreset_mode"), base.paying_later():
            pass
    base = text_env(make_envs(tiny_lm, 2, stop=[], max_new_tokens=1))
    with base.paying_later() as settle:
        base.reset(seed=0)
        assert settle() == []
        _, rewards, terminations, *_ = base.step(np.array([5, 6]))
        assert (rewards.tolist(), terminations.tolist(), base.last_episodes) == ([0, 0], [True, True], (None, None))
        assert [episode.completion_ids for episode in settle()] == [(5,), (6,)]
        assert settle() == []
    base.reset(seed=0)
    assert base.step(np.array([5, 6]))[1].all()  # at once again


@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_a_rollout_leaves_no_copies_in_memory(tiny_lm: CausalLM, mode: str) -> None:
    envs, policy, _ = write(tiny_lm, 3, kl_mode=mode)
    for lm in (policy.lm, text_env(envs).reference):
        assert lm._network is not None
        assert lm._network._packed is None
        assert not getattr(lm._cache._keys_values, "buffers", None)


@pytest.mark.parametrize(("least", "times"), [(1, 3), (2**40, 0)])
def test_a_large_model_returns_memory_between_phases(
    tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch, least: int, times: int
) -> None:
    calls = mock.Mock(side_effect=runtime.return_memory)
    monkeypatch.setattr("textenv.rollouts.collect._LARGE", least)
    monkeypatch.setattr("textenv.rollouts.collect.return_memory", calls)
    write(tiny_lm, 3)
    assert calls.call_count == times


class Lengths(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.25), requires_grad=False)

    def forward(self, completions: Sequence[str], **_: Any) -> torch.Tensor:
        return self.scale * torch.tensor([float(len(text)) for text in completions])


@pytest.mark.parametrize("wrap", [lambda reward: reward, lambda reward: Clip(reward, low=0.0, high=9.0)])
def test_a_run_whose_reward_is_a_module_is_resumed(tiny_lm: CausalLM, tmp_path: Path, wrap: Any) -> None:
    def agent() -> PPO:
        return PPO(make_envs(tiny_lm, 3, reward=wrap(Lengths())), PPOConfig(minibatch_size=None))

    steps = agent().learn(20, checkpoints=tmp_path, checkpoint_every=1).steps
    resumed = agent()
    assert resumed.resume(tmp_path, 20)
    assert resumed.steps == steps >= 20
