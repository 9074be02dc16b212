"""The optimum and the exact figures of policies, against texts enumerated one by one and against the environment."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from textenv import CausalLM, TextEnvError
from textenv.analysis.exact import LogProbs, Policy, Tree
from textenv.analysis.frontier import best_of_n_kl
from textenv.env.letters import FAMILIES, letter_model
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect, text_env
from textenv.types import IntArray

SMALL: dict[str, Any] = {"vocab_size": 4, "max_new_tokens": 3}


def make(**settings: Any) -> Any:
    return gym.make("textenv/Exact-v0", **{**SMALL, **settings})


def make_vec(num_envs: int, **settings: Any) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec(
        "textenv/Exact-v0", num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **{**SMALL, **settings}
    )


def random_policy(vocab_size: int, seed: int, scale: float = 2.0) -> LogProbs:
    """A policy with numbers of its own for every text."""

    def log_probs(ids: IntArray) -> NDArray[Any]:
        rows = [np.random.default_rng([seed, *row]).normal(scale=scale, size=vocab_size) for row in ids.tolist()]
        logits = np.array(rows)
        return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))

    return log_probs


def changed(lm: CausalLM, seed: int = 0) -> TextPolicy:
    """A policy other than the reference."""
    policy = TextPolicy(lm, value="none")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            noise = np.random.default_rng([seed, parameter.numel()]).normal(size=tuple(parameter.shape))
            parameter.add_(torch.from_numpy(noise), alpha=0.1)
    return policy


def written_out(env: Any, policy: LogProbs) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[tuple[int, ...]]]:
    """Step an environment through each of its texts from the first prompt.

    Returns:
        log pi, log pi_ref, the score, each ``(texts,)``, and the tokens.
    """
    lm, start = env.unwrapped.reference, env.unwrapped.prompts[0].ids
    texts: list[tuple[float, float, float, tuple[int, ...]]] = []
    done: list[tuple[int, ...]] = [()]
    while done:
        tokens = done.pop()
        env.reset(options={"prompt_index": 0})
        over, info = False, {}
        for token in tokens:
            _, _, over, _, info = env.step(np.int64(token))
        if not over:
            done += [(*tokens, token) for token in range(lm.vocab_size)]
            continue
        log_prob = sum(float(policy(np.array([[*start, *tokens[:i]]]))[0, token]) for i, token in enumerate(tokens))
        temperature = env.unwrapped.batch.settings.temperature
        whole = np.array([[*start, *tokens]])
        ref = lm.token_log_probs(whole, np.array([whole.shape[1]]), temperature)[0, len(start) - 1 :].sum()
        texts.append((log_prob, float(ref), info["score"], tokens))
    log_probs, refs, scores, ids = zip(*sorted(texts, key=lambda text: text[3]), strict=True)
    return np.array(log_probs), np.array(refs), np.array(scores), list(ids)


# -- against brute force -------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"stop_token": False, "reward": "deceptive"},
    {"temperature": 0.6, "task_seed": 3},
    {"stop": ["b", "ca"], "missing_eos_penalty": 0.25, "task_seed": 1},
    {"prompts": ["acb"], "kl_coef": 0.5, "reward": {"name": "length", "target": 2, "unit": "tokens"}},
    {"vocab_size": 2, "max_new_tokens": 5, "kl_mode": "lump"},
    {"max_new_tokens": 1, "kl_estimator": "full"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_agrees_with_texts_written_one_by_one(variant: dict[str, Any]) -> None:
    env = make(**variant)
    tree = Tree.of(env)
    policy = random_policy(env.unwrapped.reference.vocab_size, seed=1)
    log_probs, ref, scores, texts = written_out(env, policy)
    assert len(texts) == tree.size
    assert np.logaddexp.reduce(log_probs) == pytest.approx(0, abs=1e-9)
    outcome = tree.evaluate(policy)
    p, beta = np.exp(log_probs), tree.kl_coef
    assert outcome.score == pytest.approx(p @ scores, abs=1e-9)
    assert outcome.kl == pytest.approx(p @ (log_probs - ref), abs=1e-5)  # the models compute in float32
    assert outcome.value == pytest.approx(outcome.score - beta * outcome.kl, abs=1e-12)
    # The optimum over whole texts at once (Gibbs): J* = beta log E_ref exp(score / beta).
    assert tree.optimum.value == pytest.approx(beta * np.logaddexp.reduce(ref + scores / beta), abs=1e-6)
    best = np.exp(ref + scores / beta - np.logaddexp.reduce(ref + scores / beta))
    assert tree.optimum.score == pytest.approx(best @ scores, abs=1e-4)
    free = dataclasses.replace(tree, kl_coef=0.0)
    assert free.optimum.value == pytest.approx(scores.max(), abs=1e-9)
    assert free.optimum.kl == pytest.approx(-np.logaddexp.reduce(ref[scores == scores.max()]), abs=1e-5)
    assert tree.reference.kl == pytest.approx(0, abs=1e-12)
    assert tree.reference.score == pytest.approx(np.exp(ref) @ scores, abs=1e-6)


def test_an_episode_earns_what_the_tree_says() -> None:
    envs = make_vec(64, prompts=["a", "bca"], temperature=0.8, missing_eos_penalty=0.3)
    tree = Tree.of(envs)
    policy = changed(text_env(envs).reference)
    policy.temperature = 0.8
    rollout = collect(envs, policy, torch.Generator().manual_seed(0), seed=0)
    tables = [tree.tabulate(policy), tree.tabulate(text_env(envs).reference)]
    starts = [prompt.ids for prompt in tree.prompts]
    for row, episode in enumerate(rollout.finished):
        place = starts.index(episode.prompt_ids)
        earned, state = 0.0, 0
        for at, log_probs, refs, token in zip(
            tree.states[place], tables[0][place], tables[1][place], episode.completion_ids, strict=False
        ):
            earned += at.scores[state, token] - tree.kl_coef * (log_probs[state, token] - refs[state, token])
            assert at.ended[state, token] == ((*at.ids[state], token) == episode.prompt_ids + episode.completion_ids)
            state = int((~at.ended).reshape(-1)[: state * tree_width(at) + token].sum())
        assert float(rollout.rewards[row].sum()) == pytest.approx(earned, abs=1e-5)


def tree_width(at: Any) -> int:
    return int(at.ended.shape[1])


@pytest.mark.parametrize("rows", [4000, 50])
def test_agrees_with_the_mean_return_of_many_episodes(rows: int) -> None:
    envs = make_vec(rows, prompts=["a", "b", "cb"], reward="deceptive", vocab_size=5, max_new_tokens=4, kl_coef=0.1)
    tree = Tree.of(envs)
    policy = changed(text_env(envs).reference)
    outcome = tree.evaluate(policy)
    assert outcome.kl > 0.1  # or else it would say nothing
    rollout = collect(envs, policy, torch.Generator().manual_seed(1), episodes=4000, seed=1)
    for expected, sample in (
        (outcome.value, rollout.rewards.sum(axis=1)),
        (outcome.score, np.array([episode.score for episode in rollout.finished])),
        (outcome.kl, np.array([sum(episode.kl) for episode in rollout.finished])),
    ):
        error = sample.std(ddof=1) / math.sqrt(len(sample))
        assert abs(sample.mean() - expected) < 3 * error


# -- identities ----------------------------------------------------------------------------------------------------


def kl_of(tree: Tree, policy: Policy, other: Policy) -> float:
    """KL(policy || other) of whole texts, mean over the prompts: as if ``other`` were the reference."""
    tables = tree.tabulate(other)
    states = tuple(
        tuple(dataclasses.replace(at, ref_log_probs=np.asarray(table)) for at, table in zip(levels, mine, strict=True))
        for levels, mine in zip(tree.states, tables, strict=True)
    )
    return dataclasses.replace(tree, states=states).evaluate(policy).kl


@given(
    vocab_size=st.integers(2, 4),
    budget=st.integers(1, 3),
    stop_token=st.booleans(),
    family=st.sampled_from(FAMILIES),
    kl_coef=st.sampled_from([0.01, 0.1, 1.0, 30.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=10)
def test_identities(*, vocab_size: int, budget: int, stop_token: bool, family: str, kl_coef: float, seed: int) -> None:
    prompts = ["a", "aa"]
    env = make(
        vocab_size=vocab_size,
        max_new_tokens=budget,
        stop_token=stop_token,
        reward=family,
        kl_coef=kl_coef,
        task_seed=seed,
        prompts=prompts,
    )
    tree, policy = Tree.of(env), random_policy(vocab_size, seed)
    letters = vocab_size - stop_token
    assert tree.size == len(prompts) * (
        letters**budget if not stop_token else letters**budget + sum(letters**n for n in range(budget))
    )
    beginning = np.mean([values[0][0] for values in tree.optimal_values])
    assert tree.optimum.value == pytest.approx(beginning, abs=1e-9)
    outcome = tree.evaluate(policy)
    gap = tree.optimum.value - outcome.value
    assert gap == pytest.approx(kl_coef * kl_of(tree, policy, tree.optimal_policy), abs=1e-9 * max(1, abs(gap)))
    assert tree.optimum.value >= tree.reference.value - 1e-12
    free = dataclasses.replace(tree, kl_coef=0.0)
    largest = np.mean([max(at.scores.max(initial=-9, where=at.ended) for at in levels) for levels in tree.states])
    assert free.optimum.value == pytest.approx(largest, abs=1e-12)
    assert np.mean([values[0][0] for values in free.optimal_values]) == pytest.approx(largest, abs=1e-12)
    assert free.optimum.value >= tree.optimum.score - 1e-12
    for table in tree.optimal_policy:
        for log_probs in table:
            np.testing.assert_allclose(np.logaddexp.reduce(log_probs, axis=1), 0, atol=1e-9)


def test_small_coefficients_come_to_none() -> None:
    tree = Tree.of(make(reward="deceptive", vocab_size=5, max_new_tokens=4))
    free, nearly = (dataclasses.replace(tree, kl_coef=coef).optimum for coef in (0.0, 1e-5))
    assert nearly.score == pytest.approx(free.score, abs=1e-9)
    assert nearly.kl == pytest.approx(free.kl, abs=1e-6)


# -- policies ------------------------------------------------------------------------------------------------------


def test_regret() -> None:
    env = make(vocab_size=5, max_new_tokens=4)
    tree = Tree.of(env)
    assert tree.regret(env.unwrapped.reference) == pytest.approx(1, abs=1e-6)
    assert tree.regret(tree.optimal_policy) == pytest.approx(0, abs=1e-12)
    assert tree.regret(random_policy(5, seed=0, scale=5.0)) > 1
    assert 0 < tree.regret_of(tree.best_of_n(4)) < 1


def test_a_policy_may_be_a_model_a_function_or_a_table() -> None:
    env = make(prompts=["ab", "c"], temperature=1.3)
    tree, policy = Tree.of(env), changed(env.unwrapped.reference)
    policy.temperature = 1.3

    def by_observation(ids: IntArray) -> NDArray[Any]:
        obs = tree.observations(ids)
        assert env.observation_space.contains({name: values[0] for name, values in obs.items()})
        policy.act(obs)
        return policy.action_log_probs()

    expected = tree.evaluate(policy)
    for same in (by_observation, policy.lm, tree.tabulate(policy)):
        outcome = tree.evaluate(same)
        assert dataclasses.astuple(outcome) == pytest.approx(dataclasses.astuple(expected), abs=1e-5)
    policy.temperature = 0.5
    assert tree.evaluate(policy).kl > expected.kl + 0.01


def test_a_policy_may_exclude_tokens() -> None:
    tree = Tree.of(make())

    def only_a(ids: IntArray) -> NDArray[Any]:
        return np.tile([-np.inf, 0.0, -np.inf, -np.inf], (len(ids), 1))

    outcome = tree.evaluate(only_a)
    refs = [at.ref_log_probs[int(np.flatnonzero((at.ids == 1).all(axis=1))[0]), 1] for at in tree.states[0]]
    assert outcome.kl == pytest.approx(-sum(refs), abs=1e-12)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda ids: np.zeros((len(ids), 4)), "take log_softmax"),
        (lambda ids: np.full((len(ids), 4), np.nan), "log of their sum nan"),
        (lambda ids: np.zeros((len(ids), 3)), r"shape \(1, 3\).*\(1, 4\)"),
        ([[np.zeros((1, 4))]], r"has \[1\] arrays; expected \[3\] arrays"),
    ],
)
def test_bad_policies(policy: Any, message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        Tree.of(make()).evaluate(policy)


# -- best of n -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_agrees_with_all_draws(n: int) -> None:
    tree = Tree.of(make(vocab_size=3, max_new_tokens=2, reward="deceptive", task_seed=1, stop_token=False))
    [levels] = tree.states
    p = np.exp(levels[0].ref_log_probs[0][:, None] + levels[1].ref_log_probs).ravel()
    scores = levels[1].scores.ravel()
    chosen = np.zeros(len(p))
    for draw in itertools.product(range(len(p)), repeat=n):
        best = [i for i in draw if scores[i] == scores[list(draw)].max()]
        for i in best:
            chosen[i] += np.prod(p[list(draw)]) / len(best)
    outcome = tree.best_of_n(n)
    assert len(np.unique(scores)) < len(scores)  # ties
    assert outcome.score == pytest.approx(chosen @ scores, abs=1e-12)
    assert outcome.kl == pytest.approx(chosen @ np.log(chosen / p), abs=1e-12)
    assert outcome.value == pytest.approx(outcome.score - tree.kl_coef * outcome.kl, abs=1e-12)


def test_best_of_n_costs_less_than_its_formula_where_outcomes_repeat() -> None:
    small = {"vocab_size": 6, "max_new_tokens": 5, "stop_token": False}
    sparse, dense = (Tree.of(make(**small, reward=name)) for name in ("sparse", "dense"))
    for n in (2, 8, 32, 256):
        formula = float(best_of_n_kl(n))
        assert sparse.best_of_n(n).kl < 0.9 * formula
        assert 0.97 * formula < dense.best_of_n(n).kl <= formula
    # The best there is at a KL is no worse.
    kls = np.array([dense.best_of_n(n).kl for n in (2, 8, 32)])
    for n, kl in zip((2, 8, 32), kls, strict=True):
        optimal = [dataclasses.replace(dense, kl_coef=coef).optimum for coef in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)]
        at_most = [
            o.score + coef * (kl - o.kl) for o, coef in zip(optimal, (0.5, 0.2, 0.1, 0.05, 0.02, 0.01), strict=True)
        ]
        assert dense.best_of_n(n).score <= min(at_most) + 1e-9
    many = dense.best_of_n(1e15)
    assert many.score == pytest.approx(dataclasses.replace(dense, kl_coef=0.0).optimum.score, abs=1e-9)


def test_a_wrapper_around_a_reward_without_state_has_an_optimum() -> None:
    """Every wrapper has a ``state_dict``; what counts is whether there is anything in it."""
    plain = {"name": "length", "target": 2, "unit": "tokens"}
    alone, clipped, weighted = (
        Tree.of(make(reward=reward, max_new_tokens=3))
        for reward in (
            plain,
            {"name": "clip", "reward": plain, "low": -100.0, "high": 100.0},
            {"name": "weighted_sum", "rewards": [plain, plain], "weights": [0.5, 0.5]},
        )
    )
    assert clipped.optimum == alone.optimum
    assert weighted.optimum.value == pytest.approx(alone.optimum.value)


# -- what has no optimum, or too many texts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 2}, "top_k=2"),
        ({"top_p": 0.5}, r"top_p=0\.5"),
        ({"kl_target": 3.0}, r"kl_target=3\.0"),
        ({"kl_estimator": "k2"}, "'k1', 'k3' or 'full'"),
        ({"reward": {"name": "normalize", "reward": {"name": "length", "target": 2}}}, "has a state"),
        ({"vocab_size": 26, "max_new_tokens": 9}, "too many to enumerate"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        Tree.of(make(**settings))


def test_other_environments_are_refused() -> None:
    for env in (gym.make("CartPole-v1"), gym.make_vec("CartPole-v1", 2)):
        with pytest.raises(TextEnvError, match="no text environment"):
            Tree.of(env)


def test_where_all_texts_are_worth_the_same_there_is_no_regret() -> None:
    def flat(completions: Sequence[str], **_: Any) -> list[float]:
        return [0.5] * len(completions)

    tree = Tree.of(make(reward=flat))
    with pytest.raises(TextEnvError, match="no regret"):
        tree.regret(tree.optimal_policy)
    with pytest.raises(TextEnvError, match="at least 1"):
        tree.best_of_n(0)


def test_a_real_model_with_a_short_budget_is_a_tree_too(make_lm: Callable[..., CausalLM]) -> None:
    env = gym.make("textenv/Text-v0", model=make_lm("gpt2"), prompts=["the film"], max_new_tokens=2, reward="vader")
    tree = Tree.of(env)
    assert tree.size == 299 * 300 + 1
    assert tree.reference.value <= tree.optimum.value


@pytest.mark.slow
def test_the_default_size_takes_seconds() -> None:
    tree = Tree.of(make_vec(1, vocab_size=8, max_new_tokens=6, stop_token=False))
    assert tree.size == 8**6
    assert tree.regret(letter_model(stop_token=False)) == pytest.approx(1, abs=1e-6)
