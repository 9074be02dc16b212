"""``textenv browse index``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.outputs import OutputFile

__all__ = ["Index"]


@dataclass(frozen=True)
class Index(Command):
    """Index a folder of pages, or a file of records, as an offline web that the world "browser" browses.

    Attributes:
        source: Folder whose HTML, Markdown and text files are pages; or records with "title" and "text", and with "url"
            and "links" if they like (.jsonl, .json, .csv, .parquet).
        out: File to write, one SQLite database.
        questions: Records with "question" and "answers", which are put into the file too.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    out: OutputFile
    questions: Path | None = None

    def run(self) -> int:
        """Write the file, and say what is in it."""
        from textenv.data.offline_web import write_web  # noqa: PLC0415 (help needs no database)
        from textenv.data.web_pages import read_pages, read_questions  # noqa: PLC0415

        questions = () if self.questions is None else read_questions(self.questions)
        sizes = write_web(self.out, read_pages(self.source), questions)
        tell(f"{self.out}: {sizes.pages:,} pages, {sizes.links:,} links between them, {sizes.questions:,} questions.")
        return 0
