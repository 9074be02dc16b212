"""Decoding steps as CUDA graphs: one launch in place of hundreds, which would take most of the time.

A graph repeats the operations that were recorded, on tensors of the same addresses and shapes. So tokens and positions
are copied into fixed buffers; batches are padded to a power of two, by rows that write to a scratch position; and the
number of keys that are read is rounded up to a power of two, the keys beyond each text being masked.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from textenv.models.key_values import KeyValues
from textenv.models.network import Network
from textenv.types import IntArray

__all__ = ["SCRATCH", "Graphs", "graphs_run_on", "record"]

SCRATCH = 1
"""Positions that the buffers need beyond their capacity; padding rows write there, and nothing reads it."""

_MIN_KEYS = 64


def graphs_run_on(device: torch.device) -> bool:
    """Tell whether decoding steps are recorded on a device: on GPUs, unless ``TEXTENV_CUDA_GRAPHS=0`` is set."""
    return device.type == "cuda" and os.environ.get("TEXTENV_CUDA_GRAPHS") != "0"


class Graphs:
    """Decoding steps of a network, each recorded when its batch size and number of keys are first met.

    The addresses of the weights and the size of the buffers have to stay as they are.
    """

    def __init__(self, network: Network, keys_values: KeyValues, weight: torch.Tensor) -> None:
        """Begin without any recorded.

        Args:
            network: The network to run.
            keys_values: Keys and values of the tokens before, in buffers with ``SCRATCH`` further positions.
            weight: A weight of the network, for its device and data type.
        """
        self._network, self._keys_values, self._weight = network, keys_values, weight
        self._steps: dict[tuple[int, int], _Step] = {}

    def run(self, tokens: IntArray, positions: IntArray) -> torch.Tensor:
        """Return the hidden states of one token in each of the first rows; the next run overwrites them.

        Args:
            tokens: Token ids, ``(batch,)``.
            positions: Positions of the tokens, ``(batch,)``.

        Returns:
            Shape ``(batch, hidden_size)``.
        """
        rows, capacity = self._keys_values.size
        batch = min(_power_of_two(len(tokens)), rows)
        keys = min(max(_MIN_KEYS, _power_of_two(int(positions.max()) + 1)), capacity - SCRATCH)
        if (batch, keys) not in self._steps:
            self._steps[batch, keys] = _Step(self._network, self._keys_values, self._weight, batch, keys)
        return self._steps[batch, keys](tokens, positions)


class _Step:
    """A decoding step of one batch size and number of keys, recorded at its first call."""

    def __init__(self, network: Network, keys_values: KeyValues, weight: torch.Tensor, batch: int, keys: int) -> None:
        self._network, self._keys = network, keys
        self._keys_values = keys_values.share_buffers()  # whose other tensors stay at the addresses in the recording
        self._rows, self._key_positions = (torch.arange(size, device=weight.device) for size in (batch, keys))
        # Token ids, positions that the mask allows, and positions to write to, (3, batch, 1).
        self._inputs = torch.zeros(3, batch, 1, dtype=torch.int64, device=weight.device)
        self._dtype = weight.dtype
        self._recorded: tuple[Callable[[], None], torch.Tensor] | None = None

    def __call__(self, tokens: IntArray, positions: IntArray) -> torch.Tensor:
        staged = np.zeros(self._inputs.shape[:2], dtype=np.int64)
        staged[2] = self._keys_values.size[1] - 1  # the scratch position, for rows that pad the batch
        staged[:, : len(tokens)] = tokens, positions, positions
        self._inputs.copy_(torch.from_numpy(staged)[..., None], non_blocking=True)
        if self._recorded is None:
            self._recorded = record(self._forward, self._inputs.device)
            self._rotary_table = self._network.rotary_table  # the recording reads it after a longer one replaces it
        replay, hidden = self._recorded
        replay()
        return hidden[: len(tokens)]

    def _forward(self) -> torch.Tensor:
        tokens, positions, write_positions = self._inputs.unbind()
        mask = torch.zeros(len(positions), self._keys, dtype=self._dtype, device=positions.device)
        mask.masked_fill_(self._key_positions > positions, torch.finfo(self._dtype).min)
        self._keys_values.prepare(self._rows, write_positions, self._keys, mask[:, None], prefill=False)
        return self._network.run(tokens, positions, self._keys_values)[:, 0]


def record(function: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], None], torch.Tensor]:
    """Record a function's work on a GPU.

    Args:
        function: The function; it is called twice, the first time without recording.
        device: The GPU.

    Returns:
        A function that repeats the work, and the tensor that holds the result after each repetition.
    """
    with torch.cuda.device(device):
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):  # makes what is computed only once: it must not be in the recording
            function()
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
    return graph.replay, result


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least ``number``."""
    return 1 << (number - 1).bit_length()
