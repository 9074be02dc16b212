"""Torch's global random numbers, as an agent of its own seed sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["RandomState"]


class RandomState:
    """The states of torch's global generators that one agent draws from; the caller's stay as they are.

    Initializing a network draws from torch's global generators, and so may an agent's ``update``. Inside ``active()``
    these continue from where the agent left them, after it they are the caller's again.

    Attributes:
        generators: Hold the states, by name: ``"torch"``, and ``"cuda"`` on a GPU. A checkpoint keeps them.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Begin from a seed.

        Args:
            seed: Seeds them all.
            device: Where the agent computes.
        """
        self.generators = {"torch": torch.Generator().manual_seed(seed)}
        self._globals = {"torch": torch.default_generator}
        if device.type == "cuda":
            self.generators["cuda"] = torch.Generator(device).manual_seed(seed)
            self._globals["cuda"] = torch.cuda.default_generators[device.index or 0]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let torch's global generators go on from the agent's states inside the block."""
        before = {name: generator.get_state() for name, generator in self._globals.items()}
        for name, generator in self._globals.items():
            generator.set_state(self.generators[name].get_state())
        try:
            yield
        finally:
            for name, generator in self._globals.items():
                self.generators[name].set_state(generator.get_state())
                generator.set_state(before[name])
