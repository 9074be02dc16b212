"""What unfinished texts are worth: the critic of returns, soft values, and what is steered by them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.agents.test_ppo import PROMPTS, make_envs
from textenv.agents.best_of_n import BestOfN, BestOfNConfig
from textenv.agents.critic import Critic, score_next, score_prefixes
from textenv.agents.guided import Guided, GuidedConfig
from textenv.agents.mac import MAC, MACConfig
from textenv.agents.soft_values import Choices, SoftValues
from textenv.analysis.exact import Tree
from textenv.models.causal_lm import CausalLM
from textenv.rewards.normalize import Normalize
from textenv.rollouts.collect import text_env
from textenv.rollouts.distributed import Processes
from textenv.types import TextEnvError


def paying(returns: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Any:
    """Return as much of a rollout as a critic reads, in which ``returns`` are earned from each token on."""
    later = np.concatenate([returns[:, 1:] * mask[:, 1:], np.zeros((len(returns), 1))], axis=1)
    return SimpleNamespace(rewards=np.where(mask, returns - later, 0.0), mask=mask)


def test_it_finds_returns_that_are_a_function_of_score_and_length() -> None:
    rng = np.random.default_rng(0)
    scores, written = rng.uniform(-1, 1, (800, 5)), np.arange(5)[None, :]
    mask = written < rng.integers(1, 6, (800, 1))
    truth = np.abs(scores) * (1 + written) + 0.3 * written
    noise = rng.normal(0, 0.3, truth.shape)
    critic = Critic(800, 5)
    critic.add(scores, paying(truth + noise, mask))
    inside = mask & (np.abs(scores) < 0.95)
    assert np.abs(critic.predict(scores, written) - truth)[inside].mean() < 0.06  # of noise alone it would be 0.24
    assert critic.predict(scores[:, 0], np.array(5)) == pytest.approx(scores[:, 0])  # there is nothing more to come


def test_it_keeps_the_latest_episodes_and_takes_scores_at_their_word_where_it_knows_nothing() -> None:
    critic = Critic(4, 3)
    for returns in (5.0, 1.0):
        critic.add(np.zeros((4, 3)), paying(np.full((4, 3), returns), np.ones((4, 3), dtype=bool)))
    found = critic.predict(np.zeros(3), np.arange(3))
    assert (found > 0.7).all()  # shrunk a little towards 0, the score
    assert (found < 1.0).all()


def test_soft_values_are_those_of_a_walk_that_can_be_solved() -> None:
    """Three tokens add to the score, one of them doubles what the next one adds; the end pays the score."""
    budget, beta, prior, steps = 4, 0.3, np.log([0.5, 0.3, 0.2]), np.array([-0.2, 0.0, 0.5])
    doubles = 1

    def value(score: float, written: int, last: int) -> float:
        if written == budget:
            return score
        ahead = [value(score + (1 + (last == doubles)) * steps[a], written + 1, a) for a in range(3)]
        return float(beta * np.log(np.exp(prior + np.array(ahead) / beta).sum()))

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(2000):
        score, last = 0.0, 0
        for written in range(budget):
            added = score + (1 + (written > 0 and last == doubles)) * steps
            rows.append((written, score, last, np.arange(3), prior, added, np.full(3, written + 1 == budget)))
            last = int(rng.integers(3))
            score = added[last]
    states = Choices(*(np.array(column) for column in zip(*rows, strict=True)))
    values = SoftValues(budget, np.eye(3) * 100)
    assert not values.fitted
    values.fit(states, beta)
    truth = [value(score, written, last) for written, score, last, *_ in rows]
    found = values.values_of(states.scores, states.written) + np.where(
        states.written > 0, values.token_values[states.last], 0
    )
    error = np.abs(found - truth)
    assert error.mean() < 0.02
    assert error.max() < 0.1
    assert np.std(truth) > 0.4
    assert values.token_values[doubles] - values.token_values[0] > 0.05
    q = values.q(states)
    last_step = states.written == budget - 1
    np.testing.assert_allclose(q[last_step, :3], states.next_scores[last_step])  # what is over is paid
    assert q.shape == (len(rows), 4)

    again = SoftValues(budget, np.eye(3) * 100)
    again.restore(values.arrays())
    assert (again.q(states) == q).all()
    with pytest.raises(TextEnvError, match=r"up to 4 tokens out of 3, this environment has max_new_tokens=5 and 3"):
        SoftValues(5, np.eye(3)).restore(values.arrays())


def test_candidates_are_scored_as_the_environment_would(tiny_lm: CausalLM) -> None:
    envs = make_envs(
        tiny_lm,
        2,
        max_new_tokens=3,
        stop=["b"],
        missing_eos_penalty=5.0,
        reward=lambda **k: [1.0] * len(k["completions"]),
    )
    base = text_env(envs)
    letter = {name: base.reference.encode(name)[-1] for name in "ab"}
    end = base.reference.eos_ids[0]
    texts = [(), (letter["a"],), (letter["a"], end), (letter["b"],), (letter["a"],) * 3, (letter["a"],) * 2 + (end,)]
    scores, over = score_next(base, [base.prompts[0]] * len(texts), texts)
    assert over.tolist() == [False, False, True, True, True, True]
    assert scores.tolist() == [1.0, 1.0, 1.0, 1.0, -4.0, 1.0]  # one that goes on is not blamed for it
    tokens = np.array([[[letter["a"], end], [letter["b"], letter["a"]]]])
    scores, over = score_prefixes(base, [(base.prompts[0], (letter["a"], letter["a"]))], tokens)
    assert over.tolist() == [[[False, True], [True, False]]]
    assert scores.shape == (1, 2, 2)


def test_guided_tilts_the_reference_by_what_every_token_is_worth(tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, 4, kl_coef=0.3, kl_mode="dense")
    base, vocab = text_env(envs), tiny_lm.vocab_size
    agent = Guided(envs, GuidedConfig(candidates=vocab)).learn(100)
    agent.policy.forget()
    obs, _ = envs.reset(seed=3)
    for written in range(2):
        actions, _ = agent.policy.act(obs, generator=torch.Generator().manual_seed(written))
        ids, lengths = obs["input_ids"], obs["attention_mask"].sum(axis=1)
        reference = torch.log_softmax(tiny_lm.next_token_logits(ids, lengths), dim=-1).double().numpy()
        for row in range(4):
            state = tuple(ids[row, : lengths[row]].tolist())
            begun = state[len(state) - written :]
            prompt = base.prompt_of(state[: len(state) - written])
            texts = [(*begun, token) for token in range(vocab)]
            scores, over = score_next(base, [prompt] * vocab, texts)
            going_on = agent.values.values_of(scores, written + 1) + agent.values.token_values
            q = np.where(over, scores, going_on)
            wanted = reference[row] + q / 0.3
            wanted -= np.log(np.exp(wanted - wanted.max()).sum()) + wanted.max()
            np.testing.assert_allclose(agent.policy.action_log_probs()[row], wanted, atol=1e-4)
        obs, _, over_, _, _ = envs.step(actions)
        if over_.any():
            break


def test_guided_reaches_the_optimum_without_learning_weights() -> None:
    envs = gym.make_vec(
        "textenv/Exact-v0", num_envs=128, reward="dense", vocab_size=6, max_new_tokens=3, kl_mode="dense",
        autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip
    tree, beta = Tree.of(envs), text_env(envs).kl_coef
    agent = Guided(envs, GuidedConfig(seed=1))

    def regret() -> float:
        prompts = [prompt for prompt in text_env(envs).prompts for _ in range(1024)]
        episodes = agent.sample(envs, prompts, generator=torch.Generator().manual_seed(0))
        value = float(np.mean([each.score - beta * sum(each.kl) for each in episodes]))
        return (tree.optimum.value - value) / (tree.optimum.value - tree.reference.value)

    assert regret() == pytest.approx(1.0, abs=0.1)  # as the reference
    agent.learn(1200)
    assert regret() < 0.02


@pytest.mark.parametrize("agent", [MAC, Guided])
def test_a_reward_that_keeps_statistics_is_refused(agent: Any, tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match="leave the normalization out"):
        agent(make_envs(tiny_lm, reward=Normalize(lambda **k: [float(len(c)) for c in k["completions"]])))


def test_guided_needs_a_kl_penalty_and_one_process(tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match="kl_coef=0"):
        Guided(make_envs(tiny_lm, kl_coef=0.0))
    with pytest.raises(TextEnvError, match="start one"):
        Guided(make_envs(tiny_lm), processes=Processes(size=2))


def test_guided_samples_in_another_environment_and_pays_for_its_divergence(tiny_lm: CausalLM) -> None:
    agent = Guided(make_envs(tiny_lm, 8, kl_coef=0.05)).learn(300)
    episodes = agent.sample(
        make_envs(tiny_lm, 3, kl_coef=0.05), PROMPTS * 20, generator=torch.Generator().manual_seed(0)
    )
    assert [episode.prompt for episode in episodes] == PROMPTS * 20
    plain = Guided(make_envs(tiny_lm, 8, kl_coef=0.05))
    before = plain.sample(plain.envs, PROMPTS * 20, generator=torch.Generator().manual_seed(0))
    assert np.mean([e.score for e in episodes]) > np.mean([e.score for e in before]) + 0.1
    assert np.mean([sum(e.kl) for e in episodes]) > 0.1
    assert np.abs([sum(e.kl) for e in before]).max() < 1e-4


# -- process rewards -----------------------------------------------------------------------------------------------


def of_tokens(completion_ids: Any, **_: Any) -> list[list[float]]:
    return [[token % 5 / 4 for token in ids] for ids in completion_ids]


def of_texts(completion_ids: Any, **_: Any) -> list[float]:
    return [sum(token % 5 / 4 for token in ids) for ids in completion_ids]


@pytest.mark.parametrize(
    ("agent", "config"),
    [(MAC, MACConfig(candidates=8)), (Guided, GuidedConfig(candidates=8)), (BestOfN, BestOfNConfig(samples=4))],
    ids=["mac", "guided", "best_of_n"],
)
def test_scores_of_tokens_are_taken_as_their_sum(agent: Any, config: Any, tiny_lm: CausalLM) -> None:
    """An agent learns and writes what it does with a reward that scores texts with the same sums."""
    written = []
    for reward in (of_tokens, of_texts):
        envs = make_envs(tiny_lm, 8, reward=reward, kl_coef=0.05)
        trained = agent(envs, config).learn(100)
        episodes = trained.sample(envs, PROMPTS * 4, generator=torch.Generator().manual_seed(0))
        assert all(bool(each.token_scores) == (reward is of_tokens) for each in episodes)
        assert all(each.score == sum(token % 5 / 4 for token in each.completion_ids) for each in episodes)
        written.append([each.completion_ids for each in episodes])
    assert written[0] == written[1]
    assert len(set(written[0])) > 4
