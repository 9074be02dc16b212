"""``textenv browse demonstrate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.outputs import OutputFile
from textenv.types import TextEnvError
from textenv.validation import Count, Seed

__all__ = ["Demonstrate"]


@dataclass(frozen=True)
class Demonstrate(Command):
    """Have a script answer questions in the browser of textenv/Browse-v0, and write its turns as training data.

    The script recognizes a right answer where it sees one. "textenv sft" learns from the file; only questions that were
    answered are in it.

    Attributes:
        out: File of records to write, one with "prompt" and "completion" a turn.
        web: File that "textenv browse index" has written, with questions; None for the web of WordNet.
        questions: Number of questions, drawn with replacement.
        split: Share of the questions that is drawn from.
        seed: Seeds which questions are drawn.
    """

    out: OutputFile
    web: Path | None = None
    questions: Count = 1000
    split: Literal["all", "demonstrations", "comparisons", "train", "heldout"] = "demonstrations"
    seed: Seed = 0

    def run(self) -> int:
        """Write the file, and say how many questions were answered."""
        from textenv.data.records import RECORD_KINDS, kind_of, write_records  # noqa: PLC0415 (what takes long to load)
        from textenv.env.ids.browse import browser_settings  # noqa: PLC0415
        from textenv.training.browsing import demonstrate  # noqa: PLC0415
        from textenv.worlds.browser import Browser  # noqa: PLC0415

        kind_of(self.out, RECORD_KINDS)
        world = Browser(**browser_settings(self.web, self.split))
        found = [demonstrate(world, seed=self.seed + number) for number in range(self.questions)]
        answered = [each for each in found if each.answered]
        if not answered:
            raise TextEnvError(f"None of {len(found)} questions was answered in {world.max_actions} actions; try more.")
        write_records(self.out, [record for each in answered for record in each.records()])
        actions = sum(each.columns["actions"] for each in answered) / len(answered)
        share = f"{len(answered)} of {len(found)} ({len(answered) / len(found):.1%})"
        tell(f"{self.out}: {share} questions were answered, in {actions:.1f} actions on average.")
        return 0
