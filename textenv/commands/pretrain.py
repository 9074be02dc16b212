"""``textenv pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textenv.commands.base import FROM_CHECKPOINT, Command
from textenv.commands.console import tell
from textenv.training.configs import PretrainConfig

__all__ = ["Pretrain"]


@dataclass(frozen=True)
class Pretrain(Command, PretrainConfig):
    """Pre-train a small language model on text files, with a tokenizer of its own.

    A run that was cut off goes on from its last checkpoint when the same command is given again.
    """

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    def run(self) -> int:
        """Train, and say where the model is."""
        from textenv.training.pretrain import pretrain  # noqa: PLC0415 (loads torch)

        tell(f"The model is in {pretrain(self)}")
        return 0
