"""Linear layers that read the same input, as one product.

With gradients, or on a GPU, the layers are called one by one. Repeated forwards without gradients on the CPU read a
packed copy of all their weights instead, by whichever product is faster for the number of rows; or a rounded copy, in
fewer bits (see ``rounding``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from textenv.models import onednn
from textenv.models.operations import Operation
from textenv.models.rounding import Precision, rounded_product

__all__ = ["Linear", "Product"]

Product = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Maps ``(rows, in)`` and a residual to add, or None, to ``(rows, out)``."""

_SMALL_PRODUCT = 2**20  # multiplications up to which torch computes a product in less time than a call of oneDNN takes
_LARGE_PRODUCT = 2**22  # multiplications from which oneDNN makes up for an autograd function written in Python


class Linear:
    """One or more linear layers that read the same input, applied as one, with what follows them.

    ``pack`` makes a copy of the weights that is fast without gradients; ``unpack`` drops it. Whoever packs has to
    unpack when the weights change.
    """

    def __init__(self, *layers: nn.Module, activation: Operation | None = None, adapted: bool = False) -> None:
        """Take the layers.

        Args:
            *layers: The layers, in the order of their outputs.
            activation: Applied to the outputs.
            adapted: Whether LoRA adapters in the layers are applied; else the layers below them are read.
        """
        self._layers = layers if adapted else tuple(getattr(layer, "base_layer", layer) for layer in layers)
        self._activation = activation
        self._packed: Product | None = None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``(rows, in)`` to ``(rows, out)``, the outputs of the layers side by side, and add ``residual``."""
        if self._packed is not None and not torch.is_grad_enabled():
            return self._packed(x, residual)
        outputs = [_apply_layer(layer, x) for layer in self._layers]
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return _finish(y, self._activation, residual)

    def pack(self, precision: Precision = "float32") -> bool:
        """Copy the weights into the form that is read fastest, if all layers are plain ones, in float32 on the CPU.

        Args:
            precision: What the copy is rounded to.

        Returns:
            Whether they are.
        """
        self._packed = self.packed(precision)
        return self._packed is not None

    def packed(self, precision: Precision) -> Product | None:
        """Return what ``pack`` makes, or None where it makes nothing."""
        bases = [_base_of(layer) for layer in self._layers]
        if any(
            base is None or base.weight.device.type != "cpu" or base.weight.dtype != torch.float32 for base in bases
        ):
            return None
        if precision != "float32":
            product, activation = rounded_product(*self._weight_and_bias(), precision), self._activation
            return lambda x, residual: _finish(product(x), activation, residual)
        trainable = any(p.requires_grad for p in self.parameters())
        return _PackedLinear(self._weight_and_bias, self.shape, self._activation, reused=not trainable)

    def _weight_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weights ``(out, in)`` and biases of all layers one below the other; of plain layers."""
        pairs = [_weight_and_bias(layer) for layer in self._layers]
        if len(pairs) == 1:
            return pairs[0]
        bias = None
        if any(b is not None for _, b in pairs):
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])
        return torch.cat([weight for weight, _ in pairs]), bias

    def parameters(self) -> list[nn.Parameter]:
        """Return those of all layers."""
        return [p for layer in self._layers for p in layer.parameters()]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of outputs of all layers, and of inputs; of plain layers."""
        bases = [cast(Any, _base_of(layer)) for layer in self._layers]
        shapes = [base.weight.shape[::-1] if isinstance(base, Conv1D) else base.weight.shape for base in bases]
        return sum(int(shape[0]) for shape in shapes), int(shapes[0][1])

    def unpack(self) -> None:
        """Read the layers' own weights again."""
        self._packed = None


