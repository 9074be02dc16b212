"""``textenv reward train``."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from textenv.commands.base import FROM_CHECKPOINT, Command, use_threads
from textenv.commands.console import tell
from textenv.commands.flags import read_ranking_files
from textenv.data.outputs import OutputFolder
from textenv.training.configs import RewardModelConfig
from textenv.types import TextEnvError
from textenv.validation import Count, Threads

__all__ = ["Train"]


@dataclass(frozen=True)
class Train(Command):
    """Train a reward model on rankings; a run that was cut off goes on where it was.

    Attributes:
        files: Rankings, .jsonl: an object a line with prompt, completions, ranks, annotator and margin.
        out: Folder of the reward model; checkpoints go into its "checkpoints".
        validation: Rankings to measure the accuracy on after each epoch.
        reference: Texts on which scores get mean 0 and variance 1 (.jsonl with prompt and completion, or text); by
            default those of the rankings.
        limit: Learn from so many rankings, drawn at random, for a learning curve; None for all.
        threads: Threads that torch computes with; None leaves that to torch.
        settings: The settings of the training.
    """

    files: tuple[Path, ...]
    out: OutputFolder
    validation: tuple[Path, ...] = ()
    reference: tuple[Path, ...] = ()
    limit: Count | None = None
    threads: Threads | None = None
    settings: Annotated[RewardModelConfig, tyro.conf.arg(name="")] = field(default_factory=RewardModelConfig)

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    def run(self) -> int:
        """Train, and print the accuracy."""
        from textenv.training.reward_models import train_reward_model  # noqa: PLC0415 (loads torch)
        from textenv.training.texts import read_pairs  # noqa: PLC0415

        use_threads(self.threads)
        rankings = read_ranking_files(self.files)
        if self.limit is not None:
            if self.limit > len(rankings):
                raise TextEnvError(f"limit={self.limit}: the files hold {len(rankings)} rankings; give that or less.")
            rankings = random.Random(self.settings.seed).sample(rankings, self.limit)
        reference = [pair for path in self.reference for pair in read_pairs(path)]
        report = train_reward_model(
            self.settings, rankings, validation=read_ranking_files(self.validation), reference=reference, out=self.out
        )
        accuracy = "" if report.accuracy is None else f", validation accuracy {report.accuracy:.1%}"
        tell(f"The reward model of {report.comparisons:,} comparisons is in {self.out}{accuracy}.")
        return 0
