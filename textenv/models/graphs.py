"""Writing a token as a CUDA graph: one launch in place of some hundred kernels, whose launching would take the time.

A graph repeats what was recorded, at the same addresses and of the same shapes. So tokens and positions go to buffers
of their own, batches are filled up to a power of two with rows that write where nobody reads, and the keys that are
read are as many as the next power of two, those beyond a text being masked.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from textenv.models.network import KeyValues, Network
from textenv.types import IntArray

__all__ = ["SPARE", "Graphs", "graphs_run_on"]

SPARE = 1
"""Places that buffers of keys and values have beyond their capacity, for the rows that fill up a batch."""

_LEAST_KEYS = 64


def graphs_run_on(device: torch.device) -> bool:
    """Tell whether steps are recorded there: on GPUs, unless ``TEXTENV_CUDA_GRAPHS=0`` is set."""
    return device.type == "cuda" and os.environ.get("TEXTENV_CUDA_GRAPHS") != "0"


class Graphs:
    """Forwards of one token a row, recorded when a size of batch or text is first met.

    They are for a network whose weights stay at their addresses, and keys and values that are not resized.
    """

    def __init__(self, network: Network, held: KeyValues, like: torch.Tensor) -> None:
        """Begin without any recorded.

        Args:
            network: To run.
            held: Keys and values of the tokens before, in buffers with ``SPARE`` places to spare.
            like: A weight, which says where it computes and in which type.
        """
        self._network, self._held, self._like = network, held, like
        self._steps: dict[tuple[int, int], _Step] = {}

    def run(self, tokens: IntArray, positions: IntArray) -> torch.Tensor:
        """Return the hidden states of a token in each of the first rows; the next run overwrites them.

        Args:
            tokens: Shape ``(batch,)``.
            positions: Shape ``(batch,)``.

        Returns:
            Shape ``(batch, hidden_size)``.
        """
        rows, places = self._held.size
        batch = min(_power_of_two(len(tokens)), rows)
        keys = min(max(_LEAST_KEYS, _power_of_two(int(positions.max()) + 1)), places - SPARE)
        if (batch, keys) not in self._steps:
            self._steps[batch, keys] = _Step(self._network, self._held, self._like, batch, keys)
        return self._steps[batch, keys](tokens, positions)


class _Step:
    """One of them, of a size."""

    def __init__(self, network: Network, held: KeyValues, like: torch.Tensor, batch: int, keys: int) -> None:
        self._network, self._keys = network, keys
        self._held = held.twin()  # what it keeps of its aims is at addresses that were recorded
        self._rows, self._reach = (torch.arange(size, device=like.device) for size in (batch, keys))
        self._given = torch.zeros(3, batch, 1, dtype=torch.int64, device=like.device)
        self._type = like.dtype
        self._recorded: tuple[Callable[[], None], torch.Tensor] | None = None

    def __call__(self, tokens: IntArray, positions: IntArray) -> torch.Tensor:
        staged = np.zeros(self._given.shape[:2], dtype=np.int64)
        staged[2] = self._held.size[1] - 1  # where nobody reads
        staged[:, : len(tokens)] = tokens, positions, positions
        self._given.copy_(torch.from_numpy(staged)[..., None], non_blocking=True)
        if self._recorded is None:
            self._recorded = record(self._forward, self._given.device)
            self._angles = self._network.angles  # kept: the network may come to make longer ones
        replay, hidden = self._recorded
        replay()
        return hidden[: len(tokens)]

    def _forward(self) -> torch.Tensor:
        tokens, positions, places = self._given.unbind()
        mask = torch.zeros(len(positions), self._keys, dtype=self._type, device=positions.device)
        mask.masked_fill_(self._reach > positions, torch.finfo(self._type).min)
        self._held.aim(self._rows, places, self._keys, mask[:, None], fresh=False)
        return self._network.run(tokens, positions, self._held)[:, 0]


def record(function: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], None], torch.Tensor]:
    """Record what a function does on a GPU; return what does it again, and the tensor that it then writes."""
    with torch.cuda.device(device):
        aside, main = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(main)
        with torch.cuda.stream(aside):  # once without recording, for what is made only once
            function()
        main.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
    return graph.replay, result


def _power_of_two(number: int) -> int:
    """Return the next one that is no smaller."""
    return 1 << (number - 1).bit_length()
