"""Programs as annotators: they are given tasks from a store and judge them, as people do."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from textenv.env.scoring import score
from textenv.feedback.store import Assignment, FeedbackStore, Verdict
from textenv.types import TextEnvError
from textenv.validation import NonNegative, Probability, validate

__all__ = [
    "PROGRAM",
    "STAND_IN",
    "Adversarial",
    "FromRatings",
    "FromReward",
    "Judge",
    "Lazy",
    "LeftBiased",
    "annotate",
    "enroll",
    "is_program",
]

STAND_IN = "gold reward"  # annotator name of the reward that judges in place of people in textenv rlhf
PROGRAM = "program"  # default annotator name of a program in textenv feedback annotate

Answer: TypeAlias = tuple[list[int | None], Verdict]
"""Ranks of the items in the order in which they are shown, and the verdict."""


@runtime_checkable
class Judge(Protocol):
    """A program that can judge an assignment."""

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Return the ranks of the items in the order in which they are shown, and the verdict."""
        ...


@dataclass(frozen=True)
class FromReward:
    """Judges completions by a reward: the gold reward that takes the place of people (Gao et al. 2022, section 2).

    With a temperature, a ranking is drawn from Plackett and Luce's model, from the best to the worst: each next
    completion is drawn from those that are left with probability proportional to ``exp(score / temperature)``. Of two,
    the better one wins with probability ``sigmoid(difference / temperature)``. Equal scores tie: they are drawn as one.

    Attributes:
        reward: Scores completions, see ``textenv.types.Reward``.
        temperature: In units of the score; 0 ranks by the scores themselves.
        error_rate: Share of the judgements that are made at random.
        tie: A completion ties with the next better one if their scores differ by no more than this.
        best_only: Whether only the best is chosen, and all others tie.
    """

    reward: Callable[..., Any]
    temperature: NonNegative = 0.0
    error_rate: Probability = 0.0
    tie: NonNegative = 0.0
    best_only: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextEnvError: A number is not what is expected.
        """
        validate(self)

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Rank by the scores."""
        ranks = self._ranks(assignment, rng)
        return [rank and 1 for rank in ranks] if self.best_only else ranks, "ranked"

    def _ranks(self, assignment: Assignment, rng: random.Random) -> list[int | None]:
        if rng.random() < self.error_rate:
            return _in_order(rng.sample(range(len(assignment.items)), len(assignment.items)))
        scores = _scores(self.reward, assignment)
        if self.temperature:
            # Sorting scores with Gumbel noise draws from Plackett and Luce's model.
            noise = {value: -math.log(-math.log(1 - rng.random() or 0.5)) for value in dict.fromkeys(scores)}
            scores = [value + self.temperature * noise[value] for value in scores]
        return _by_score(scores, self.tie)


@dataclass(frozen=True)
class FromRatings:
    """Judges by ratings that people gave to texts: a judgement compares one rating of each text, drawn at random.

    Attributes:
        ratings: The ratings of each text, at least one.
    """

    ratings: Mapping[str, Sequence[float]]

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Rank by one rating of each text; equal ratings tie.

        Raises:
            TextEnvError: A text has no ratings.
        """
        drawn = []
        for item in assignment.items:
            rated = self.ratings.get(item.text)
            if not rated:
                raise TextEnvError(f"Nobody has rated {item.text[:80]!r}; expected a text that has ratings.")
            drawn.append(float(rng.choice(list(rated))))
        return _by_score(drawn, 0.0), "ranked"


@dataclass(frozen=True)
class Lazy:
    """Answers without reading: "can't tell", or a random ranking.

    Attributes:
        skips: Share of the tasks answered with "can't tell"; the others are ranked at random.
    """

    skips: float = 0.5

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Answer without reading."""
        count = len(assignment.items)
        if rng.random() < self.skips:
            return [None] * count, "cant_tell"
        return _in_order(rng.sample(range(count), count)), "ranked"


