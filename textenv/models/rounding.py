"""Linear layers in fewer bits, without gradients: weights in bfloat16, or in int8 with activations rounded on the fly.

In int8 a weight is rounded by output channel, ``w ~ s * q`` with ``q`` from -63 to 63 and ``s = max |w| / 63``, and an
activation by row, ``x ~ t * p`` with ``p`` from -127 to 127 and ``t = max |x| / 127`` (Jacob et al. 2018, section 2;
Dettmers et al. 2022, section 2, call it vector-wise). A row is rounded by itself, so what the layer returns for a token
depends neither on the other rows of the batch nor on what is computed in one forward. Processors without VNNI add pairs
of products in 16 bits, which more steps would overflow; the numbers are the same on all. Activations get the eighth bit
and not weights, because they have the outliers: in the bundled model that divides the KL from float32 by three.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch.nn import functional

from textenv.models import onednn

__all__ = ["Precision", "RoundedProduct", "multiplies_bfloat16", "multiplies_int8", "round_rows", "rounded_product"]

Precision = Literal["float32", "bfloat16", "int8"]
"""Of linear layers in forwards without gradients."""

RoundedProduct = Callable[[torch.Tensor], torch.Tensor]
"""Maps ``(rows, in)`` to ``x @ weight.T + bias``, ``(rows, out)``, both in float32."""

_WEIGHT_LEVELS, _ACTIVATION_LEVELS = 63, 127
_TINY = 1e-30  # what an activation's scale is at least, so that a row of zeros stays one
_ENGINE = "fbgemm"


def rounded_product(
    weight: torch.Tensor, bias: torch.Tensor | None, precision: Literal["bfloat16", "int8"]
) -> RoundedProduct:
    """Return a linear layer with a rounded copy of its weight.

    Args:
        weight: In float32 on the CPU, ``(out, in)``.
        bias: Shape ``(out,)``, or None; it is not rounded.
        precision: What it is rounded to.
    """
    return _in_bfloat16(weight, bias) if precision == "bfloat16" else _in_int8(weight, bias)


def _in_bfloat16(weight: torch.Tensor, bias: torch.Tensor | None) -> RoundedProduct:
    rounded = weight.bfloat16().contiguous()
    packed = onednn.pack(rounded) if onednn.packs_bfloat16() else None

    def product(x: torch.Tensor) -> torch.Tensor:
        half = x.bfloat16()
        y = (functional.linear(half, rounded) if packed is None else onednn.linear(half, packed)).float()
        return y if bias is None else y + bias

    return product


def _in_int8(weight: torch.Tensor, bias: torch.Tensor | None) -> RoundedProduct:
    levels, scales = round_rows(weight, _WEIGHT_LEVELS)
    packed = _pack(levels.to(torch.int8), scales[:, 0])

    def product(x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(dim=1, keepdim=True).clamp_(min=_TINY)
        y = _multiply(x / largest, packed)
        return y * largest if bias is None else torch.addcmul(bias, y, largest)

    return product


def round_rows(x: torch.Tensor, levels: int = _ACTIVATION_LEVELS) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to whole multiples of a scale of its own.

    Args:
        x: Shape ``(rows, columns)``.
        levels: The largest multiple on either side of 0.

    Returns:
        The multiples ``(rows, columns)`` and the scales ``(rows, 1)``, whose product is about ``x``.
    """
    scales = x.abs().amax(dim=1, keepdim=True).clamp(min=_TINY) / levels
    return torch.round(x / scales), scales


def _pack(levels: torch.Tensor, scales: torch.Tensor) -> Any:
    """Return a weight of whole numbers ``(out, in)``, each row with a scale, as FBGEMM reads it."""
    before = torch.backends.quantized.engine
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    torch.backends.quantized.engine = _ENGINE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor")  # deprecated, and without a successor yet
            weight = cast(Any, torch)._make_per_channel_quantized_tensor(levels, scales.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = before


def _multiply(x: torch.Tensor, packed: Any) -> torch.Tensor:
    """Return the product of rows whose numbers are from -1 to 1 with a packed weight, ``(rows, out)``."""
    scale, zero = 1.0 / _ACTIVATION_LEVELS, _ACTIVATION_LEVELS + 1
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return cast(torch.Tensor, product(x, scale, zero, packed))


@functools.cache
def multiplies_int8() -> bool:
    """Tell whether this build of torch has FBGEMM's products, and whether they are what they should be.

    All numbers are as large as they can be, where products that overflow show.
    """
    if _ENGINE not in torch.backends.quantized.supported_engines:
        return False
    try:
        x, weight = torch.ones(3, 64), torch.ones(32, 64)
        weight[::2] = -1.0
        return bool(torch.allclose(_in_int8(weight, None)(x), x @ weight.T, atol=1e-3))
    except (AttributeError, RuntimeError):
        return False


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 natively: of CPUs those with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch >= 2.12
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False
