"""Which precision a measurement chooses; the clock is a fake one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import build_lm
from textenv.models import probe
from textenv.models.causal_lm import CausalLM
from textenv.models.rounding import multiplies_int8


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Let what runs in a precision seem to take so many seconds."""

    def pretend(seconds: dict[str, float]) -> None:
        def measured(cases: dict[str, Callable[[], object]]) -> dict[str, float]:
            for run in cases.values():
                run()
            return {name: seconds[name] for name in cases}

        monkeypatch.setattr(probe, "_least_seconds", measured)

    return pretend


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"float32": 1.0, "bfloat16": 0.5, "int8": 0.3}, "int8"),
        ({"float32": 1.0, "bfloat16": 0.3, "int8": 0.5}, "bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.9, "int8": 0.85}, "float32"),  # less than a fifth, the head included
        ({"float32": 1.0, "bfloat16": 2.0, "int8": 3.0}, "float32"),
    ],
)
def test_the_fastest_way_is_chosen_if_it_gains_a_fifth(
    seconds: dict[str, float], expected: str, took: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(probe, "multiplies_int8", lambda: True)
    took(seconds)
    assert probe.fastest_rollout(build_lm("gpt2"), 4) == (expected if multiplies_int8() else "float32")


@pytest.mark.skipif(not multiplies_int8(), reason="this build of torch has no FBGEMM")
def test_what_moves_the_policy_too_far_is_not_chosen(took: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "multiplies_bfloat16", lambda device: True)
    took({"float32": 1.0, "bfloat16": 0.5, "int8": 0.3})
    errors = {"int8": 0.2, "bfloat16": 0.05}
    monkeypatch.setattr(probe, "rounding_error", lambda lm, precision: errors[precision])
    assert probe.fastest_rollout(build_lm("gpt2"), 4) == "bfloat16"
    errors["bfloat16"] = 0.15
    assert probe.fastest_rollout(build_lm("gpt2"), 4) == "float32"


@pytest.mark.skipif(not multiplies_int8(), reason="this build of torch has no FBGEMM")
def test_the_error_is_that_of_the_whole_distribution() -> None:
    lm = build_lm()
    ids = np.array([lm.tokenizer(probe._TEXT)["input_ids"][: probe._TEXT_TOKENS]])
    size = ids.shape[1]
    states, lengths = np.repeat(ids, size, axis=0), np.arange(1, size + 1)
    plain = torch.log_softmax(lm.next_token_logits(states, lengths), dim=-1)
    with lm.rounded("int8"):
        rounded = torch.log_softmax(lm.next_token_logits(states, lengths), dim=-1)
    expected = float((plain.exp() * (rounded - plain).abs()).sum(dim=-1).mean())
    assert expected > 1e-4
    assert probe.rounding_error(lm, "int8") == pytest.approx(expected, rel=1e-3)
    assert probe.rounding_error(lm, "float32") == 0


@pytest.mark.skipif(not multiplies_int8(), reason="this build of torch has no FBGEMM")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_head_counts_at_the_speed_of_float32(architecture: str, took: Any) -> None:
    lm = build_lm(architecture)
    network = probe._network_of(lm)
    assert network is not None
    took({"float32": 1.0, "int8": 0.25})
    layers, head = (4 * 32 * 32 + 8 * 32 * 32, 300 * 32)  # GPT-2's qkv, out, up and down
    if architecture == "llama":
        layers = 64 * 32 + 32 * 32 + 2 * 64 * 32 + 64 * 32
    found = probe.product_seconds(network, 4, ["float32", "int8"])
    assert found["float32"] == pytest.approx(2 + head / layers)
    assert found["int8"] == pytest.approx(0.5 + head / layers)


def test_what_cannot_be_rounded_is_float32(took: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "multiplies_int8", lambda: True)
    took({"float32": 1.0, "bfloat16": 0.1, "int8": 0.1})
    lm = build_lm()
    assert probe.fastest_rollout(CausalLM(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer), 4) == "float32"
    monkeypatch.setattr(probe, "build_network", lambda model, adapted: None)
    assert probe.fastest_rollout(lm, 4) == "float32"
    monkeypatch.undo()
    monkeypatch.setattr(probe, "multiplies_int8", lambda: False)
    monkeypatch.setattr(probe, "multiplies_bfloat16", lambda device: False)
    assert probe.fastest_rollout(lm, 4) == "float32"


@pytest.mark.parametrize(("half", "expected"), [(0.8, "bfloat16"), (0.9, "float32")])
@pytest.mark.parametrize("frozen", [True, False])
def test_training_is_measured_with_its_backward_pass(half: float, expected: str, frozen: bool, took: Any) -> None:
    lm = build_lm()
    lm.model.requires_grad_(not frozen)
    took({"float32": 1.0, "bfloat16": half})
    assert probe.fastest_training(lm) == expected
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert not torch.is_autocast_enabled("cpu")


def test_a_measurement_is_the_least_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def spend(seconds: Any) -> Callable[[], None]:
        durations = iter(seconds)
        return lambda: clock.__setitem__("now", clock["now"] + next(durations))

    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    cases = {"float32": spend([9.0, 5.0, 2.0, 4.0]), "int8": spend([9.0, 3.0, 1.0, 6.0])}
    assert probe._least_seconds(cases) == {"float32": 2.0, "int8": 1.0}  # type: ignore[arg-type]