@dataclass(frozen=True)
class LeftBiased:
    """Prefers the item that is shown first in a share of the tasks, and judges as another does in the rest.

    Attributes:
        judge_otherwise: Judges the other tasks.
        bias: Share of the tasks that are ranked in the order in which they are shown.
    """

    judge_otherwise: Judge
    bias: float = 0.3

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Rank in the order in which the items are shown, or as the other judge does."""
        if rng.random() < self.bias:
            return _in_order(range(len(assignment.items))), "ranked"
        return self.judge_otherwise.judge(assignment, rng)


@dataclass(frozen=True)
class Adversarial:
    """Gives the opposite of another judge's answers.

    Attributes:
        opposed: The judge whose rankings are reversed.
    """

    opposed: Judge

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Return the reverse of the other judge's ranking."""
        ranks, verdict = self.opposed.judge(assignment, rng)
        worst = max((rank for rank in ranks if rank is not None), default=0)
        return [None if rank is None else worst - rank for rank in ranks], verdict


def annotate(
    store: FeedbackStore, judge: Judge, name: str, *, limit: int | None = None, seed: int = 0, tasks: str = "completion"
) -> int:
    """Let a program judge the tasks of a store that need a judgement, as an annotator.

    Args:
        store: Gives the tasks and takes the judgements.
        judge: The program.
        name: The annotator's name.
        limit: The most judgements to make; None for all that there are.
        seed: Seeds the program and the order of display, together with the number of the annotator's earlier
            judgements, so that a later call does not repeat the random numbers of this one.
        tasks: Kind of items that it can judge.

    Returns:
        The number of judgements made.

    Raises:
        TextEnvError: A task is of another kind.
    """
    annotator, done = enroll(store, judge, name)
    made = 0
    while limit is None or made < limit:
        rng = random.Random(f"{seed}/{name}/{done + made}")
        assignment = store.lease(annotator, rng=rng, kinds=("completion", "clip"))  # programs write no demonstrations
        if assignment is None:
            break
        if assignment.kind != tasks:
            store.release(assignment.id)
            raise TextEnvError(f"Task {assignment.task} is about items of kind {assignment.kind!r}, not {tasks!r}.")
        ranks, verdict = judge.judge(assignment, rng)
        store.judge(assignment.id, ranks, verdict=verdict)
        made += 1
    return made


def is_program(store: FeedbackStore, name: str) -> bool:
    """Return whether a name belongs to a program, or is reserved for one; upper and lower case are the same."""
    programs = {annotator.name for annotator in store.annotators() if annotator.kind == "program"}
    return name.casefold() in {each.casefold() for each in {STAND_IN, PROGRAM, *programs}}


def enroll(store: FeedbackStore, judge: Judge, name: str) -> tuple[int, int]:
    """Return a program's number as an annotator, added if need be, and how many judgements it has ever made."""
    annotator = store.annotator(name, "program", {"judge": repr(judge)[:500]})
    return annotator, len(store.judgements(annotators=[annotator], effective=False))


def _scores(reward: Callable[..., Any], assignment: Assignment) -> list[float]:
    if assignment.prompt is None:
        raise TextEnvError(f"Task {assignment.task} has no prompt: a reward of texts cannot judge clips.")
    count = len(assignment.items)
    prompt: Any = assignment.prompt
    texts: list[Any] = [item.text for item in assignment.items]
    if not isinstance(prompt, str):
        prompt, texts = list(prompt), [[{"role": "assistant", "content": text}] for text in texts]
    found = score(
        reward,
        prompts=[prompt] * count,
        completions=texts,
        completion_ids=[item.details.get("token_ids", []) for item in assignment.items],
        columns={name: [value] * count for name, value in assignment.columns.items()},
    )
    return [float(value) for value in found]


def _in_order(order: Sequence[int]) -> list[int | None]:
    """Return ranks from the places of the items, the best first."""
    ranks: list[int | None] = [None] * len(order)
    for rank, place in enumerate(order):
        ranks[place] = rank
    return ranks


def _by_score(scores: Sequence[float], tie: float) -> list[int | None]:
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    ranks: list[int | None] = [None] * len(scores)
    rank = 0
    for before, place in zip([None, *order], order, strict=False):
        if before is not None and scores[before] - scores[place] > tie:
            rank += 1
        ranks[place] = rank
    return ranks
