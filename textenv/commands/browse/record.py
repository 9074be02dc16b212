"""``textenv browse record``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.outputs import OutputFile
from textenv.validation import Count, NonEmpty, Port, Seed

__all__ = ["Record"]


@dataclass(frozen=True)
class Record(Command):
    """Open a page on which a person answers questions in the browser of textenv/Browse-v0, and record each turn.

    Every click is written as the command that a policy would have to write, and the turns of each question that was
    answered are added to the file, which "textenv sft" learns from like that of "textenv browse demonstrate". The same
    command goes on behind what is there.

    Attributes:
        out: File of records that is added to, .jsonl, one with "prompt", "completion" and "annotator" a turn.
        web: File that "textenv browse index" has written, with questions; None for the web of WordNet.
        questions: Number of questions, drawn without replacement; None for all.
        split: Share of the questions that is drawn from.
        annotator: Who answers. Nobody is asked the same question twice, and several people can add to one file.
        browser: Settings of the browser as a JSON object, in place of those of textenv/Browse-v0, such as
            {"max_actions": 30, "window": 1000}; a policy that learns from it has to have the same.
        port: Port of the page; 0 for one that is free.
        seed: Seeds which questions are drawn, and their order.
    """

    out: OutputFile
    web: Path | None = None
    questions: Count | None = None
    split: Literal["all", "demonstrations", "comparisons", "train", "heldout"] = "demonstrations"
    annotator: NonEmpty = "me"
    browser: str = "{}"
    port: Port = 8903
    seed: Seed = 0

    after_signal: ClassVar[str] = "Every answer that was acknowledged is recorded; the same command goes on behind it."
    keeps_memory: ClassVar[bool] = False

    def run(self) -> int:
        """Serve the page until a signal ends it."""
        from textenv.data.files import parse_json  # noqa: PLC0415 (what takes long to load, here and below)
        from textenv.env.ids.browse import browser_settings  # noqa: PLC0415
        from textenv.feedback.browse_server import serve_browse_page  # noqa: PLC0415 (an optional dependency)
        from textenv.feedback.browse_session import BrowseSession  # noqa: PLC0415
        from textenv.validation import build  # noqa: PLC0415
        from textenv.worlds.browser import Browser  # noqa: PLC0415

        settings = browser_settings(self.web, self.split, parse_json(self.browser, "--browser"))
        world = build(Browser, settings, what="The browser has no setting")
        session = BrowseSession(world, self.out, annotator=self.annotator, questions=self.questions, seed=self.seed)
        serve_browse_page(session, port=self.port, announce=lambda url: tell(f"Browse at {url}"))
        return 0
