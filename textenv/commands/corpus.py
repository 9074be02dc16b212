"""``textenv corpus``."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.outputs import OutputFolder

__all__ = ["Corpus"]


@dataclass(frozen=True)
class Corpus(Command):
    """Fetch and clean the text that the bundled model was trained on.

    Attributes:
        out: Folder for general.jsonl, reviews-train.jsonl and reviews-validation.jsonl.
    """

    out: OutputFolder

    def run(self) -> int:
        """Write the files, and print their sizes."""
        from textenv.data.corpora import write_general_corpus, write_review_pairs  # noqa: PLC0415

        sizes = write_general_corpus(self.out / "general.jsonl")
        tell(f"{self.out / 'general.jsonl'}: characters {sizes}")
        tell(f"{self.out}: movie-review pairs {write_review_pairs(self.out)}")
        return 0
