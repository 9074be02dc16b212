"""``textenv reward data``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.data.outputs import OutputFolder
from textenv.validation import Seed

__all__ = ["Data"]


@dataclass(frozen=True)
class Data(Command):
    """Write the rankings that the bundled reward model was trained and measured on, from real people's ratings.

    Attributes:
        out: Folder for train.jsonl, validation.jsonl and test.jsonl.
        domains: Snippets of other kinds to add to train.jsonl.
        seed: Seeds which snippets are put together.
    """

    out: OutputFolder
    domains: tuple[Literal["product", "editorial", "tweet"], ...] = ()
    seed: Seed = 0

    def run(self) -> int:
        """Write the files, and print how many rankings they hold."""
        from textenv.data.files import to_json, write_atomically  # noqa: PLC0415
        from textenv.data.reviews import review_rankings  # noqa: PLC0415

        self.out.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation", "test"):
            rankings = review_rankings(split, seed=self.seed)
            for domain in self.domains if split == "train" else ():
                rankings += review_rankings(domain=domain, seed=self.seed)
            lines = [to_json(dataclasses.asdict(ranking)) + "\n" for ranking in rankings]
            write_atomically(self.out / f"{split}.jsonl", "".join(lines))
            tell(f"{self.out / f'{split}.jsonl'}: {len(rankings):,} rankings")
        return 0
