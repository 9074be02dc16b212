"""What the doctor says of draws and of rounded rollouts."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from textenv.analysis import doctor
from textenv.env.registry import make_envs
from textenv.models import policy as policy_module
from textenv.models.causal_lm import CausalLM
from textenv.models.distributions import draw
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import text_env


def rounded(lm: CausalLM, **settings: Any) -> dict[str, doctor.Finding]:
    keywords = {"model": lm, "prompts": ["it was", "a film"], "reward": len_of, "max_new_tokens": 4, **settings}
    findings = doctor.examine("textenv/Text-v0", keywords, num_envs=4)
    return {finding.name: finding for finding in findings if finding.name.startswith("rollouts in")}


def len_of(*, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_it_says_how_far_off_first_ratio_and_kl_are(tiny_lm: CausalLM) -> None:
    found = rounded(tiny_lm, top_k=20)
    assert set(found) == {"rollouts in bfloat16", "rollouts in int8"}
    pattern = r"first ratio (\S+), \|log ratio\| mean (\S+), largest (\S+); first KL (\S+) nats an episode"
    for name, finding in found.items():
        figures = re.fullmatch(pattern, finding.detail)
        assert figures, finding.detail
        ratio, mean, largest, kl = map(float, figures.groups())
        assert finding.ok
        assert 1e-5 < mean < largest
        assert abs(ratio - 1) < 0.2
        assert abs(kl) > 1e-6, name


def test_it_advises_against_what_moves_a_policy_too_far(tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LARGEST_ERROR", 1e-6)
    assert rounded(tiny_lm)["rollouts in int8"].detail.startswith("not advised, mean |log ratio| above 1e-06: ")


def test_the_weights_are_loaded_once(tiny_lm: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_lm.model.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    loaded = list[str]()
    load = CausalLM.from_pretrained

    def counted(name: str, **settings: Any) -> CausalLM:
        loaded.append(name)
        return load(name, **settings)

    monkeypatch.setattr(CausalLM, "from_pretrained", counted)
    keywords = {"model": str(tmp_path), "prompts": ["it was"], "reward": len_of, "max_new_tokens": 4}
    findings = list(doctor.examine("textenv/Text-v0", keywords, num_envs=2))
    assert all(finding.ok for finding in findings), findings
    assert loaded == [str(tmp_path)]


def test_a_model_that_is_not_rounded_is_none(tiny_lm: CausalLM) -> None:
    lm = CausalLM(copy.deepcopy(tiny_lm.model).bfloat16(), tiny_lm.tokenizer)
    finding = rounded(lm)["rollouts in int8"]
    assert finding.ok
    assert "not here: precision 'int8' of a LlamaForCausalLM in bfloat16" in finding.detail


def drawn(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch, draw_with: Callable[..., torch.Tensor] = draw, **settings: Any
) -> tuple[doctor.Finding, list[int], list[int]]:
    """What it finds of draws, the rows of each forward, and how many probabilities were drawn from at a time."""
    keywords = {"model": lm, "prompts": ["it was", "a film"], "reward": len_of, "max_new_tokens": 4, **settings}
    envs = make_envs("textenv/Text-v0", 4, **keywords)
    policy = TextPolicy(text_env(envs).reference)
    rows, numbers = list[int](), list[int]()
    next_token = policy.lm.next_token

    def read(ids: Any, lengths: Any, **given: Any) -> Any:
        rows.append(len(ids))
        return next_token(ids, lengths, **given)

    def counted(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        numbers.append(probabilities.numel())
        return draw_with(probabilities, uniform)

    monkeypatch.setattr(policy.lm, "next_token", read)
    monkeypatch.setattr(policy_module, "draw", counted)
    return doctor._draws(policy, envs, torch.Generator().manual_seed(0), 0), rows, numbers


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}], ids=["all tokens", "some tokens"])
def test_draws_take_one_forward_of_one_row(
    tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(doctor, "_MAX_PROBABILITIES", 100 * tiny_lm.vocab_size + 1)
    finding, rows, numbers = drawn(tiny_lm, monkeypatch, **settings)
    assert finding.ok, finding.detail
    assert rows == [1]
    assert numbers == [100 * tiny_lm.vocab_size] * 40  # 4,000 draws


def test_draws_from_other_probabilities_are_a_finding(tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_half(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return draw(probabilities * (torch.arange(probabilities.shape[-1]) % 2 == 0), uniform)

    assert not drawn(tiny_lm, monkeypatch, of_half)[0].ok
