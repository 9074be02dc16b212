"""Random numbers of its own for a world that draws from the generators that all of a process shares."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_LOCK = threading.RLock()  # there is one pair of shared generators


class OwnRandomness:
    """Lends a world the generators of ``random`` and ``numpy.random``, and takes them back as they were.

    Some packages seed and use these. Worlds that did so side by side would draw from each other's numbers, so that an
    episode would depend on the rows beside it, and a training's own numbers would change. Here each world has its own:
    it goes on where it stopped, whatever was drawn in between. Worlds that use them run one at a time.
    """

    _python: tuple[Any, ...]
    _numpy: Any

    def __init__(self) -> None:
        """Begin with numbers that do not repeat."""
        self._seed(None)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Have the shared generators go on with this world's numbers inside the context."""
        with _LOCK:
            before = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(self._python)
            np.random.set_state(self._numpy)  # noqa: NPY002
            try:
                yield
            finally:
                self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002

    @contextlib.contextmanager
    def seeded(self, seed: int | None) -> Iterator[None]:
        """The same, beginning with the numbers of a seed."""
        self._seed(seed)
        with self.lent():
            yield

    def _seed(self, seed: int | None) -> None:
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed).get_state()
