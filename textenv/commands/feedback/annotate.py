"""``textenv feedback annotate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.commands.flags import parse_reward
from textenv.feedback.annotators import PROGRAM
from textenv.types import TextEnvError
from textenv.validation import Count, NonEmpty, NonNegative, Probability, Seed

__all__ = ["Annotate"]


@dataclass(frozen=True)
class Annotate(Command):
    """Have a program judge what is to be judged, through the same interface as people.

    Attributes:
        store: File of the feedback.
        reward: Judges by this reward: its name, a JSON object, or package.module:attribute.
        ratings: Judges by what people said of movie reviews, one of their ratings of each text drawn at random.
        kind: "plain" judges by these; "lazy" does not read, and can't tell or says anything; "left-biased"
            takes 30 percent as they stand; "adversarial" says the opposite.
        temperature: Of choices by a reward, in units of its scores (Boltzmann); 0 never errs.
        error_rate: Share of judgements by a reward that are made at random.
        tie: Scores that differ by no more than this tie.
        name: Name of the annotator.
        limit: Judgements at most.
        seed: Seeds the program.
    """

    store: Annotated[Path, tyro.conf.Positional]
    reward: str | None = None
    ratings: bool = False
    kind: Literal["plain", "lazy", "left-biased", "adversarial"] = "plain"
    temperature: NonNegative = 0.0
    error_rate: Probability = 0.0
    tie: NonNegative = 0.0
    name: NonEmpty = PROGRAM
    limit: Count | None = None
    seed: Seed = 0

    after_signal: ClassVar[str] = "The judgements made so far are stored; the same command goes on with the rest."

    def run(self) -> int:
        """Judge, and say how many judgements were made."""
        from textenv.data.reviews import load_reviews  # noqa: PLC0415
        from textenv.env.scoring import resolve_reward  # noqa: PLC0415
        from textenv.feedback.annotators import (  # noqa: PLC0415
            Adversarial,
            FromRatings,
            FromReward,
            Judge,
            Lazy,
            LeftBiased,
            annotate,
        )
        from textenv.feedback.store import FeedbackStore  # noqa: PLC0415

        if (self.reward is not None) == self.ratings and self.kind != "lazy":
            raise TextEnvError("Name what to judge by, a --reward or --ratings, and not both.")
        judge: Judge = Lazy()
        if self.ratings:
            judge = FromRatings({review.text: review.ratings for review in load_reviews()})
        elif self.reward is not None:
            judge = FromReward(resolve_reward(parse_reward(self.reward)), self.temperature, self.error_rate, self.tie)
        if self.kind == "lazy":
            judge = Lazy()
        elif self.kind == "left-biased":
            judge = LeftBiased(judge)
        elif self.kind == "adversarial":
            judge = Adversarial(judge)
        with FeedbackStore(self.store, create=False) as store:
            made = annotate(store, judge, self.name, limit=self.limit, seed=self.seed)
            left = store.progress()
        tell(f"{self.name} made {made:,} judgements; {left.done:,} of {left.wanted:,} are there.")
        return 0
