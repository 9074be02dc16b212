"""Rounded linear layers, and what a policy draws with them, against rounding done one number at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.conftest import build_lm
from textenv.models import network, onednn
from textenv.models.causal_lm import CausalLM
from textenv.models.lora import Lora, add_adapter
from textenv.models.policy import TextPolicy
from textenv.models.rounding import multiplies_int8, round_rows, rounded_product
from textenv.types import TextEnvError

PRECISIONS = ["bfloat16", "int8"]
pytestmark = pytest.mark.skipif(not multiplies_int8(), reason="this build of torch has no FBGEMM")


def rounded_input(x: torch.Tensor) -> torch.Tensor:
    """Round every row to 127 steps on either side of 0."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
    return torch.round(x / scale) * scale


def rounded_weight(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """Round a weight ``(out, in)``."""
    if precision == "bfloat16":
        return weight.bfloat16().float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 63
    return torch.round(weight / scale) * scale


def naive(model: Any, precision: str) -> Any:
    """Return a copy of a model whose linear layers, but for the head, are rounded by hand."""
    model = copy.deepcopy(model)
    head = model.get_output_embeddings()
    for layer in model.modules():
        if not isinstance(layer, (nn.Linear, Conv1D)) or layer is head:
            continue
        transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach().T if transposed else layer.weight.detach()
        weight = rounded_weight(weight, precision)
        layer.weight = nn.Parameter(weight.T.contiguous() if transposed else weight)
        if precision == "int8":
            layer.register_forward_pre_hook(lambda _, inputs: (rounded_input(inputs[0]), *inputs[1:]))
        else:  # the inputs and the product are rounded too, the bias is not
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16().float(), *inputs[1:]))
            layer.register_forward_hook(
                lambda layer, _, output: (
                    (output - (b := 0 if layer.bias is None else layer.bias)).bfloat16().float() + b
                )
            )
    return model


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_product_is_that_of_rounded_numbers(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 70), torch.randn(rows, 70) * torch.logspace(-3, 3, rows)[:, None]
    b = torch.randn(48) if bias else None
    expected = functional.linear(rounded_input(x).double(), rounded_weight(weight, "int8").double())
    expected = expected if b is None else expected + b
    found = rounded_product(weight, b, "int8")(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(x.abs().max()))


