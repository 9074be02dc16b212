"""The buffers of keys and values that a ``Network`` has computed, and what one forward writes to and reads from them.

A buffer belongs to a layer and is a matrix of vectors, ``(vectors, head_size)``. It holds three blocks, one after the
other: the keys, ``(rows, kv_heads, capacity)``; the values, likewise; and the queries of a decoding step,
``(rows, heads)``. Queries are kept there because one operation then writes all that a decoding step computes, and
because they are read in the shape that attention needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["KeyValues"]


class KeyValues:
    """Keys and values of the tokens before, row by row, each row at positions of its own.

    Call ``prepare`` before a forward; its layers then call ``write``, and ``read`` what they attend to. There are three
    kinds of forward:

    - prefill: the rows begin with the new tokens, which attend to each other alone, so that nothing is read;
    - decoding: one new token in each of the first rows, whose queries are written and read here too;
    - extension: several new tokens in each of the first rows.

    Attributes:
        buffers: The buffer of each layer, ``(vectors, head_size)``.
        size: Rows and positions that a buffer has room for.
        prefill: Whether the prepared forward is a prefill.
        decoding: Whether it is a decoding step.
        length: Number of keys of each row that it reads.
        mask: Added to its attention scores, ``(batch, new, length)``; None where all keys are visible.
    """

    def __init__(self, heads: int, kv_heads: int) -> None:
        """Begin without buffers; the first forward makes them, once ``resize`` has said how large.

        Args:
            heads: Number of heads of the queries.
            kv_heads: Number of heads of keys and values, a divisor of ``heads``.
        """
        self.buffers: list[torch.Tensor] = []
        self.size = (0, 0)
        self.prefill, self.decoding = False, False
        self.length = 0
        self.mask: torch.Tensor | None = None
        self._heads = heads, kv_heads
        self._batch = 0
        self._rows = self._positions = torch.zeros(0, dtype=torch.int64)
        # Computed when they are first needed, and kept as long as they are right.
        self._row_offsets: torch.Tensor | None = None  # (batch, 1, vectors of a token); decoding steps share them
        self._strides: torch.Tensor | None = None  # (vectors of a token,); likewise
        self._write_indices: torch.Tensor | None = None  # (vectors of all tokens,); the layers share them
        self._broadcast_mask: torch.Tensor | None = None  # likewise
        self._views: list[_Views] = []  # one a layer, for ``_batch`` rows

    def prepare(
        self, rows: torch.Tensor, positions: torch.Tensor, length: int, mask: torch.Tensor | None, *, prefill: bool
    ) -> None:
        """Say where the next forward writes, and what it reads.

        Args:
            rows: Row of the buffers of each row of the batch, ``(batch,)``; ``0 .. batch-1`` unless ``prefill``.
            positions: Positions of the new tokens, ``(batch, new)``.
            length: Number of keys of each row that it reads, from position 0 on; of no effect in a prefill.
            mask: Added to the attention scores, ``(batch, new, length)``; None where all keys are visible, and in a
                prefill.
            prefill: Whether the rows begin with the new tokens.
        """
        batch, decoding = rows.shape[0], not prefill and positions.shape[1] == 1
        if not (decoding and self.decoding and self._batch == batch):
            self._row_offsets = None
        if self._batch != batch:
            self._views = []
        self._batch, self._rows, self._positions = batch, rows, positions
        self.prefill, self.decoding, self.length, self.mask = prefill, decoding, length, mask
        self._write_indices = self._broadcast_mask = None

    def share_buffers(self) -> KeyValues:
        """Return another that reads and writes the same buffers but is prepared by itself, until they are resized."""
        other = KeyValues(*self._heads)
        other.buffers, other.size = self.buffers, self.size
        return other

    def resize(self, rows: int, capacity: int) -> None:
        """Enlarge the buffers to so many rows and positions, keeping what they hold."""
        before = [self._keys_and_values(buffer) for buffer in self.buffers]
        self.size = (rows, capacity)
        self._row_offsets, self._views = None, []
        for layer, old in enumerate(before):
            self.buffers[layer] = self._new_buffer(old)
            self._keys_and_values(self.buffers[layer])[:, : old.shape[1], :, : old.shape[3]] = old

    def swap(self, rows: torch.Tensor, others: torch.Tensor, length: int) -> None:
        """Exchange rows with other rows, ``(count,)`` each, up to position ``length``."""
        for held in map(self._keys_and_values, self.buffers):
            moved = held[:, rows, :, :length]
            held[:, rows, :, :length] = held[:, others, :, :length]
            held[:, others, :, :length] = moved

    def copy(self, rows: torch.Tensor, others: torch.Tensor, length: int) -> None:
        """Copy rows to other rows, ``(count,)`` each, up to position ``length``; all are read before any is written."""
        for held in map(self._keys_and_values, self.buffers):
            held[:, others, :, :length] = held[:, rows, :, :length]

    def write(self, layer: int, qkv: torch.Tensor) -> None:
        """Write the keys and values of the new tokens, and in a decoding step their queries.

        Args:
            layer: Number of the layer; a new one is the next.
            qkv: Queries, keys and values, ``(tokens, heads + 2 * kv_heads, head_size)``.
        """
        if layer == len(self.buffers):
            with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
                self.buffers.append(self._new_buffer(qkv))
        if layer == len(self._views):
            self._views.append(self._views_of(self.buffers[layer]))
        if self._write_indices is None:
            self._write_indices = self._find_write_indices()
        vectors = qkv if self.decoding else qkv[:, self._heads[0] :]
        self._views[layer].buffer.index_copy_(0, self._write_indices, vectors.reshape(-1, qkv.shape[2]))

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and the values to attend to, each ``(batch * kv_heads, length, head_size)``."""
        views = self._views[layer]
        return views.keys.narrow(1, 0, self.length), views.values.narrow(1, 0, self.length)

    def queries(self, layer: int) -> torch.Tensor:
        """Return the queries of a decoding step, ``(batch * kv_heads, heads // kv_heads, head_size)``.

        The queries that share a head of keys stand there as a sequence, so that no key has to be repeated.
        """
        return self._views[layer].queries

    def broadcast_mask(self) -> torch.Tensor:
        """Return the mask of a decoding step, ``(batch * kv_heads, heads // kv_heads, length)``, for ``queries``."""
        if self._broadcast_mask is None:
            assert self.mask is not None
            batch, _, length = self.mask.shape
            heads, kv_heads = self._heads
            mask = self.mask[:, None].expand(batch, kv_heads, heads // kv_heads, length)
            self._broadcast_mask = mask.reshape(-1, heads // kv_heads, length)
        return self._broadcast_mask

    def _new_buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return an empty buffer of the type, device and head size of ``tensor``, ``(..., head_size)``."""
        (rows, capacity), (heads, kv_heads) = self.size, self._heads
        return tensor.new_zeros(2 * rows * kv_heads * capacity + rows * heads, tensor.shape[-1])

    def _keys_and_values(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return a view of the keys and values of a buffer, ``(2, rows, kv_heads, capacity, head_size)``."""
        (rows, capacity), (_, kv_heads) = self.size, self._heads
        return buffer[: 2 * rows * kv_heads * capacity].view(2, rows, kv_heads, capacity, -1)

    def _views_of(self, buffer: torch.Tensor) -> _Views:
        rows, (heads, kv_heads) = self.size[0], self._heads
        keys, values = (part[: self._batch].flatten(0, 1) for part in self._keys_and_values(buffer).unbind())
        queries = buffer[-rows * heads :].view(rows * kv_heads, heads // kv_heads, -1)
        return _Views(buffer, queries[: self._batch * kv_heads], keys, values)

    def _find_write_indices(self) -> torch.Tensor:
        """Return the index in a buffer of each vector that is written, token by token, ``(vectors,)``.

        A vector of a key or value lies at the offset of its row and head plus its position; a query has no position.
        """
        if self._row_offsets is None:
            self._row_offsets, self._strides = self._find_row_offsets()
        assert self._strides is not None
        return torch.addcmul(self._row_offsets, self._positions[:, :, None], self._strides).flatten()

    def _find_row_offsets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index of each vector of a token at position 0, and how many further it is at position 1.

        Returns:
            Shapes ``(batch, 1, vectors)`` and ``(vectors,)``. The vectors of a token are its queries, in a decoding
            step alone, its keys and its values, one for each head.
        """
        (rows, capacity), (heads, kv_heads), device = self.size, self._heads, self._rows.device
        offsets = torch.arange(2 * rows * kv_heads, device=device) * capacity
        offsets = offsets.view(2, rows, kv_heads)[:, self._rows].transpose(0, 1).flatten(1)
        strides = torch.ones(2 * kv_heads, dtype=torch.int64, device=device)
        if self.decoding:
            queries = torch.arange(rows * heads, device=device) + 2 * rows * kv_heads * capacity
            offsets = torch.cat((queries.view(rows, heads)[: self._batch], offsets), dim=1)
            strides = torch.cat((strides.new_zeros(heads), strides))
        return offsets[:, None], strides


class _Views(NamedTuple):
    """A layer's buffer, and views of it for the first rows, head by head."""

    buffer: torch.Tensor  # (vectors, head_size)
    queries: torch.Tensor  # (batch * kv_heads, heads // kv_heads, head_size)
    keys: torch.Tensor  # (batch * kv_heads, capacity, head_size)
    values: torch.Tensor  # likewise
