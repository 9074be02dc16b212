"""``textenv compare``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textenv.commands.base import Command
from textenv.commands.console import console
from textenv.compare import plan

__all__ = ["Compare"]


@dataclass(frozen=True)
class Compare(Command, plan.Compare):
    """Compare agents on environments and rewards, over seeds, at equal budgets.

    A comparison that was cut off goes on. Runs that are finished are kept, so that more agents or seeds can be added to
    a folder later.
    """

    after_signal: ClassVar[str] = "What is finished is kept, and the same command goes on with the rest."

    def run(self) -> int:
        """Do all runs that are not finished, and write figures, report and picture."""
        from textenv.compare.comparison import compare  # noqa: PLC0415 (loads torch)

        compare(self, console)
        return 0
