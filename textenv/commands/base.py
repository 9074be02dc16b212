"""What a command of ``textenv`` is: a dataclass in a file of its own, named after the file, with ``run``.

``textenv/commands/reward/train.py`` defines the class ``Train``, which is ``textenv reward train``: its fields are the
flags, its docstring is the help. No other file knows of it. The modules of commands are imported to show their help, so
they import nothing that takes long to load; ``run`` imports what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

__all__ = ["FROM_CHECKPOINT", "Command"]

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
    def with_flags(cls, arguments: Sequence[str]) -> type[Self]:
        """Return the class to parse arguments with: this one, unless some of its flags depend on the arguments."""
        return cls

    @abstractmethod
    def run(self) -> int:
        """Do what the command says; return the exit status.

        Raises:
            TextEnvError: Something that the user gave is not what is expected; shown as one line.
        """