class _PackedLinear:
    """A linear layer without gradients, in copies of its weight that are made when they are first read.

    What the copies are made from is read for it and not kept: with several layers, or an adapter, it is a copy itself.
    """

    def __init__(
        self,
        read: Callable[[], tuple[torch.Tensor, torch.Tensor | None]],
        shape: tuple[int, int],
        activation: Operation | None,
        *,
        reused: bool,
    ) -> None:
        """Take the layer.

        Args:
            read: Returns the weight ``(out, in)`` and the bias ``(out,)``, or None.
            shape: That of the weight.
            activation: Applied to the outputs.
            reused: Whether the weights stay as they are, so that packing may take long; else they are trained, and
                the copy lasts for one rollout.
        """
        self._read, self._activation = read, activation
        self._reused = reused
        self._bias: torch.Tensor | None = None
        self._transposed: torch.Tensor | None = None  # (in, out), for few rows
        self._packed: torch.Tensor | None = None  # in oneDNN's layout, for many
        self._max_torch_rows = sys.maxsize  # up to how many rows torch's product is the faster one
        if onednn.available():  # it computes a product and its activation in one operation, so it pays off sooner then
            limit = _SMALL_PRODUCT if activation is None else _SMALL_PRODUCT // 2
            self._max_torch_rows = limit // (shape[0] * shape[1])

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        return (self._by_torch if x.shape[0] <= self._max_torch_rows else self._by_onednn)(x, residual)

    def _by_torch(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if self._transposed is None:
            weight, self._bias = self._read()
            self._transposed = weight.T.contiguous()
        y = torch.mm(x, self._transposed) if self._bias is None else torch.addmm(self._bias, x, self._transposed)
        return _finish(y, self._activation, residual)

    def _by_onednn(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if self._packed is None:
            weight, self._bias = self._read()
            # Packing the weight of a Conv1D, which lies in memory as (in, out), takes longer than it saves in a rollout
            as_it_is = not self._reused and weight.T.is_contiguous()
            self._packed = weight if as_it_is else onednn.pack(weight)
        if self._activation is None and residual is not None:
            return onednn.linear_add(x, residual, self._packed, self._bias)
        if self._activation in onednn.ACTIVATIONS:
            return _finish(onednn.linear(x, self._packed, self._bias, self._activation), None, residual)
        return _finish(onednn.linear(x, self._packed, self._bias), self._activation, residual)


def _finish(y: torch.Tensor, activation: Operation | None, residual: torch.Tensor | None) -> torch.Tensor:
    """Apply an activation to a product and add a residual, each where there is one."""
    if activation is not None:
        y = activation(y)
    return y if residual is None else residual + y


def _apply_layer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call a layer, by oneDNN's products if they are faster and change nothing else."""
    if (
        type(layer) not in (nn.Linear, Conv1D)
        or type(layer.weight) is not nn.Parameter
        or any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in (x, layer.weight))
        or x.shape[0] * layer.weight.numel() < _LARGE_PRODUCT
        or torch.is_autocast_enabled("cpu")
        or not onednn.available()
    ):
        return cast(torch.Tensor, layer(x))
    return onednn.linear_with_gradients(x, layer.weight, cast(Any, layer.bias), type(layer) is Conv1D)


def _base_of(layer: Any) -> Any:
    """Return a linear layer without its adapters; None if it does anything else than multiply by its weight."""
    base = getattr(layer, "base_layer", layer)
    if type(base) not in (nn.Linear, Conv1D):
        return None
    by_peft = type(layer).__module__.startswith("peft.tuners.lora")
    return None if base is not layer and (not by_peft or layer.merged or layer.lora_variant) else base


def _weight_and_bias(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weight ``(out, in)`` and bias of a plain layer with its adapters."""
    base = _base_of(layer)
    weight, bias = base.weight.detach(), base.bias
    if base is not layer:
        for name in layer.active_adapters if not layer.disable_adapters else ():
            weight = weight + layer.get_delta_weight(name).detach()
    return weight.T if isinstance(base, Conv1D) else weight, None if bias is None else bias.detach()
