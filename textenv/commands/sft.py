"""``textenv sft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textenv.commands.base import FROM_CHECKPOINT, Command
from textenv.commands.console import tell
from textenv.training.configs import SftConfig

__all__ = ["Sft"]


@dataclass(frozen=True)
class Sft(Command, SftConfig):
    """Fine-tune a language model on prompts and completions, or on conversations, with the loss on what it writes.

    A run that was cut off goes on from its last checkpoint when the same command is given again.
    """

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    def run(self) -> int:
        """Train, and say where the model is."""
        from textenv.feedback.demonstrations import with_stores_read  # noqa: PLC0415 (the help does not need it)
        from textenv.training.sft import sft  # noqa: PLC0415 (loads torch)

        tell(f"The model is in {sft(with_stores_read(self))}")
        return 0
