"""Linear layers, by every way in which their products are computed, against torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from textenv.models import linear as linear_module
from textenv.models import onednn
from textenv.models.linear import Linear
from textenv.models.operations import gelu_tanh


def layers(kind: str, size: int) -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    if kind == "conv1d":
        layer = Conv1D(3 * size, size)
        nn.init.normal_(layer.bias)
        return (layer,)
    if kind == "some biases":
        return nn.Linear(size, size), nn.Linear(size, 8, bias=False), nn.Linear(size, 24)
    return nn.Linear(size, size, bias=False), nn.Linear(size, 8, bias=False)


@pytest.mark.parametrize("kind", ["conv1d", "some biases", "no biases"])
@pytest.mark.parametrize(("size", "rows"), [(16, 3), (16, 100), (512, 3)])  # small, many rows, large
@pytest.mark.parametrize("activation", [None, gelu_tanh, torch.nn.functional.gelu, torch.sigmoid])
@pytest.mark.parametrize("by_onednn", [True, False])
def test_packed_layers_are_the_layers(  # noqa: PLR0917
    kind: str,
    size: int,
    rows: int,
    activation: Callable[[torch.Tensor], torch.Tensor] | None,
    by_onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not by_onednn:
        monkeypatch.setattr(onednn, "available", lambda: False)
    modules = layers(kind, size)
    linear = Linear(*modules, activation=activation)
    x = torch.randn(rows, size)
    with torch.no_grad():
        expected = torch.cat([module(x) for module in modules], dim=-1)
        if activation is not None:
            expected = activation(expected)
        residual = torch.randn_like(expected)
        for _ in range(2):  # as they are, then packed
            torch.testing.assert_close(linear(x), expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(linear(x, residual), expected + residual, atol=1e-4, rtol=1e-4)
            linear.pack()


@pytest.mark.parametrize("kind", ["conv1d", "some biases", "no biases"])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("bias",)])
def test_large_products_and_their_gradients(
    kind: str, frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "_LARGE_PRODUCT", 0)
    modules, x, found = layers(kind, 32), torch.randn(70, 32, requires_grad="x" not in frozen), []
    for module in modules:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
    learned = [p for p in (x, *(p for module in modules for p in module.parameters())) if p.requires_grad]
    for y in (Linear(*modules)(x), torch.cat([module(x) for module in modules], dim=-1)):
        found.append((y, *torch.autograd.grad(y.square().mean(), learned)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        assert ours.stride() == expected.stride()
    assert found[0][0].grad_fn is not None
    assert "OneDNN" in str(found[0][0].grad_fn.next_functions if len(modules) > 1 else found[0][0].grad_fn)


def test_products_in_another_precision_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_LARGE_PRODUCT", 0)
    linear, x = Linear(*layers("conv1d", 32)), torch.randn(5, 32)
    assert linear(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert "OneDNN" not in str(linear(x).grad_fn)


def test_onednn_is_left_alone_where_threads_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_DYNAMIC", "TRUE")
    assert not onednn.available.__wrapped__()
