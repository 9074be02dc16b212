"""``textenv feedback export``."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.feedback.exchange import ExportFeedback, export_feedback

__all__ = ["Export"]


@dataclass(frozen=True)
class Export(Command, ExportFeedback):
    """Write the rankings or the demonstrations in a store of feedback to a file."""

    def run(self) -> int:
        """Do it, and say what was done."""
        tell(*export_feedback(self))
        return 0
