"""The buffers of keys and values against plain arrays that are indexed by row and position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textenv.models.key_values import KeyValues

HEADS, KV_HEADS, SIZE = 4, 2, 3
LAYERS = 2


class Expected:
    """Keys and values ``(layers, 2, rows, positions, kv_heads, size)``, as they should be held."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.vectors = torch.zeros(LAYERS, 2, rows, capacity, KV_HEADS, SIZE)

    def write(self, layer: int, rows: torch.Tensor, positions: torch.Tensor, qkv: torch.Tensor) -> None:
        batch, new = positions.shape
        keys_values = qkv.view(batch, new, HEADS + 2 * KV_HEADS, SIZE)[:, :, HEADS:]
        for row in range(batch):
            for token in range(new):
                keys, values = keys_values[row, token].split(KV_HEADS)
                self.vectors[layer, 0, rows[row], positions[row, token]] = keys
                self.vectors[layer, 1, rows[row], positions[row, token]] = values

    def read(self, layer: int, batch: int, length: int) -> list[torch.Tensor]:
        """Return keys and values of the first rows, ``(batch * kv_heads, length, size)`` each."""
        return [part[:batch, :length].transpose(1, 2).flatten(0, 1) for part in self.vectors[layer]]


def forward(held: KeyValues, expected: Expected, rows: list[int], positions: list[list[int]], *, prefill: bool) -> None:
    """Write random vectors to both in every layer; unless it is a prefill, compare what is read."""
    into, at = torch.tensor(rows), torch.tensor(positions)
    length = int(at.max()) + 1
    held.prepare(into, at, length, None, prefill=prefill)
    for layer in range(LAYERS):
        qkv = torch.randn(at.numel(), HEADS + 2 * KV_HEADS, SIZE)
        held.write(layer, qkv)
        expected.write(layer, into, at, qkv)
        if prefill:
            continue
        for found, wanted in zip(held.read(layer), expected.read(layer, len(rows), length), strict=True):
            assert torch.equal(found, wanted)
        if held.decoding:
            queries = qkv[:, :HEADS].reshape(len(rows) * KV_HEADS, HEADS // KV_HEADS, SIZE)
            assert torch.equal(held.queries(layer), queries)


def filled() -> tuple[KeyValues, Expected]:
    """Return buffers of 3 rows and 8 positions, in which each row holds 3 tokens."""
    torch.manual_seed(0)
    held, expected = KeyValues(HEADS, KV_HEADS), Expected(3, 8)
    held.resize(3, 8)
    forward(held, expected, [2, 0, 1], [[0, 1, 2]] * 3, prefill=True)
    return held, expected


def test_every_kind_of_forward_writes_and_reads_its_own_positions() -> None:
    held, expected = filled()
    forward(held, expected, [0, 1, 2], [[3], [1], [2]], prefill=False)  # decoding steps
    forward(held, expected, [0, 1, 2], [[4], [2], [3]], prefill=False)
    forward(held, expected, [0, 1], [[5], [3]], prefill=False)  # of fewer rows
    forward(held, expected, [0, 1], [[6, 7], [4, 5]], prefill=False)  # an extension
    forward(held, expected, [2, 1], [[0], [0]], prefill=True)  # a prefill of one token, which is no decoding step
    forward(held, expected, [0, 1, 2], [[7], [6], [4]], prefill=False)


def test_larger_buffers_hold_what_the_smaller_ones_held() -> None:
    held, expected = filled()
    larger = Expected(5, 11)
    larger.vectors[:, :, :3, :8] = expected.vectors
    held.resize(5, 11)
    forward(held, larger, [0, 1, 2, 3, 4], [[3], [3], [3], [10], [0]], prefill=False)


def test_rows_are_exchanged_up_to_a_length() -> None:
    held, expected = filled()
    forward(held, expected, [0, 1, 2], [[3], [3], [3]], prefill=False)
    held.swap(torch.tensor([0]), torch.tensor([2]), 3)
    expected.vectors[:, :, [0, 2], :3] = expected.vectors[:, :, [2, 0], :3]
    forward(held, expected, [0, 1, 2], [[4], [4], [4]], prefill=False)


def test_rows_are_copied_up_to_a_length_from_what_they_were() -> None:
    held, expected = filled()
    forward(held, expected, [0, 1, 2], [[3], [3], [3]], prefill=False)
    held.copy(torch.tensor([0, 2]), torch.tensor([2, 1]), 3)
    expected.vectors[:, :, [2, 1], :3] = expected.vectors[:, :, [0, 2], :3]
    forward(held, expected, [0, 1, 2], [[4], [4], [4]], prefill=False)


def test_shared_buffers_are_prepared_apart() -> None:
    held, expected = filled()
    other = held.share_buffers()
    held.prepare(torch.arange(3), torch.tensor([[3], [3], [3]]), 4, None, prefill=False)
    forward(other, expected, [0, 1], [[5], [4]], prefill=False)
    qkv = torch.randn(3, HEADS + 2 * KV_HEADS, SIZE)
    held.write(0, qkv)
    expected.write(0, torch.arange(3), torch.tensor([[3], [3], [3]]), qkv)
    for found, wanted in zip(held.read(0), expected.read(0, 3, 4), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_mask_is_repeated_for_every_head(batch: int) -> None:
    held, _ = filled()
    mask = torch.from_numpy(np.random.default_rng(0).normal(size=(batch, 1, 4)))
    held.prepare(torch.arange(batch), torch.full((batch, 1), 3), 4, mask, prefill=False)
    broadcast = held.broadcast_mask().view(batch, HEADS, 4)
    for head in range(HEADS):
        assert torch.equal(broadcast[:, head], mask[:, 0])
