"""A model's own ``forward``, without any cache: what the faster ways are compared with, and fall back on."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

__all__ = ["additive_mask", "agree", "index_tensor", "plain_hidden_states", "plain_mode", "trunk_of"]


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal language model below its head."""
    trunk: nn.Module = model.base_model
    return trunk


def plain_hidden_states(model: PreTrainedModel, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states by the model's own ``forward``, without any cache.

    Args:
        model: A causal language model.
        input_ids: Token ids, padded on the right, shape ``(batch, time)``.
        lengths: Number of tokens of each row, shape ``(batch,)``.

    Returns:
        Shape ``(batch, time, hidden_size)``; those of padding have no meaning.
    """
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    mask = (steps[None, :] < lengths[:, None]).long()
    trunk = trunk_of(model)
    hidden: torch.Tensor = trunk(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


_NO_CHANGE = contextlib.nullcontext()


def plain_mode(device: torch.device) -> AbstractContextManager[Any]:
    """Compute without gradients, at the weights' own precision, whatever the caller's modes are.

    Inference tensors are kept out of the cache: outside inference mode nothing could be written to it again.
    """
    if not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(device.type):
        return torch.no_grad() if torch.is_grad_enabled() else _NO_CHANGE
    modes = contextlib.ExitStack()
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.no_grad())
    modes.enter_context(torch.autocast(device.type, enabled=False))
    return modes


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention scores of a type: 0 where a key is visible, else the lowest number."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def index_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return a copy of an array of token ids, lengths or places as int64 on a device, same shape."""
    return torch.from_numpy(np.array(array, dtype=np.int64)).to(device)  # a copy: torch warns of read-only arrays


def agree(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two computations of the same numbers agree, as far as the precision of weights of a type allows."""
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= theirs.abs().max() * (1e-3 if dtype == torch.float32 else 0.1))
