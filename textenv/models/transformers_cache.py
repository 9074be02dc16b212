"""Keys and values of an architecture that runs through its own ``forward``, in buffers that ``PrefixCache`` can use.

``KeyValues`` is the counterpart for a ``Network``; both have ``prepare``, ``resize`` and ``swap``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from textenv.models.forwards import trunk_of

__all__ = ["RaggedCache"]


class RaggedCache(Cache):
    """What the attention layers of transformers write to and read from, each row at positions of its own.

    The buffers are ``(rows, heads, capacity, head_size)`` a layer.
    """

    def __init__(self) -> None:
        """Begin without buffers; the first forward makes them, once ``resize`` has said how large."""
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._size = (0, 0)  # rows and capacity
        self._rows = self._positions = torch.zeros(0, dtype=torch.int64)
        self._length = 0  # number of keys that are read; 0 in a prefill
        self._mask: torch.Tensor | None = None

    def prepare(
        self, rows: torch.Tensor, positions: torch.Tensor, length: int, mask: torch.Tensor | None, *, prefill: bool
    ) -> None:
        """Say where the next forward writes, and what it reads; as ``KeyValues.prepare``."""
        self._rows, self._positions, self._length, self._mask = rows, positions, 0 if prefill else length, mask

    def run(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of new tokens ``(batch, new)``, shape ``(batch, new, hidden_size)``."""
        mask = self._mask
        if mask is None:  # a mask is passed all the same: transformers would derive one from the cache's length
            prefill = self._length == 0
            keys = torch.arange(ids.shape[1] if prefill else self._length, device=ids.device)
            mask = torch.zeros(len(ids), ids.shape[1], len(keys), dtype=model.dtype, device=ids.device)
            if prefill:
                mask.masked_fill_(keys[None, :] > keys[:, None], torch.finfo(mask.dtype).min)
        output: torch.Tensor = trunk_of(model)(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=self._positions,
            past_key_values=self,
            use_cache=True,
        ).last_hidden_state
        return output

    def resize(self, rows: int, capacity: int) -> None:
        """Enlarge the buffers to so many rows and positions, keeping what they hold."""
        self._size = (rows, capacity)
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = self._new_buffer(old)
                buffers[layer][: old.shape[0], :, : old.shape[2]] = old

    def swap(self, rows: torch.Tensor, others: torch.Tensor, length: int) -> None:
        """Exchange rows with other rows, ``(count,)`` each, up to position ``length``."""
        for buffer in (*self._keys, *self._values):
            moved = buffer[rows, :, :length]
            buffer[rows, :, :length] = buffer[others, :, :length]
            buffer[others, :, :length] = moved

    def copy(self, rows: torch.Tensor, others: torch.Tensor, length: int) -> None:
        """Copy rows to other rows, ``(count,)`` each, up to position ``length``; all are read before any is written."""
        for buffer in (*self._keys, *self._values):
            buffer[others, :, :length] = buffer[rows, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values ``(batch, heads, new, head_size)``; return those of the rows from their start."""
        while len(self._keys) <= layer_idx:
            self._keys.append(self._new_buffer(key_states))
            self._values.append(self._new_buffer(value_states))
        result = []
        for buffer, states in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            buffer[self._rows[:, None], :, self._positions] = states.transpose(1, 2)
            result.append(buffer[: len(states), :, : self._length] if self._length else states)
        return result[0], result[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given, never derived from the cache."""
        return 0

    def _new_buffer(self, states: torch.Tensor) -> torch.Tensor:
        """Return an empty buffer of the type, device, heads and head size of ``(batch, heads, new, head_size)``."""
        rows, capacity = self._size
        return states.new_zeros(rows, states.shape[1], capacity, states.shape[3])
