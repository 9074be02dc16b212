"""How far annotators agree: with each other, with themselves, and with gold answers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from textenv.feedback.store import FeedbackStore, Judgement
from textenv.types import Ranking, TextEnvError

__all__ = [
    "Agreement",
    "AnnotatorAgreement",
    "Share",
    "krippendorff_alpha",
    "measure_agreement",
    "measure_annotators",
    "pair_values",
]

Pair = tuple[int, int]
_Z = float(norm.ppf(0.975))


@dataclass(frozen=True, slots=True)
class Share:
    """A share, ``hits`` of ``count``, with Wilson's 95 % interval.

    Attributes:
        hits: Where a tie is half a hit, it may have a fraction; the interval is then wider than it need be.
        count: Number of cases.
    """

    hits: float
    count: int

    @property
    def value(self) -> float | None:
        """The share; None if ``count`` is 0."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval (1927), which contains the true share with 95 % confidence; None if ``count`` is 0."""
        if not self.count:
            return None
        share, extra = self.hits / self.count, _Z**2 / self.count
        middle, half = share + extra / 2, _Z * math.sqrt(share * (1 - share) / self.count + (extra / 2 / _Z) ** 2)
        return max(0.0, (middle - half) / (1 + extra)), min(1.0, (middle + half) / (1 + extra))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far annotators agree. An opinion is an annotator's order of one pair of items.

    Attributes:
        alpha: Krippendorff's alpha between annotators, where the distance from "better" to "worse" is twice the
            distance from either to a tie; None if no pair has two opinions, or all opinions are the same.
        interval: Its 95 % interval, by a bootstrap over pairs of items; None if ``alpha`` is None.
        raw: Share of equal opinions among all pairs of opinions on the same pair of items.
        own: Share of an annotator's opinions that are the same when a task is repeated.
        gold: Share of the opinions on gold items that are right.
        pairs: Number of pairs of items with two opinions or more.
    """

    alpha: float | None
    interval: tuple[float, float] | None
    raw: Share
    own: Share
    gold: Share
    pairs: int


@dataclass(frozen=True, slots=True)
class AnnotatorAgreement:
    """How far one annotator agrees.

    Attributes:
        others: Share of equal opinions among all pairs of an opinion of theirs and another annotator's opinion on the
            same pair of items.
        own: Share of their opinions that are the same when a task is repeated.
        gold: Share of their opinions on gold items that are right.
    """

    others: Share
    own: Share
    gold: Share


def pair_values(judgement: Judgement, items: Sequence[int]) -> dict[Pair, int]:
    """Return a judgement's opinion on each pair of items, by their numbers, the smaller first.

    -1 if the item with the smaller number is better, 1 if it is worse, 0 for a tie.
    """
    return _values(judgement.ranks, items) if judgement.verdict == "ranked" else {}


def _values(ranks: Sequence[int | None], items: Sequence[int]) -> dict[Pair, int]:
    found: dict[Pair, int] = {}
    for better, worse, tied in Ranking("", ("",) * len(items), tuple(ranks)).pairs():
        one, other = items[better], items[worse]
        found[min(one, other), max(one, other)] = 0 if tied else -1 if one < other else 1
    return found


def krippendorff_alpha(
    units: Sequence[Sequence[int]], level: Literal["nominal", "interval"] = "interval"
) -> float | None:
    """Return Krippendorff's alpha: 1 for full agreement, 0 for agreement by chance, below 0 for less than that.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: ``alpha = 1 - D_o / D_e`` from the
    coincidences of values within units; units with one value are left out.

    Args:
        units: The values that each unit was given, in any order and number.
        level: Distance of two values: ``"nominal"``, 0 or 1; ``"interval"``, the square of their difference.

    Returns:
        Alpha; None if it is not defined, because no unit has two values, or all values are the same.
    """
    if level not in ("nominal", "interval"):
        raise TextEnvError(f"level={level!r}: expected 'nominal' or 'interval'.")
    paired = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in paired for value in unit})
    if len(values) < 2:
        return None
    counts = np.array([[list(unit).count(value) for value in values] for unit in paired], dtype=np.float64)
    return _alpha(counts, _distances(values, level))


def _distances(values: Sequence[int], level: str) -> NDArray[np.float64]:
    difference = np.subtract.outer(np.array(values, dtype=np.float64), np.array(values, dtype=np.float64))
    return (difference != 0).astype(np.float64) if level == "nominal" else difference**2


def _alpha(counts: NDArray[np.float64], distances: NDArray[np.float64]) -> float | None:
    """Return alpha from how often each unit has each value, ``(units, values)``."""
    sizes = counts.sum(axis=1)
    together = (counts / (sizes - 1)[:, None]).T @ counts - np.diag((counts / (sizes - 1)[:, None]).sum(axis=0))
    totals = together.sum(axis=0)
    observed = float((together * distances).sum())
    expected = float((np.outer(totals, totals) * distances).sum()) / (totals.sum() - 1)
    return 1 - observed / expected if expected > 0 else None


def measure_agreement(store: FeedbackStore, *, resamples: int = 500, seed: int = 0) -> Agreement:
    """Measure the agreement of the effective judgements in a store.

    Args:
        store: The store.
        resamples: Number of bootstrap samples.
        seed: Seeds the bootstrap.
    """
    opinions, own, gold = _gathered(store)
    units = [tuple(given.values()) for given in opinions.values() if len(given) > 1]
    alpha = krippendorff_alpha(units)
    equal = pairs = 0
    for unit in units:
        for place, value in enumerate(unit):
            equal += unit[place + 1 :].count(value)
        pairs += len(unit) * (len(unit) - 1) // 2
    return Agreement(
        alpha=alpha,
        interval=None if alpha is None else _bootstrap(units, resamples, seed),
        raw=Share(equal, pairs),
        own=_total(own.values()),
        gold=_total(gold.values()),
        pairs=len(units),
    )


def measure_annotators(store: FeedbackStore) -> dict[int, AnnotatorAgreement]:
    """Return how far each annotator of a store agrees, by the annotator's number."""
    opinions, own, gold = _gathered(store)
    others: defaultdict[int, Share] = defaultdict(lambda: Share(0, 0))
    for given in opinions.values():
        counts = Counter(given.values())
        for annotator, value in given.items():
            known = others[annotator]
            others[annotator] = Share(known.hits + counts[value] - 1, known.count + len(given) - 1)
    return {
        annotator.id: AnnotatorAgreement(others[annotator.id], own[annotator.id], gold[annotator.id])
        for annotator in store.annotators()
    }


