"""What a command of ``textenv`` is: a dataclass in a file of its own, named after the file, with ``run``.

``textenv/commands/reward/train.py`` defines the class ``Train``, which is ``textenv reward train``: its fields are the
flags, its docstring is the help. No other file knows of it. The modules of commands are imported to show their help, so
they import nothing that takes long to load; ``run`` imports what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

__all__ = ["FROM_CHECKPOINT", "Command", "use_threads"]

FROM_CHECKPOINT = "The same command goes on from the last checkpoint."


class Command(ABC):
    """Base of the commands, which are dataclasses.

    Attributes:
        after_signal: How to go on after a signal has ended it, which is then printed.
        keeps_memory: Whether freed memory stays with the process, which makes training faster. A server would stay as
            large as its largest request made it.
    """

    __slots__ = ()

    after_signal: ClassVar[str] = "The same command starts anew."
    keeps_memory: ClassVar[bool] = True

    @classmethod
    def with_flags(cls, arguments: Sequence[str]) -> Callable[..., Self]:
        """Return what to parse arguments with: this class, unless flags depend on the arguments, or have groups."""
        return cls

    @abstractmethod
    def run(self) -> int:
        """Do what the command says; return the exit status.

        Before, every field has been checked against its annotation (``textenv.validation``), and every file or folder
        that it names to be written (``textenv.data.outputs``).

        Raises:
            TextEnvError: Something that the user gave is not what is expected; shown as one line.
        """


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None leaves that to torch, which heeds ``OMP_NUM_THREADS``."""
    if threads is not None:
        import torch  # noqa: PLC0415 (takes long to load)

        torch.set_num_threads(threads)
