"""Measures of bias, as computations on log-probabilities and scores; bootstrap intervals for all of them.

What is male comes first, so that a positive figure says more of men. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

__all__ = ["Figure", "bootstrap", "chance_distance", "correlation", "effect_size", "pair_entropy", "wasserstein"]

Values = NDArray[np.float64]
_LEAST_STD = 1e-12


class Figure(NamedTuple):
    """A figure with its bootstrap interval; None where there is none.

    Attributes:
        value: The figure.
        low: The lower end of its 95 % interval.
        high: The upper end.
    """

    value: float | None
    low: float | None
    high: float | None


def pair_entropy(male: ArrayLike, female: ArrayLike) -> Values:
    """Return how undecided a model is between the two texts of each pair, in bits: 1 is no preference, 0 a certain one.

    ``H = -sum_i P_i log2 P_i`` with ``P`` the probabilities of the two, made to add up to 1: Ouyang et al. 2022
    (InstructGPT), section 4.2.

    Args:
        male: Log-probabilities of the first texts, any shape.
        female: Those of the second ones, same shape.
    """
    share = special.expit(np.subtract(male, female, dtype=np.float64))
    bits: Values = (special.entr(share) + special.entr(1 - share)) / np.log(2)
    return bits


def correlation(one: ArrayLike, other: ArrayLike) -> float | None:
    """Return Pearson's correlation of two series; None of less than three, or where one is constant."""
    pair = np.array([one, other], dtype=np.float64)
    if pair.shape[1] < 3 or (pair.std(axis=1) < _LEAST_STD).any():
        return None
    matrix: Values = np.asarray(np.corrcoef(pair))
    return float(matrix[0, 1])


def effect_size(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return by how many standard deviations two groups of words differ in their association, as WEAT does.

    ``(mean(first) - mean(second)) / std(first and second)``, with the sample's standard deviation: Caliskan et al.
    2017. There an association is a difference of cosines; here it is one of log-probabilities.

    Args:
        first: Association of each word of the first group, ``(n,)``.
        second: Likewise of the second, ``(m,)``.

    Returns:
        From -2 to 2 for groups of equal size; None where all words have the same association.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    spread = np.concatenate([one, other]).std(ddof=1)
    return None if not spread >= _LEAST_STD else float((one.mean() - other.mean()) / spread)


def wasserstein(one: ArrayLike, other: ArrayLike) -> float:
    """Return the Wasserstein-1 distance of two samples, each of any size: how far scores have to be moved on average.

    The gap of Huang et al. 2019 between the sentiment of what follows two counterfactual prompts.
    """
    return float(stats.wasserstein_distance(np.asarray(one), np.asarray(other)))


def chance_distance(one: ArrayLike, other: ArrayLike, rng: np.random.Generator, shuffles: int = 50) -> float:
    """Return the mean ``wasserstein`` of two samples whose scores are dealt out to them anew at random.

    Samples of one distribution differ by as much: a distance above 0 alone says nothing.

    Args:
        one: Scores, ``(n,)``.
        other: Scores, ``(m,)``.
        rng: Deals them out.
        shuffles: How often.
    """
    pooled, size = np.concatenate([one, other]), len(np.asarray(one))
    dealt = [rng.permutation(pooled) for _ in range(shuffles)]
    return float(np.mean([wasserstein(each[:size], each[size:]) for each in dealt]))


def bootstrap(
    statistic: Callable[..., float | None],
    samples: Sequence[ArrayLike],
    rng: np.random.Generator,
    *,
    paired: bool = False,
    resamples: int = 1000,
) -> Figure:
    """Return a statistic with its 95 % percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        statistic: Of samples, each resampled along its first axis; None where it does not exist.
        samples: One or more, of two rows at least each, or there is no interval.
        rng: Draws the resamples.
        paired: Whether the samples are columns of the same rows, drawn together.
        resamples: How many.
    """
    rows = [np.asarray(sample, dtype=np.float64) for sample in samples]
    value = statistic(*rows)
    if value is None or min(map(len, rows)) < 2:
        return Figure(value, None, None)
    found = []
    for _ in range(resamples):
        places = [rng.integers(len(sample), size=len(sample)) for sample in (rows[:1] if paired else rows)]
        places *= len(rows) if paired else 1
        again = statistic(*(sample[place] for sample, place in zip(rows, places, strict=True)))
        if again is not None:
            found.append(again)
    if not found:
        return Figure(value, None, None)
    low, high = np.percentile(found, (2.5, 97.5))
    return Figure(value, float(low), float(high))
