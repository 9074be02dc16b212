"""The value function of a policy: a linear head on hidden states, and the file that keeps it beside the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from textenv.types import TextEnvError

__all__ = ["apply_value_head", "load_values", "new_value_head", "save_values"]

_VALUE_FILE = "value.safetensors"


def new_value_head(hidden_size: int, device: torch.device) -> nn.Linear:
    """Return a map of hidden states to values, ``(hidden_size) -> 1``, that is 0 everywhere."""
    head = nn.Linear(hidden_size, 1, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def apply_value_head(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Return the values of hidden states ``(..., hidden_size)`` in float32, shape ``(...)``."""
    weight, bias = head.weight, head.bias  # (1, hidden_size) and (1,)
    return torch.addmv(bias, hidden.flatten(0, -2).to(weight.dtype), weight[0]).view(hidden.shape[:-1]).float()


def save_values(parameters: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Save the parameters of a value function by their names, as safetensors."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in parameters.items()}
    safetensors.torch.save_file(tensors, folder / _VALUE_FILE)


def load_values(parameters: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Read what ``save_values`` wrote into the parameters of a value function, all of them or none.

    Raises:
        TextEnvError: It is not there or does not fit.
    """
    path = folder / _VALUE_FILE
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise TextEnvError(f"{path}: cannot be read ({error}); was the agent saved there?") from error
    for name in sorted(tensors.keys() | parameters.keys()):
        found, wanted = (tuple(each[name].shape) if name in each else None for each in (tensors, parameters))
        if found != wanted:
            raise TextEnvError(
                f"{path}: {name} has shape {found}, expected {wanted} (None: not there). Load it into a policy of the "
                "same model and the same kind of value function."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
