"""``textenv feedback add``."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.feedback.sampling import AddTasks, add_tasks

__all__ = ["Add"]


@dataclass(frozen=True)
class Add(Command, AddTasks):
    """Ask annotators to rank completions of policies, or to write answers: afterwards, textenv label."""

    def run(self) -> int:
        """Do it, and say what was done."""
        tell(*add_tasks(self))
        return 0
