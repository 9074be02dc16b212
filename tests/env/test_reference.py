"""The precision of the reference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.test_ppo import make_envs
from textenv.agents.config import AgentConfig
from textenv.agents.reinforce import REINFORCE
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect, text_env
from textenv.types import TextEnvError


@pytest.mark.parametrize("kl_mode", ["dense", "lump"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_kl_is_from_the_rounded_reference(precision: Any, kl_mode: str, tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, reference_precision=precision, kl_mode=kl_mode)
    base = text_env(envs)
    assert tiny_lm.precision == "float32"  # the one that was given stays as it is
    assert base.reference.model is tiny_lm.model
    policy = TextPolicy(base.reference)
    assert policy.lm.precision == "float32"
    rollout = collect(envs, policy, torch.Generator().manual_seed(0), seed=0)
    with tiny_lm.rounded(precision):
        reference = tiny_lm.token_log_probs(rollout.input_ids, rollout.lengths)
    lines = np.arange(len(rollout.mask))[:, None]
    expected = (rollout.log_probs - reference[lines, np.maximum(rollout.places - 1, 0)])[rollout.mask]
    paid = np.concatenate([episode.kl for episode in rollout.finished])
    # Keys and values come a token at a time or all at once, and a last bit can decide how a number is rounded.
    assert np.median(np.abs(paid - expected)) < 1e-5
    assert np.abs(paid - expected).max() < 0.05
    assert np.abs(paid).max() > 1e-4


def test_with_both_rounded_the_first_kl_is_0(tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, reference_precision="int8", kl_mode="dense")
    policy = TextPolicy(text_env(envs).reference)
    with policy.rounded("int8"):
        rollout = collect(envs, policy, torch.Generator().manual_seed(0), seed=0)
    assert max(abs(kl) for episode in rollout.finished for kl in episode.kl) < 1e-5


def test_an_agent_starts_from_the_weights_themselves(tiny_lm: CausalLM) -> None:
    agent = REINFORCE(make_envs(tiny_lm, reference_precision="int8"))
    assert isinstance(agent.config, AgentConfig)
    for mine, theirs in zip(agent.policy.model.parameters(), tiny_lm.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    ids, lengths = np.array([[5, 6, 7]]), np.array([3])
    found = agent.policy.lm.next_token_logits(ids, lengths)
    torch.testing.assert_close(found, tiny_lm.next_token_logits(ids, lengths))


def test_a_reference_that_cannot_be_rounded_is_refused(tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match="precision 'int8' of a LlamaForCausalLM in bfloat16"):
        make_envs(CausalLM(copy.deepcopy(tiny_lm.model).bfloat16(), tiny_lm.tokenizer), reference_precision="int8")
    with pytest.raises(TextEnvError, match="reference_precision"):
        make_envs(tiny_lm, reference_precision="int4")
