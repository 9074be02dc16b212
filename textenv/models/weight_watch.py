"""Noticing that a model's weights or modules have changed, so that what was computed from them is computed again."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from textenv.models.families import hooks_of
from textenv.types import IntArray

__all__ = ["WeightWatch"]


class WeightWatch:
    """Notices when a model's weights change, and when its modules do.

    Torch counts in-place writes, and storage that is exchanged has another address. Writes through ``.data`` do neither
    (``polyak_update`` of stable-baselines3 makes such), so a few numbers of every parameter are compared too, from its
    diagonal: a write to some rows or columns is likely to be among them, one to a whole parameter certain. Views of
    the parameters are kept, so that no address can be used again by another parameter.

    Attributes:
        addresses_changed: Whether ``weights_changed`` found parameters at other addresses when it was last called.
    """

    def __init__(self, model: nn.Module, *, adapted: bool = True) -> None:
        """Watch a model.

        Args:
            model: The model.
            adapted: Whether the weights of LoRA adapters in it count.
        """
        self.addresses_changed = False
        self._model = model
        self._adapted = adapted
        self._dictionaries: list[dict[str, Any]] = []  # of modules and parameters, by name
        self._hooks: list[Any] = []
        self._structure: list[Any] = []  # the modules, the parameters and the numbers of hooks
        self._parameters: list[nn.Parameter] = []
        self._counted: list[nn.Parameter] = []  # those whose writes torch counts
        self._addresses: list[int] = []
        self._versions: list[int] = []
        self._samples: list[Any] = []  # views of the parameters; NumPy arrays where all are on the CPU
        self._sampled_bits: IntArray = np.zeros(0, dtype=np.int64)

    def structure_changed(self) -> bool:
        """Tell whether modules, parameters or hooks were added or removed since the last call; True at first."""
        structure = self._read_structure()
        if (
            self._structure
            and len(structure) == len(self._structure)
            and all(map(operator.is_, structure, self._structure))
        ):
            return False
        modules = list(self._model.modules())
        dictionaries: list[dict[str, Any]] = [d for m in modules for d in (m._modules, m._parameters)]
        self._dictionaries = [dictionary for dictionary in dictionaries if dictionary]
        self._hooks = [hooks for m in modules for hooks in hooks_of(m)]
        self._structure = self._read_structure()
        named = self._model.named_parameters()
        self._parameters = [p for name, p in named if self._adapted or ".lora_" not in name]
        self._counted = [p for p in self._parameters if not p.is_inference()]
        self._addresses = []
        return True

    def _read_structure(self) -> list[Any]:
        structure = [value for dictionary in self._dictionaries for value in dictionary.values()]
        return structure + [len(hooks) for hooks in self._hooks if hooks]

    def weights_changed(self) -> bool:
        """Tell whether the parameters have changed since the last call; True at first."""
        addresses = [p.data_ptr() for p in self._parameters]
        versions = [p._version for p in self._counted]
        self.addresses_changed = addresses != self._addresses
        if self.addresses_changed:
            samples = [_as_integers(_diagonal(p.detach())) for p in self._parameters]
            # Not by .numpy(), after which a storage cannot be resized, as FSDP does.
            self._samples = [np.from_dlpack(s) for s in samples] if all(s.is_cpu for s in samples) else samples
        bits = _concatenate(self._samples)
        unchanged = (addresses, versions) == (self._addresses, self._versions) and np.array_equal(
            bits, self._sampled_bits
        )
        self._addresses, self._versions, self._sampled_bits = addresses, versions, bits
        return not unchanged


def _concatenate(parts: Sequence[Any]) -> IntArray:
    """Return the numbers of many small arrays or tensors, as one array."""
    # NumPy takes a fifth of the time that torch takes.
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(list(parts)).cpu().numpy()


def _as_integers(sample: torch.Tensor) -> torch.Tensor:
    """Return the bits of numbers as integers, so that a NaN equals itself."""
    return sample.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[sample.element_size()])


def _diagonal(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of up to 3 numbers along a tensor's diagonal.

    There are no more, because each is read before every token, from memory that is in no cache of the processor.
    """
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    while tensor.ndim > 1:
        tensor = tensor.diagonal()
    return tensor[:: max(1, (len(tensor) + 1) // 2)]
