"""Importance weights against sums over all sequences, and agents whose rollouts are rounded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.agents.test_agents import make
from textenv.agents import config_of, find, losses, precisions
from textenv.agents.ppo import PPO, PPOConfig
from textenv.analysis.exact import Outcome
from textenv.compare.plan import Budget, ComparedTask
from textenv.compare.runs import Evaluator
from textenv.models import probe
from textenv.models.causal_lm import CausalLM
from textenv.types import TextEnvError

SEQUENCES = list(itertools.product(range(3), repeat=2))
WEIGHTED = ["a2c", "reinforce", "rloo"]
CLIPPED = ["grpo", "mac", "nlpo", "ppo"]
UNWEIGHTED = ["expert_iteration", "online_dpo", "soft_q"]


def log_probs_of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return log pi of both tokens of every sequence, ``(9, 2)``, given logits ``(3,)`` and ``(3, 3)``."""
    one, two = torch.log_softmax(first, dim=-1), torch.log_softmax(second, dim=-1)
    return torch.stack([torch.stack([one[a], two[a, b]]) for a, b in SEQUENCES])


@pytest.fixture
def policies() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a policy, its log-probabilities, those of its rounded copy, and a return for each sequence."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((3,), (3, 3))]
    for each in logits:
        each.requires_grad_()
    drawn = log_probs_of(*(torch.round(each.detach() * 2) / 2 for each in logits))
    returns = torch.randn(9, dtype=torch.float64, generator=generator) + 2
    return logits, log_probs_of(*logits), drawn, returns


def gradient(loss: torch.Tensor, logits: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, logits, retain_graph=True)])


def test_weighted_sequences_have_the_exact_gradient_and_unweighted_ones_have_not(policies: Any) -> None:
    logits, now, drawn, returns = policies
    exact = gradient((now.sum(dim=1).exp() * returns).sum(), logits)
    chance, mine, theirs = drawn.sum(dim=1).exp(), now.sum(dim=1), drawn.sum(dim=1)  # as RLOO sees them
    weighted = gradient(-(chance * losses.policy_gradient_loss(mine, theirs, returns)).sum(), logits)
    torch.testing.assert_close(weighted, exact, rtol=1e-10, atol=1e-12)
    unweighted = gradient(-(chance * losses.policy_gradient_loss(mine, mine.detach(), returns)).sum(), logits)
    assert float((unweighted - exact).norm()) > 0.1 * float(exact.norm())
    assert float(torch.cosine_similarity(unweighted, exact, dim=0)) < 0.99


