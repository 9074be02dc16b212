"""Where policies have acted: what an environment finds of it, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from textenv.agents.guided import Guided, GuidedConfig
from textenv.agents.nlpo import NLPO
from textenv.agents.ppo import PPO, PPOConfig
from textenv.env.vector import TextVectorEnv
from textenv.models import acting
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.rollouts.collect import collect
from textenv.types import TextEnvError

PROMPTS = ["the film", "a plot", "it"]


def zero(completions: Sequence[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def make_envs(lm: CausalLM, rows: int = 4, **settings: Any) -> TextVectorEnv:
    keywords: dict[str, Any] = {"model": lm, "prompts": PROMPTS, "reward": zero, "kl_coef": 1.0, "max_new_tokens": 6}
    return TextVectorEnv(rows, **{**keywords, "autoreset_mode": AutoresetMode.DISABLED, **settings})


def make_single(lm: CausalLM) -> Any:
    return gym.make("textenv/Text-v0", model=lm, prompts=PROMPTS, reward=zero, kl_coef=1.0, max_new_tokens=6)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def policy(make_lm: Callable[..., CausalLM]) -> TextPolicy:
    """A policy other than the reference."""
    return TextPolicy(make_lm(seed=1), value="none")


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("estimator", ["k1", "full"])
def test_unattached_it_is_paid_as_attached(
    tiny_lm: CausalLM, policy: TextPolicy, mode: AutoresetMode, estimator: str
) -> None:
    paid: list[list[Any]] = []
    for attach in (True, False):
        envs = make_envs(tiny_lm, autoreset_mode=mode, kl_estimator=estimator)
        if attach:
            envs.attach_policy(policy)
        generator = draws()
        obs, _ = envs.reset(seed=0)
        paid.append([])
        for _ in range(12):
            actions, _ = policy.act(obs, generator=generator)
            obs, rewards, *_ = envs.step(actions)
            paid[-1].append(rewards)
    assert np.abs(paid[0]).max() > 0.1
    np.testing.assert_allclose(paid[0], paid[1], atol=1e-5)


def test_single_environments_in_gymnasiums_vector_find_their_rows(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    envs = SyncVectorEnv([lambda: make_single(tiny_lm)] * 4)
    obs, _ = envs.reset(seed=0)
    seen = 0
    for seed in range(8):
        actions, _ = policy.act(obs, generator=draws(seed))
        expected = policy.action_log_prob(actions)
        obs, _, _, _, infos = envs.step(actions)
        if "logprob" in infos:  # not where rows only begin anew
            known = infos["_logprob"]
            seen += int(known.sum())
            np.testing.assert_array_equal(infos["logprob"][known], expected[known])
    assert seen > 10


def test_actions_of_others_are_deterministic(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    envs = make_envs(tiny_lm)
    obs, _ = envs.reset(seed=0)
    actions, _ = policy.act(obs, generator=draws())
    expected = policy.action_log_prob(actions)
    mixed = np.where(np.arange(4) < 2, actions, (actions + 1) % 300)
    _, _, _, _, infos = envs.step(mixed)
    np.testing.assert_array_equal(infos["logprob"], np.where(np.arange(4) < 2, expected, 0.0))


def test_an_act_is_not_used_twice_by_an_environment_but_by_a_copy(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    envs, other = make_envs(tiny_lm), make_envs(tiny_lm)
    obs, _ = envs.reset(seed=0)
    other.reset(seed=0)
    actions, _ = policy.act(obs, generator=draws())
    for each, known in ((envs, True), (other, True), (envs, False)):
        _, _, _, _, infos = each.step(actions)
        assert (infos["logprob"] < 0).tolist() == [known] * 4
        envs.reset(seed=0)


def test_after_collecting_nobody_is_attached(tiny_lm: CausalLM) -> None:
    """Actions of others are not paid by log pi of where the agent has been, and an attached policy comes back."""
    envs = make_envs(tiny_lm)
    agent = PPO(envs, PPOConfig(minibatch_size=None)).learn(10)
    envs.reset(seed=0)
    _, _, _, _, infos = envs.step(np.full(4, 70))
    assert infos["logprob"].tolist() == [0.0] * 4

    class Own:
        def action_log_prob(self, actions: Any) -> Any:
            return np.full(len(actions), -0.5)

    envs.attach_policy(Own())
    rollout = collect(envs, agent.policy, draws())
    assert (rollout.log_probs[rollout.mask] != -0.5).all()
    envs.reset(seed=0)
    _, _, _, _, infos = envs.step(np.full(4, 70))
    assert infos["logprob"].tolist() == [-0.5] * 4


def test_an_attached_policy_is_refused_where_it_has_not_acted(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    envs = make_envs(tiny_lm)
    envs.attach_policy(policy)
    obs, _ = envs.reset(seed=0)
    with pytest.raises(TextEnvError, match="TextPolicy, has not acted last on the environment's present state"):
        envs.step(np.full(4, 70))
    actions, _ = policy.act(obs)
    policy.act({name: values[::-1] for name, values in obs.items()})
    with pytest.raises(TextEnvError, match="present state"):
        envs.step(actions)
    policy.act(obs, rows=np.array([0, 1, 2]))
    with pytest.raises(TextEnvError, match="present state"):
        envs.step(actions)
    policy.act(obs, rows=np.array([3, 1, 2, 0]))
    envs.step(np.full(4, 70))  # at the present state log pi of any action is known
    with pytest.raises(TextEnvError, match="present state"):
        envs.step(actions)


def test_masks_and_temperatures_have_to_be_the_same(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    envs = make_envs(tiny_lm, top_k=5)
    obs, infos = envs.reset(seed=0)
    actions, _ = policy.act(obs)
    with pytest.raises(TextEnvError, match="drew from all of them"):
        envs.step(actions)
    actions, _ = policy.act(obs, masks=infos["action_mask"].astype(bool))
    assert (envs.step(actions)[4]["logprob"] < 0).all()
    envs = make_envs(tiny_lm, temperature=0.5)
    obs, _ = envs.reset(seed=0)
    with pytest.raises(TextEnvError, match=r"temperature=1\.0, the environment 0\.5"):
        envs.step(policy.act(obs)[0])


def test_whole_distributions_are_kept_of_the_last_act_alone(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    envs = make_envs(tiny_lm, kl_estimator="full")
    obs, _ = envs.reset(seed=0)
    actions, _ = policy.act(obs)
    policy.act({name: values[:1] for name, values in obs.items()}, generator=draws(3))
    with pytest.raises(TextEnvError, match="acted elsewhere since"):
        envs.step(actions)


@pytest.mark.parametrize("agent_of", [
    lambda envs: PPO(envs, PPOConfig(minibatch_size=None)),
    NLPO,
    lambda envs: Guided(envs, GuidedConfig(candidates=3)).learn(1),
], ids=["ppo", "nlpo", "guided"])  # fmt: skip
def test_predict_in_a_loop_pays_what_sample_does(tiny_lm: CausalLM, agent_of: Any) -> None:
    envs = make_envs(tiny_lm)
    agent: Any = agent_of(envs)
    prompts = ["the film", "a plot", "it", "it"]
    sampled = agent.sample(envs, prompts)
    obs, _ = envs.reset(options={"prompt": prompts})
    over = np.zeros(4, dtype=bool)
    while not over.all():
        obs, _, terminations, _, _ = envs.step(agent.predict(obs))
        over |= terminations
    for one, other in zip(sampled, envs.last_episodes, strict=True):
        assert other is not None
        assert one.completion_ids == other.completion_ids
        assert one.kl == pytest.approx(other.kl, abs=1e-5)


def test_an_environment_that_does_not_see_the_acts_is_refused(tiny_lm: CausalLM) -> None:
    """One in another thread, as one in another process."""
    envs = make_envs(tiny_lm)
    agent = PPO(envs, PPOConfig(minibatch_size=None))
    obs, _ = envs.reset(seed=0)
    found: list[Any] = []
    actions = agent.predict(obs, deterministic=False)
    thread = threading.Thread(target=lambda: found.append(envs.step(actions)))
    thread.start()
    thread.join()
    with pytest.raises(TextEnvError, match="another process or thread"):
        agent.predict(found[0][0])
    agent.policy.act(found[0][0])  # where nobody is paid


def test_records_are_few(tiny_lm: CausalLM, policy: TextPolicy) -> None:
    obs, _ = make_envs(tiny_lm).reset(seed=0)
    for seed in range(40):
        policy.act(obs, generator=draws(seed))
    assert len(acting._kept.acts) == 16
    act = policy.acted
    assert act is not None
    assert act.read(np.arange(4), *observation_arrays(obs))
    wider = {name: np.pad(values, [(0, 0), (0, 3)]) for name, values in obs.items()}
    assert act.read(np.array([1, 0]), *(array[[1, 0]] for array in observation_arrays(wider)))
    assert not act.read(np.array([0, 1]), *(array[[1, 0]] for array in observation_arrays(wider)))
    assert not act.read(np.array([4]), *(array[:1] for array in observation_arrays(obs)))
    assert act.places(*observation_arrays(wider), act.tokens).tolist() == [0, 1, 2, 3]