Shares = defaultdict[int, Share]


def _gathered(store: FeedbackStore) -> tuple[dict[Pair, dict[int, int]], Shares, Shares]:
    """Return the opinions on each pair of items by annotator, and each annotator's agreement with itself and gold."""
    tasks = {task.id: task for task in store.tasks()}
    opinions: defaultdict[Pair, dict[int, int]] = defaultdict(dict)  # of a pair of items, by annotator
    own: Shares = defaultdict(lambda: Share(0, 0))
    gold: Shares = defaultdict(lambda: Share(0, 0))
    judgements = store.judgements()
    by_task = {(judgement.annotator, judgement.task): judgement for judgement in judgements}
    for judgement in judgements:
        task, who = tasks[judgement.task], judgement.annotator
        said = pair_values(judgement, task.items)
        if task.gold is not None:
            gold[who] = _compared(gold[who], said, _values(task.gold, task.items))
        if task.repeat_of is not None:
            first = by_task.get((who, task.repeat_of))
            own[who] = _compared(own[who], said, {} if first is None else pair_values(first, tasks[first.task].items))
            continue  # each annotator has one opinion on a pair
        for pair, value in said.items():
            opinions[pair].setdefault(who, value)
    return opinions, own, gold


def _total(shares: Iterable[Share]) -> Share:
    known = list(shares)
    return Share(sum(share.hits for share in known), sum(share.count for share in known))


def _compared(share: Share, said: dict[Pair, int], true: dict[Pair, int]) -> Share:
    both = said.keys() & true.keys()
    return Share(share.hits + sum(said[pair] == true[pair] for pair in both), share.count + len(both))


def _bootstrap(units: Sequence[tuple[int, ...]], resamples: int, seed: int) -> tuple[float, float] | None:
    """Return the 2.5th and 97.5th percentile of alpha over units drawn with replacement."""
    values = (-1, 0, 1)
    counts = np.array([[unit.count(value) for value in values] for unit in units], dtype=np.float64)
    rng, distances = np.random.default_rng(seed), _distances(values, "interval")
    found = [_alpha(counts[rng.integers(len(counts), size=len(counts))], distances) for _ in range(resamples)]
    defined = [alpha for alpha in found if alpha is not None]
    if not defined:
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