def test_weighted_tokens_have_the_exact_gradient_at_the_states_that_were_visited(policies: Any) -> None:
    """Kakade and Langford 2002, equation 4.1, on the second token, whose states the first one draws."""
    logits, now, drawn, returns = policies
    visits = drawn[:, 0].exp()
    exact = gradient((visits * now[:, 1].exp() * returns).sum(), logits[1:])
    chance = visits * drawn[:, 1].exp()
    weighted = gradient(-(chance * losses.policy_gradient_loss(now[:, 1], drawn[:, 1], returns)).sum(), logits[1:])
    torch.testing.assert_close(weighted, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cap", [1.0, 1.2, 100.0])
def test_a_truncated_weight_still_counts_as_the_cap(cap: float, policies: Any) -> None:
    logits, now, drawn, returns = policies
    now, drawn = now.sum(dim=1), drawn.sum(dim=1)
    weights = (now.detach() - drawn).exp().clamp(max=cap)
    expected = gradient(-(weights * returns * now).sum(), logits)
    found = losses.policy_gradient_loss(now, drawn, returns, cap)
    torch.testing.assert_close(found, -weights * returns)
    torch.testing.assert_close(gradient(found.sum(), logits), expected)
    share = float(((now - drawn).exp() > cap).double().mean())
    assert float(losses.truncated_share(now, drawn, cap)) == pytest.approx(share)
    assert share > 0 or cap == 100.0
    assert float(losses.truncated_share(now, drawn, None)) == 0.0


def test_the_cap_bounds_what_the_trust_region_leaves_open() -> None:
    old, advantages = torch.tensor([-8.0, -8.0]), torch.tensor([-1.0, 1.0])
    log_probs = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss = losses.clipped_policy_loss(log_probs, old, advantages, 0.2, cap=3.0)
    (slope,) = torch.autograd.grad(loss.sum(), log_probs)
    assert loss.tolist() == pytest.approx([3.0, -1.2])
    assert slope.tolist() == pytest.approx([3.0, 0.0])


def history_of(agent: Any, steps: int = 1) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []
    agent.learn(steps, progress=lambda _, metrics: history.append(dict(metrics)))
    return history


@pytest.mark.parametrize("name", [*WEIGHTED, *CLIPPED, *UNWEIGHTED])
def test_every_agent_says_how_far_off_what_it_drew_is(name: str, tiny_lm: CausalLM) -> None:
    plain = history_of(make(name, tiny_lm, seed=1))[0]
    rounded = history_of(make(name, tiny_lm, seed=1, rollout_precision="int8"))[0]
    assert (plain["rollout/bits"], rounded["rollout/bits"]) == (32, 8)
    assert plain["train/first_log_ratio_max"] < 1e-4
    assert 1e-3 < rounded["train/first_log_ratio"] < rounded["train/first_log_ratio_max"] < 1
    assert 1e-6 < rounded["train/first_approx_kl"] < 0.1
    assert ("train/truncated" in rounded) == (name in WEIGHTED)
    assert ("train/clip_fraction" in rounded) == (name in CLIPPED)


def test_the_cap_is_for_what_a_rounded_policy_has_drawn(tiny_lm: CausalLM) -> None:
    def learned(**settings: Any) -> torch.Tensor:
        agent = make("ppo", tiny_lm, seed=1, learning_rate=0.03, epochs=4, **settings)
        agent.learn(1)
        return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])

    assert torch.equal(learned(importance_cap=1.0), learned(importance_cap=None))
    capped, free = (learned(importance_cap=cap, rollout_precision="int8") for cap in (1.0, None))
    assert not torch.equal(capped, free)


def test_a_weight_that_overflows_is_capped_too() -> None:
    log_probs = torch.tensor([0.0, -1.0], requires_grad=True)
    weights = losses.importance_ratio(log_probs, torch.tensor([-200.0, -1.0]), 2.0)
    (slope,) = torch.autograd.grad(weights.sum(), log_probs)
    assert weights.tolist() == pytest.approx([2.0, 1.0], rel=1e-4)
    assert slope.tolist() == pytest.approx([2.0, 1.0], rel=1e-4)


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_an_agent_that_weighs_nothing_has_no_cap(name: str) -> None:
    with pytest.raises(TextEnvError, match="importance_cap"):
        config_of(find(name), {"importance_cap": 2.0})


@pytest.mark.parametrize("value", [0.5, 0, -1.0, "2", float("nan")])
def test_a_cap_is_at_least_one(value: Any) -> None:
    with pytest.raises(TextEnvError, match="importance_cap"):
        PPOConfig(importance_cap=value)


def test_the_reward_pays_the_kl_of_the_policy_that_drew(tiny_lm: CausalLM) -> None:
    agent = make("ppo", tiny_lm, rollout_precision="int8", env={"kl_mode": "dense"})
    rollout = agent.collect()
    with torch.no_grad(), agent.policy.rounded("int8"):
        rows = np.arange(len(rollout.mask))
        rounded = agent.policy.evaluate(*rollout.tensors(rows, tiny_lm.device, tiny_lm.vocab_size)).log_probs.numpy()
    drawn = rollout.log_probs[rollout.mask]
    assert np.median(np.abs(drawn - rounded)) < 1e-6  # one forward a token and one of all round a few numbers apart
    reference = tiny_lm.token_log_probs(rollout.input_ids, rollout.lengths)
    lines = np.arange(len(rollout.mask))[:, None]
    expected = drawn - reference[lines, np.maximum(rollout.places - 1, 0)][rollout.mask]
    paid = np.concatenate([episode.kl for episode in rollout.finished])
    np.testing.assert_allclose(paid, expected, atol=1e-4)
    assert np.abs(paid).max() > 1e-3  # the reference is not rounded


