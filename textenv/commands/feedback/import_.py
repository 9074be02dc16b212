"""``textenv feedback import``."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.feedback.exchange import ImportFeedback, import_feedback

__all__ = ["Import"]


@dataclass(frozen=True)
class Import(Command, ImportFeedback):
    """Put rankings or demonstrations of elsewhere, or completions to be ranked, into a store of feedback."""

    def run(self) -> int:
        """Do it, and say what was done."""
        tell(*import_feedback(self))
        return 0
