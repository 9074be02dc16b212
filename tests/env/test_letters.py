"""textenv/Exact-v0: the contract, its reference, and its families of rewards."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from textenv import CausalLM, TextEnvError
from textenv.analysis.exact import Tree, model_log_probs
from textenv.env.letters import FAMILIES, letter_model
from textenv.models.policy import TextPolicy
from textenv.rewards import Letters
from textenv.testing import EnvironmentContract, RewardContract
from textenv.types import Reward


class TestExactContract(EnvironmentContract):
    settings: dict[str, Any] = {}  # noqa: RUF012

    def make_env(self, **settings: Any) -> Any:
        return gym.make("textenv/Exact-v0", **{**self.settings, **settings})

    def make_vec_env(self, num_envs: int, **settings: Any) -> Any:
        return gym.make_vec("textenv/Exact-v0", num_envs=num_envs, **{**self.settings, **settings})


class TestEndlessContract(TestExactContract):
    settings: dict[str, Any] = {"stop_token": False, "reward": "deceptive", "task_seed": 2}  # noqa: RUF012


class TestDense(RewardContract):
    def make_reward(self) -> Reward:
        return Letters()


class TestDeceptive(RewardContract):
    def make_reward(self) -> Reward:
        return Letters("deceptive", letters=" aeint", length=9, seed=1)


def scores(reward: Letters, *texts: str) -> list[float]:
    return reward(prompts=[""] * len(texts), completions=texts, completion_ids=[[]] * len(texts))


# -- the reference -------------------------------------------------------------------------------------------------


def test_letters_are_tokens() -> None:
    lm = letter_model()
    assert (lm.vocab_size, lm.eos_ids, lm.pad_id) == (8, (0,), 0)
    assert lm.encode("abg") == (1, 2, 7)
    assert lm.decode([1, 2, 7, 0]) == "abg"
    assert lm.token_texts(range(8)) == ("<end>", "a", "b", "c", "d", "e", "f", "g")


def test_without_a_stop_token_only_the_budget_ends_a_text() -> None:
    env = gym.make("textenv/Exact-v0", stop_token=False, vocab_size=4, max_new_tokens=3)
    assert env.unwrapped.reference.encode("ad") == (0, 3)  # type: ignore[attr-defined]
    for tokens in itertools.product(range(4), repeat=3):
        env.reset()
        ends = [env.step(np.int64(token))[2] for token in tokens]
        assert ends == [False, False, True]


def test_the_reference_is_seeded_and_leaves_the_callers_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = letter_model(seed=1), letter_model(seed=1), letter_model(seed=2)
    assert torch.equal(torch.rand(3), expected)
    ids, lengths = np.array([[1, 2, 3]]), np.array([3])
    logits = one.next_token_logits(ids, lengths)
    assert torch.equal(logits, same.next_token_logits(ids, lengths))
    assert not torch.allclose(logits, other.next_token_logits(ids, lengths), atol=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_reference_is_neither_even_nor_certain_and_reads_all_letters(seed: int) -> None:
    lm = letter_model(seed=seed)
    ids = np.random.default_rng(0).integers(8, size=(200, 6))
    log_probs = torch.log_softmax(lm.next_token_logits(ids, np.full(200, 6)), -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    assert 1.2 < float(entropy) < 1.9  # of an even choice it would be 2.08
    changed = ids.copy()
    changed[:, 0] = (ids[:, 0] + 1) % 8  # six letters ago
    assert (
        float((torch.log_softmax(lm.next_token_logits(changed, np.full(200, 6)), -1) - log_probs).abs().mean()) > 0.05
    )


@pytest.mark.parametrize("stop_token", [True, False])
def test_a_policy_is_saved_and_loaded(tmp_path: Path, stop_token: bool) -> None:
    lm = letter_model(5, stop_token=stop_token)
    TextPolicy(lm).save(tmp_path)
    TextPolicy(lm).load(tmp_path)
    loaded = CausalLM.from_pretrained(tmp_path)
    assert (loaded.eos_ids, loaded.pad_id, loaded.encode("ab")) == (lm.eos_ids, lm.pad_id, lm.encode("ab"))


# -- the environment -----------------------------------------------------------------------------------------------


def test_keywords_are_json() -> None:
    env = gym.make("textenv/Exact-v0", reward="needle", vocab_size=5, max_new_tokens=4, stop_token=False, task_seed=7)
    spec = env.spec
    assert spec is not None
    assert json.loads(spec.to_json())["kwargs"] == {
        "reward": "needle",
        "vocab_size": 5,
        "max_new_tokens": 4,
        "stop_token": False,
        "task_seed": 7,
    }
    again = gym.make(EnvSpec.from_json(spec.to_json()))
    assert again.unwrapped.batch.reward == Letters("needle", "abcde", 4, 7)  # type: ignore[attr-defined]


def test_the_model_tells_how_often_a_letter_was_repeated() -> None:
    """Else a policy could not be optimal: what is best after ``a`` is not what is best after ``aa``."""
    log_probs = model_log_probs(letter_model())
    one, two, three = (log_probs(np.full((1, count), 1)) for count in (1, 2, 3))
    assert np.abs(one - two).max() > 0.1
    assert np.abs(two - three).max() > 0.1


def test_the_reference_of_one_environment_serves_another() -> None:
    reference = gym.make("textenv/Exact-v0").unwrapped.reference  # type: ignore[attr-defined]
    assert gym.make("textenv/Exact-v0", model=reference).unwrapped.reference is reference  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 1}, "from 2 to 26"),
        ({"vocab_size": 27}, "from 2 to 26"),
        ({"vocab_size": "8"}, "vocab_size='8': expected a whole number"),
        ({"task_seed": -1}, "seed=-1: expected a whole number"),
        ({"stop_token": 1}, "stop_token=1: expected True or False"),
        ({"model": "bundled"}, "textenv/Text-v0"),
        ({"model": letter_model(7)}, "vocab_size=8"),
        ({"prompts": ["The film"]}, "'The film'"),
        ({"max_new_tokens": 100}, "lower one of them"),
        ({"reward": "dens"}, "no reward named 'dens'"),
        ({"vocab": 8}, "unexpected keyword argument 'vocab'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        gym.make("textenv/Exact-v0", **settings)


# -- rewards -------------------------------------------------------------------------------------------------------


def test_dense_is_a_sum_over_letters_and_neighbors() -> None:
    reward = Letters("dense", "abc", 4, seed=5)
    rng = np.random.default_rng(5)
    single, pair = rng.uniform(-1, 1, 3), rng.uniform(-1, 1, (3, 3))
    by_hand = (single[0] + single[2] + pair[0, 2] + single[2] + pair[2, 2]) / 8
    assert scores(reward, "acc", "", "?") == pytest.approx([by_hand, 0.0, 0.0])


def test_words() -> None:
    needle, sparse = Letters("needle", seed=3), Letters("sparse", seed=3)
    assert len(needle.word) == 6
    assert needle.word.startswith(sparse.word)
    assert len(sparse.word) == 3
    assert scores(needle, needle.word, needle.word[:-1], needle.word + "a", "") == [1.0, 0.0, 0.0, 0.0]
    assert scores(sparse, sparse.word, "a" + sparse.word + "a", sparse.word[:2], "") == [1.0, 1.0, 0.0, 0.0]


def test_deceptive_punishes_every_step_but_the_last() -> None:
    reward = Letters("deceptive", seed=3)
    bait = next(letter for letter in reward.letters if letter not in reward.word)
    w = reward.word
    texts = [bait * 6, w[0] + bait * 5, w[:2] + bait * 4, w + bait * 3, bait * 2]
    assert scores(reward, *texts) == pytest.approx([0.5, 5 / 12, 4 / 12, 1.0, 1 / 6])


MIX = [
    ["dense", "sparse"],
    {"name": "weighted_sum", "rewards": ["dense", "sparse"], "weights": [1.0, 1.0]},
    [{"name": "clip", "reward": "dense", "low": -9, "high": 9}, ["sparse"]],
]


@pytest.mark.parametrize("mix", MIX, ids=["list", "object", "nested"])
def test_a_mix_takes_the_names_of_families(mix: Any) -> None:
    """Expected scores of the reference add up."""
    found = {}
    for name, reward in (("mix", mix), ("dense", "dense"), ("sparse", "sparse")):
        env = gym.make("textenv/Exact-v0", vocab_size=5, max_new_tokens=4, task_seed=3, reward=reward)
        found[name] = Tree.of(env).reference.score
    assert found["sparse"] > 1e-3
    assert found["mix"] == pytest.approx(found["dense"] + found["sparse"], abs=1e-6)


def test_parts_of_a_mix_are_named_after_their_families() -> None:
    mix: dict[str, Any] = {"reward": ["dense", "sparse", "sparse"], "reward_weights": [1, 2, 3]}
    batch = gym.make("textenv/Exact-v0", potential=["needle"], **mix).unwrapped.batch  # type: ignore[attr-defined]
    assert batch.scorer.part_names == ("dense", "sparse", "sparse_2")
    assert batch.settings.potential["rewards"][0]["family"] == "needle"


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_between_minus_one_and_one(family: Any) -> None:
    texts = ["".join(letters) for n in range(5) for letters in itertools.product("abcd", repeat=n)]
    found = scores(Letters(family, "abcd", 4, seed=1), *texts)
    assert -1 <= min(found) <= max(found) <= 1
    assert max(found) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "easy"}, "'dense', 'sparse', 'deceptive', 'needle'"),
        ({"letters": ""}, "at least one letter"),
        ({"letters": "aba"}, "each once"),
        ({"length": 0}, "at least 1"),
        ({"seed": 0.5}, "at least 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        Letters(**arguments)
