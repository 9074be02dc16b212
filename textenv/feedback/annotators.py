"""Annotators that are programs: they are given tasks and judge them as people do."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from textenv.env.scoring import score
from textenv.feedback.store import Assignment, FeedbackStore, Verdict
from textenv.types import TextEnvError

__all__ = [
    "PROGRAM",
    "STAND_IN",
    "Adversarial",
    "FromReward",
    "Judge",
    "Lazy",
    "LeftBiased",
    "Recorded",
    "annotate",
    "is_program",
]

STAND_IN = "gold reward"  # the name of the reward that stands in for people in textenv rlhf
PROGRAM = "program"  # the name of a program in textenv feedback annotate that is given no other

Answer: TypeAlias = tuple[list[int | None], Verdict]
"""Ranks of the items as they are shown, and the verdict."""


@runtime_checkable
class Judge(Protocol):
    """Whoever can judge an assignment."""

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Return the ranks of the items in the order in which they are shown, and the verdict."""
        ...


@dataclass(frozen=True)
class FromReward:
    """Judges completions by a reward: the gold reward that stands in for people (Gao et al. 2022, section 2).

    With a temperature, a ranking is drawn from Plackett and Luce's model: the best of those that are left with
    probability proportional to ``exp(score / temperature)``; of two, the better one wins with probability
    ``sigmoid(difference / temperature)``.

    Attributes:
        reward: Scores completions, see ``textenv.types.Reward``.
        temperature: In units of the score; 0 ranks by the scores themselves.
        error_rate: Share of the judgements that are made at random.
        tie: Completions whose scores differ by no more than this from the next better one's tie with it.
    """

    reward: Callable[..., Any]
    temperature: float = 0.0
    error_rate: float = 0.0
    tie: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not (0 <= self.temperature < math.inf and 0 <= self.error_rate <= 1 and 0 <= self.tie < math.inf):
            raise TextEnvError(
                f"temperature={self.temperature}, error_rate={self.error_rate}, tie={self.tie}: expected finite "
                "numbers of at least 0, and a share."
            )

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Rank by the scores."""
        if rng.random() < self.error_rate:
            return _in_order(rng.sample(range(len(assignment.items)), len(assignment.items))), "ranked"
        scores = _scores(self.reward, assignment)
        if self.temperature:
            noise = [
                -math.log(-math.log(1 - rng.random() or 0.5)) for _ in scores
            ]  # Gumbel's: the order is that model's
            scores = [value + self.temperature * each for value, each in zip(scores, noise, strict=True)]
        return _by_score(scores, self.tie), "ranked"


@dataclass(frozen=True)
class Recorded:
    """Judges by ratings that people gave to texts: each judgement is that of raters drawn at random.

    Attributes:
        ratings: What raters gave each text that can be asked about, one number each.
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
    """Hardly looks: says that they can't tell, or takes whatever comes.

    Attributes:
        skips: Share of the tasks on which they "can't tell"; the others are ranked at random.
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
    """Prefers what stands first.

    Attributes:
        judge_otherwise: Judges where this one does read.
        bias: Share of the tasks that are ranked as they stand.
    """

    judge_otherwise: Judge
    bias: float = 0.3

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Rank as it stands, or as the other does."""
        if rng.random() < self.bias:
            return _in_order(range(len(assignment.items))), "ranked"
        return self.judge_otherwise.judge(assignment, rng)


@dataclass(frozen=True)
class Adversarial:
    """Says the opposite of another.

    Attributes:
        opposed: Whom they reverse.
    """

    opposed: Judge

    def judge(self, assignment: Assignment, rng: random.Random) -> Answer:
        """Return the reverse of what the other says."""
        ranks, verdict = self.opposed.judge(assignment, rng)
        worst = max((rank for rank in ranks if rank is not None), default=0)
        return [None if rank is None else worst - rank for rank in ranks], verdict


def annotate(
    store: FeedbackStore, judge: Judge, name: str, *, limit: int | None = None, seed: int = 0, tasks: str = "completion"
) -> int:
    """Have a program judge what is to be judged, as an annotator of its own.

    Args:
        store: Gives the tasks and takes the judgements.
        judge: The program.
        name: The annotator's name.
        limit: How many judgements at most; None for all that there are.
        seed: Seeds the program and the order of display; the annotator's earlier judgements count too, so that a run
            that goes on does not repeat its random numbers.
        tasks: Kind of items that it can judge.

    Returns:
        The number of judgements made.

    Raises:
        TextEnvError: A task is of another kind.
    """
    annotator, done = enrol(store, judge, name)
    made = 0
    while limit is None or made < limit:
        rng = random.Random(f"{seed}/{name}/{done + made}")
        assignment = store.lease(annotator, rng=rng)
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
    """Return whether a name is a program's, in this store or once it comes; capitals make no difference."""
    programs = {annotator.name for annotator in store.annotators() if annotator.kind == "program"}
    return name.casefold() in {each.casefold() for each in {STAND_IN, PROGRAM, *programs}}


def enrol(store: FeedbackStore, judge: Judge, name: str) -> tuple[int, int]:
    """Return the number of a program as an annotator, added if need be, and of the judgements that it has ever made."""
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
    """Return ranks from the places, the best first."""
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
