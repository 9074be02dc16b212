"""Linear layers by oneDNN, the CPU library in torch, whose products are faster than torch's own on some processors.

The operators are internal to torch, and builds may lack them: call ``available`` first. All tensors are float32 on the
CPU, or all of a product bfloat16 where ``packs_bfloat16`` says so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from textenv.models.operations import Operation, gelu_tanh

__all__ = ["ACTIVATIONS", "available", "linear", "linear_add", "linear_with_gradients", "pack", "packs_bfloat16"]

ACTIVATIONS: dict[Operation | None, tuple[str, str]] = {
    None: ("none", ""),
    gelu_tanh: ("gelu", "tanh"),
    functional.gelu: ("gelu", "none"),
}
"""The activations that oneDNN can apply within a product, each with oneDNN's name and variant of it."""

_PACKED_FOR_ROWS = 16  # the batch size that the packed layout is chosen for


def pack(weight: torch.Tensor, rows: int = _PACKED_FOR_ROWS) -> torch.Tensor:
    """Return a copy of a weight ``(out, in)`` in the memory layout that oneDNN reads fastest."""
    return cast(torch.Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows))


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: Operation | None = None
) -> torch.Tensor:
    """Return ``activation(x @ weight.T + bias)``, without gradients.

    Args:
        x: Input, ``(rows, in)``.
        weight: The weight ``(out, in)``, packed or not.
        bias: The bias ``(out,)``, if there is one.
        activation: One of ``ACTIVATIONS``.

    Returns:
        Shape ``(rows, out)``.
    """
    name, variant = ACTIVATIONS[activation]
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], variant))


def linear_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``x @ weight.T + bias + residual``, without gradients; shapes as in ``linear``."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add"))


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer whose forward and backward products are oneDNN's."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        """Map ``(rows, in)`` to ``(rows, out)`` by a weight ``(out, in)``; ``(in, out)`` if transposed."""
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return linear(x, weight.T if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of ``x``, the weight and the bias."""
        x, weight = ctx.saved_tensors
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = linear(grad, weight if ctx.transposed else weight.T)
        if ctx.needs_input_grad[1]:
            weight_grad = linear(x.T, grad.T) if ctx.transposed else linear(grad.T, x.T)
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum(dim=0)
        return x_grad, weight_grad, bias_grad, None


linear_with_gradients: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, bool], torch.Tensor] = (
    _OneDNNLinear.apply
)
"""``linear_with_gradients(x, weight, bias, transposed)``: a linear layer that can be differentiated once.

``x`` is ``(rows, in)``; ``weight`` is ``(out, in)``, or ``(in, out)`` if ``transposed``; the result is ``(rows, out)``.
"""


@functools.cache
def available() -> bool:
    """Tell whether this build of torch has these operators, and whether they compute what torch computes.

    They are not used under ``OMP_DYNAMIC=true``: on a machine with other load, OpenMP then starts fewer threads than
    oneDNN divides the work among, and the products lack the parts of the missing threads.
    """
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true":
        return False
    x, weight, bias = torch.linspace(-1, 1, 96).view(2, 48), torch.linspace(-1, 1, 3072).view(64, 48), torch.ones(64)
    expected = functional.linear(x, weight, bias)
    try:
        if not torch.allclose(linear(x.T.contiguous().T, weight.T.contiguous().T, bias), expected, atol=1e-5):
            return False
        packed = pack(weight, len(x))
        for activation in ACTIVATIONS:
            activated = expected if activation is None else activation(expected)
            if not torch.allclose(linear(x, packed, bias, activation), activated, atol=1e-5):
                return False
        return bool(torch.allclose(linear_add(x, expected, packed), 2 * expected - 1, atol=1e-5))
    except (AttributeError, RuntimeError):
        return False


@functools.cache
def packs_bfloat16() -> bool:
    """Tell whether oneDNN computes products of packed bfloat16 on this processor, and what torch computes."""
    if not available():
        return False
    x, weight = torch.linspace(-1, 1, 96).view(2, 48).bfloat16(), torch.linspace(-1, 1, 3072).view(64, 48).bfloat16()
    try:
        found = linear(x, pack(weight, len(x)))
    except RuntimeError:  # it asks for AVX-512
        return False
    return bool(torch.allclose(found.float(), functional.linear(x, weight).float(), rtol=0.02, atol=0.02))