def test_the_error_of_a_rounded_product_is_that_of_uniform_noise() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 512), torch.randn(64, 512)
    off = rounded_product(weight, None, "int8")(x) - x @ weight.T
    # A step of size s is a uniform error of variance s^2 / 12, in each of the 512 terms of a sum.
    steps = (x.abs().amax(1) / 127).square().mean() + (weight.abs().amax(1) / 63).square().mean()
    assert float(off.square().mean()) == pytest.approx(512 * float(steps) / 12, rel=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_does_not_depend_on_the_others(precision: Any) -> None:
    torch.manual_seed(0)
    product = rounded_product(torch.randn(32, 64), torch.randn(32), precision)
    x = torch.randn(9, 64) * torch.logspace(-4, 4, 9)[:, None]
    torch.testing.assert_close(product(x), torch.cat([product(row[None]) for row in x]), rtol=1e-6, atol=1e-6)


def test_rows_of_zeros_stay_zero_and_nan_shows() -> None:
    product = rounded_product(torch.ones(4, 8), torch.ones(4), "int8")
    assert product(torch.zeros(2, 8)).tolist() == [[1.0] * 4] * 2
    assert product(torch.full((1, 8), torch.nan)).isnan().all()
    assert rounded_product(torch.zeros(4, 8), None, "int8")(torch.ones(2, 8)).tolist() == [[0.0] * 4] * 2


def test_rounding_is_to_the_nearest_multiple() -> None:
    levels, scales = round_rows(torch.tensor([[1.0, -0.26, 0.1], [0.0, 0.0, 0.0]]), 2)
    assert levels.tolist() == [[2, -1, 0], [0, 0, 0]]
    assert scales[0].tolist() == [0.5]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_recorded_log_prob_is_that_of_the_rounded_weights(precision: Any, architecture: str) -> None:
    policy = TextPolicy(build_lm(architecture), temperature=0.8)
    plain = naive(policy.lm.model, precision)
    generator = torch.Generator().manual_seed(0)
    ids = np.random.default_rng(0).integers(2, 300, size=(4, 12))
    lengths, off, unrounded = np.array([3, 5, 4, 3]), [], []
    with policy.rounded(precision), policy.unchanged():
        for _ in range(6):
            mask = (np.arange(12) < lengths[:, None]).astype(np.int8)
            actions, _ = policy.act({"input_ids": ids, "attention_mask": mask}, generator=generator)
            recorded = policy.action_log_prob(actions)
            with torch.no_grad():
                logits = [m(input_ids=torch.from_numpy(ids)).logits for m in (plain, policy.lm.model)]
            rows = np.arange(4)
            expected, exact = (
                torch.log_softmax(each[rows, lengths - 1] / 0.8, dim=-1)[rows, actions].numpy() for each in logits
            )
            off.append(np.abs(recorded - expected))
            unrounded.append(np.abs(recorded - exact))
            ids[rows, lengths] = actions
            lengths = lengths + 1
    assert np.max(off) < 1e-5
    assert np.mean(unrounded) > 1e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_forwards_without_gradients_are_rounded_and_only_inside(precision: Any) -> None:
    policy = TextPolicy(build_lm())
    ids, lengths = np.array([[5, 6, 7, 8]]), np.array([4])
    arguments = torch.from_numpy(ids), torch.from_numpy(lengths), torch.arange(1, 4)
    before, trained = policy.lm.next_token_logits(ids, lengths), policy.evaluate(*arguments).log_probs
    with policy.rounded(precision):
        assert (policy.lm.next_token_logits(ids, lengths) - before).abs().max() > 1e-3
        torch.testing.assert_close(policy.evaluate(*arguments).log_probs, trained, rtol=0, atol=0)
        with torch.no_grad():
            rounded = policy.evaluate(*arguments).log_probs
        np.testing.assert_allclose(policy.lm.token_log_probs(ids, lengths)[0], rounded, atol=1e-5)
        assert (rounded - trained).abs().max() > 1e-3
    torch.testing.assert_close(policy.lm.next_token_logits(ids, lengths), before, rtol=0, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_change_are_rounded_again(precision: Any) -> None:
    lm, other = build_lm(seed=0), build_lm(seed=1)
    ids, lengths = np.array([[5, 6, 7, 8]]), np.array([4])
    with lm.rounded(precision), other.rounded(precision):
        lm.next_token_logits(ids, lengths)
        lm.model.load_state_dict(other.model.state_dict())
        torch.testing.assert_close(lm.next_token_logits(ids, lengths), other.next_token_logits(ids, lengths))


def test_an_adapter_is_rounded_with_the_weight_that_it_is_added_to() -> None:
    base = build_lm()
    lm = add_adapter(base, Lora(2, 4))
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    merged = copy.deepcopy(base.model)
    merged.set_adapter(str(lm.adapter))
    merged = naive(_merged(merged), "int8")
    ids, lengths = np.array([[5, 6, 7, 8]]), np.array([4])
    with lm.rounded("int8"):
        found = lm.next_token_logits(ids, lengths)
    with torch.no_grad():
        expected = merged(input_ids=torch.from_numpy(ids)).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def _merged(model: Any) -> Any:
    """Put what an adapter adds into the weights, and take the adapter out."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "base_layer"):
                child.base_layer.weight.data += child.get_delta_weight(child.active_adapters[0])
                setattr(parent, name, child.base_layer)
    return model


def test_a_model_that_cannot_be_rounded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, lengths = np.array([[5, 6, 7]]), np.array([3])
    lm = build_lm()
    half = CausalLM(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer)
    with half.rounded("int8"), pytest.raises(TextEnvError, match="'int8' of a LlamaForCausalLM in bfloat16 on 'cpu'"):
        half.next_token_logits(ids, lengths)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2, eos_token_id=0))
    with pytest.raises(TextEnvError, match="expected a model in float32 on the CPU, of an architecture"):
        CausalLM(bloom, lm.tokenizer, precision="bfloat16").next_token_logits(ids, lengths)
    monkeypatch.setattr(network, "multiplies_int8", lambda: False)
    with lm.rounded("int8"), pytest.raises(TextEnvError, match="no int8 products"):
        lm.next_token_logits(ids, lengths)
    assert lm.next_token_logits(ids, lengths).shape == (1, 300)  # unharmed


@pytest.mark.parametrize("packs", [True, False])
def test_bfloat16_is_the_same_by_either_product(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if packs and not onednn.packs_bfloat16():
        pytest.skip("this processor has no packed products of bfloat16")
    monkeypatch.setattr(onednn, "packs_bfloat16", lambda: packs)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 64), torch.randn(48), torch.randn(5, 64)
    expected = functional.linear(x.bfloat16().double(), weight.bfloat16().double()).bfloat16().float() + bias
    torch.testing.assert_close(rounded_product(weight, bias, "bfloat16")(x), expected, rtol=0.01, atol=0.01)
