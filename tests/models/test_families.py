"""Every promised family of models, from a folder to a paid episode."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.families import FAMILIES, save_family
from textenv import CausalLM
from textenv.models.families import build_network
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import Rollout, collect, text_env

PROMPTS = ["the film", "a plot that was thin", "it"]
# A model with sliding layers may go without the prefix cache where a text is longer than they see.
pytestmark = pytest.mark.filterwarnings("ignore:.*without the prefix cache")


def vowels(completions: Any, **_: Any) -> list[float]:
    return [sum(text.count(vowel) for vowel in "aeiou") / 10 for text in completions]


@pytest.fixture(params=FAMILIES, ids=lambda given: f"{given[0]}-{'tied' if given[1] else 'untied'}")
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A family's name and a folder with a model of it."""
    name, tied = request.param
    return name, save_family(tmp_path / name, name, tied=tied)


def episodes(model: str, seed: int = 3, **given: Any) -> tuple[Any, TextPolicy, Rollout]:
    """Let an untrained policy write an episode in each of four rows."""
    envs: Any = gym.make_vec(
        "textenv/Text-v0",
        num_envs=4,
        autoreset_mode=AutoresetMode.DISABLED,
        **{"model": model, "prompts": PROMPTS, "reward": vowels, "max_new_tokens": 10, "kl_coef": 0.1, **given},
    )
    policy = TextPolicy(text_env(envs).reference)
    return envs, policy, collect(envs, policy, torch.Generator().manual_seed(seed), seed=seed)


def plain_log_probs(lm: CausalLM, rollout: Rollout) -> list[list[float]]:
    """The log-probabilities of what was written, by transformers alone: each text by itself, in one forward."""
    found = []
    for row, (start, end) in enumerate(zip(rollout.starts, rollout.lengths, strict=True)):
        ids = torch.tensor(rollout.input_ids[row, :end])
        with torch.no_grad():
            log_probs = torch.log_softmax(lm.model(input_ids=ids[None]).logits[0].float(), dim=-1)
        found.append(log_probs[:-1].gather(1, ids[1:, None])[start - 1 :, 0].tolist())
    return found


@pytest.mark.parametrize(("name", "tied"), FAMILIES)
def test_a_saved_family_keeps_its_head(name: str, tied: bool, tmp_path: Path) -> None:
    lm = CausalLM.from_pretrained(save_family(tmp_path, name, tied=tied))
    assert lm.model.config.model_type.startswith(name if name != "smollm2" else "llama")
    embeddings: list[Any] = [lm.model.get_input_embeddings(), lm.model.get_output_embeddings()]
    assert (embeddings[0].weight.data_ptr() == embeddings[1].weight.data_ptr()) is tied
    assert len(lm.tokenizer) < lm.vocab_size


def test_an_untrained_policy_has_no_kl_and_what_it_earns_adds_up(family: tuple[str, str]) -> None:
    envs, _, rollout = episodes(family[1])
    lm = text_env(envs).reference
    assert rollout.lengths.max() > 13  # beyond the sliding windows
    for episode, log_probs, expected in zip(
        rollout.finished, rollout.log_probs, plain_log_probs(lm, rollout), strict=True
    ):
        assert episode.kl == pytest.approx([0.0] * len(episode.kl), abs=1e-5)
        assert sum(episode.token_rewards) == pytest.approx(episode.score - 0.1 * math.fsum(episode.kl), abs=1e-5)
        assert log_probs[: len(expected)] == pytest.approx(expected, abs=1e-4)


def test_cached_logits_are_those_of_transformers(family: tuple[str, str]) -> None:
    lm = CausalLM.from_pretrained(family[1])
    rng = np.random.default_rng(0)
    ids = rng.integers(0, lm.vocab_size, size=(3, 18))
    lengths = np.array([4, 9, 1])
    for _ in range(9):  # prompts, then a token each at places of its own
        logits = lm.next_token_logits(ids, lengths)
        for row, length in enumerate(lengths):
            with torch.no_grad():
                expected = lm.model(input_ids=torch.tensor(ids[row, :length])[None]).logits[0, -1]
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)
        lengths = lengths + 1


@pytest.mark.parametrize("name", sorted({name for name, _ in FAMILIES} - {"gpt2"}))
def test_conversations_are_paid_in_the_same_way(name: str, tmp_path: Path) -> None:
    conversations = [[{"role": "user", "content": text}] for text in PROMPTS]
    said: list[list[dict[str, str]]] = []

    def spoken(completions: Any, **_: Any) -> list[float]:
        said.extend(completions)
        return [len(completion[0]["content"]) / 10 for completion in completions]

    envs, _, rollout = episodes(save_family(tmp_path, name), prompts=conversations, reward=spoken)
    expected = plain_log_probs(text_env(envs).reference, rollout)
    for episode, log_probs, plain in zip(rollout.finished, rollout.log_probs, expected, strict=True):
        assert [{"role": "assistant", "content": episode.completion}] in said
        assert episode.kl == pytest.approx([0.0] * len(episode.kl), abs=1e-5)
        assert sum(episode.token_rewards) == pytest.approx(len(episode.completion) / 10, abs=1e-5)
        assert log_probs[: len(plain)] == pytest.approx(plain, abs=1e-4)


def test_half_precision_has_no_kl_either(tmp_path: Path) -> None:
    envs, policy, rollout = episodes(save_family(tmp_path, "smollm2"), torch_dtype="bfloat16", device="cpu")
    assert text_env(envs).reference.model.dtype == policy.model.dtype == torch.bfloat16
    assert max(abs(kl) for episode in rollout.finished for kl in episode.kl) <= 1e-5


def test_training_forwards_agree_with_the_sampler(family: tuple[str, str]) -> None:
    _, policy, rollout = episodes(family[1], kl_mode="lump")
    everything = rollout.tensors(np.arange(len(rollout.mask)), policy.lm.device, policy.lm.vocab_size)
    now = policy.evaluate(*everything).log_probs.detach()
    torch.testing.assert_close(now, torch.from_numpy(rollout.log_probs[rollout.mask]), rtol=0, atol=1e-4)


def test_a_model_that_was_asked_for_its_hidden_states_stays_fast(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids = torch.arange(4)[None]
    before = lm.model(input_ids=ids).logits
    lm.model(input_ids=ids, output_hidden_states=True)
    network = build_network(lm.model)
    assert network is not None
    torch.testing.assert_close(network.head(network.run(ids).flatten(0, 1)), before[0], atol=1e-4, rtol=1e-4)
    lm.model.base_model.register_forward_hook(lambda *_: None)
    assert build_network(lm.model) is None
