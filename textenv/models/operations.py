"""Modules of transformers as single torch operations on their parameters.

Calling a module runs its hooks and looks its parameters up by name. Where one token is generated at a time, that takes
as long as the computation, so these functions read the module's parameters directly, at every call: a parameter that
is replaced is noticed. They are for modules without hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation

__all__ = ["Operation", "activation", "embedding", "gelu_tanh", "layer_norm", "rms_norm"]

Operation = Callable[[torch.Tensor], torch.Tensor]
"""A function from one tensor to one tensor."""


def embedding(module: nn.Module) -> Operation:
    """Return the lookup of an embedding: token ids or positions ``(...)`` to vectors ``(..., hidden_size)``."""
    if type(module) is not nn.Embedding or module.max_norm is not None or module.sparse:
        return module
    parameters, padding_idx = module._parameters, -1 if module.padding_idx is None else module.padding_idx
    return lambda ids: torch.embedding(cast(torch.Tensor, parameters["weight"]), ids, padding_idx)


def layer_norm(module: nn.LayerNorm) -> Operation:
    """Return a layer normalization, any shape to the same shape."""
    shape, epsilon, parameters = module.normalized_shape, module.eps, module._parameters
    return lambda x: torch.layer_norm(x, shape, parameters["weight"], parameters["bias"], epsilon)


def rms_norm(module: Any) -> Operation:
    """Return a root mean square normalization of Llama, Mistral, Qwen or Gemma, any shape to the same shape."""
    is_gemma = type(module).__name__.startswith("Gemma")  # its factor is 1 + weight, and its epsilon has another name
    epsilon, parameters = float(module.eps if is_gemma else module.variance_epsilon), module._parameters

    def normalize(x: torch.Tensor) -> torch.Tensor:
        weight = 1.0 + parameters["weight"] if is_gemma else parameters["weight"]
        return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)

    return normalize


def activation(module: nn.Module) -> Operation:
    """Return an activation as one operation, or the module itself where torch has no such operation."""
    if isinstance(module, (NewGELUActivation, GELUTanh)):
        return gelu_tanh
    if isinstance(module, GELUActivation):
        return functional.gelu
    return module


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Return GELU in its approximation by tanh."""
    return functional.gelu(x, approximate="tanh")