@pytest.mark.parametrize("settings", [{"rollout_precision": "int8"}, {"rollout_precision": "auto"}])
def test_a_stopped_run_goes_on_bit_for_bit_in_its_own_precision(
    settings: dict[str, Any], tmp_path: Path, tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path | None, tokens: int, fastest: str) -> tuple[list[dict[str, float]], float]:
        monkeypatch.setattr(probe, "fastest_rollout", lambda lm, rows: fastest)
        rows: list[dict[str, float]] = []

        def log(steps: int, metrics: Any) -> bool:
            rows.append({name: value for name, value in metrics.items() if not name.startswith("time/")})
            return steps < tokens

        agent = make("ppo", tiny_lm, seed=2, **settings)
        agent.learn(400, progress=log, checkpoints=folder, checkpoint_every=1)
        return rows, float(sum(p.detach().double().sum() for p in agent.policy.parameters()))

    whole, weights = run(None, 400, "int8")
    first, _ = run(tmp_path, 150, "int8")
    rest, again = run(tmp_path, 400, "float32")  # what is the fastest way has changed
    assert len(first) > 1
    assert first + rest == whole
    assert again == weights
    assert {row["rollout/bits"] for row in whole} == {8.0}


def test_settings_stand_for_what_was_measured(tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = PPO(gym.make("textenv/Text-v0", model=tiny_lm), learning=False).processes
    monkeypatch.setattr(probe, "fastest_rollout", lambda lm, rows: "int8" if rows == 4 else "float32")
    monkeypatch.setattr(probe, "fastest_training", lambda lm: "bfloat16")
    monkeypatch.setattr(precisions, "multiplies_bfloat16", lambda device: True)
    auto = PPOConfig(rollout_precision="auto")
    assert precisions.choose(auto, tiny_lm, 4, alone) == ("bfloat16", "int8")
    assert precisions.choose(auto, tiny_lm, 5, alone) == ("bfloat16", "float32")
    assert precisions.choose(PPOConfig(), tiny_lm, 4, alone) == ("bfloat16", "float32")
    assert precisions.choose(PPOConfig(precision="float32"), tiny_lm, 4, alone) == ("float32", "float32")
    monkeypatch.setattr(precisions, "multiplies_bfloat16", lambda device: False)
    assert precisions.choose(PPOConfig(rollout_precision="bfloat16"), tiny_lm, 4, alone) == ("float32", "bfloat16")


EXACT = {"learning_rate": 5e-3, "embedding_learning_rate": None, "adam_epsilon": 1e-8, "minibatch_size": 64}
OWN: dict[str, dict[str, Any]] = {
    "ppo": {"epochs": 2, "value_learning_rate": 3e-3},
    "rloo": {},
    "grpo": {"normalization": "dr_grpo", "samples": 8, "epochs": 2},
}


def regret(name: str, seed: int, **settings: Any) -> float:
    """Return what an agent misses of the optimum after 16,000 tokens, as a share of what the reference misses."""
    task = ComparedTask("", "textenv/Exact-v0", {"reward": "dense", "vocab_size": 6, "max_new_tokens": 3})
    budget = Budget(total_steps=16_000, seconds=None, evaluations=1, eval_episodes=1, num_envs=64)
    evaluator, agent = Evaluator(task, budget), find(name)
    learner = agent(evaluator.envs, config_of(agent, {**EXACT, **OWN[name], "seed": seed, **settings})).learn(16_000)
    found = evaluator.measure(learner)
    assert evaluator.tree is not None
    return float(evaluator.tree.regret_of(Outcome(found.score, found.kl, found.value)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_rounded_rollouts_reach_the_optimum(name: str) -> None:
    """A regret of 2 % in the mean of five seeds, as without rounding."""
    assert np.mean([regret(name, seed, rollout_precision="int8") for seed in range(5)]) <= 0.02
