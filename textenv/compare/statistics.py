"""Statistics over few runs: aggregates over all runs of all tasks, with stratified bootstrap intervals.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", and its library rliable.

Scores are ``(runs, tasks)``, one row a seed, and comparable between tasks: 1 is what a task's best is known to be.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from textenv.types import TextEnvError

__all__ = [
    "AGGREGATES",
    "Interval",
    "improvement",
    "interquartile_mean",
    "mean_interval",
    "optimality_gap",
    "performance_profile",
    "stratified_bootstrap",
]

Scores = NDArray[np.float64]
Interval = tuple[float, float]


def interquartile_mean(scores: ArrayLike) -> float:
    """Return the mean of the middle half of all scores (section 4.3 there)."""
    return float(stats.trim_mean(_checked(scores).ravel(), 0.25))


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> float:
    """Return by how much scores fall short of ``target`` on average; more than that counts as reaching it."""
    return float(target - np.minimum(_checked(scores), target).mean())


def _mean(scores: ArrayLike) -> float:
    return float(_checked(scores).mean())


def _median(scores: ArrayLike) -> float:
    return float(np.median(_checked(scores).mean(axis=0)))


AGGREGATES: dict[str, Callable[[ArrayLike], float]] = {
    "IQM": interquartile_mean,
    "mean": _mean,
    "median": _median,
    "optimality gap": optimality_gap,
}
"""The aggregates of the report. The median is that of the tasks' means; of the optimality gap, less is better."""


def improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Return the probability that a run of one agent beats one of another, on a task drawn at random.

    It is the mean over the tasks of Mann and Whitney's U over the number of pairs, ties counting half.

    Args:
        scores: ``(runs, tasks)``.
        others: ``(other runs, tasks)``.
    """
    one, other = _checked(scores), _checked(others)
    if one.shape[1] != other.shape[1]:
        raise TextEnvError(f"The scores are of {one.shape[1]} and {other.shape[1]} tasks: expected the same tasks.")
    return float(np.mean((np.sign(one[:, None] - other[None]) + 1) / 2))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Scores:
    """Return the share of runs, over all tasks, that score above each threshold."""
    return np.asarray((_checked(scores)[..., None] > np.asarray(thresholds)).mean(axis=(0, 1)), dtype=np.float64)


def stratified_bootstrap(
    statistic: Callable[..., ArrayLike], *scores: ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> NDArray[np.float64]:
    """Return the percentile interval of a statistic when each task's runs are drawn anew with replacement.

    Args:
        statistic: Of as many arrays as are given.
        *scores: Each ``(runs, tasks)``; they are resampled independently of each other.
        resamples: Draws.
        level: Of confidence.
        seed: Seeds them.

    Returns:
        Lower and upper end, shape ``(2, ...)``.
    """
    given = [_checked(each) for each in scores]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        picks = [rng.integers(len(each), size=each.shape) for each in given]
        drawn.append(statistic(*(np.take_along_axis(e, pick, axis=0) for e, pick in zip(given, picks, strict=True))))
    tails = [(1 - level) / 2, (1 + level) / 2]
    return np.asarray(np.quantile(np.asarray(drawn, dtype=np.float64), tails, axis=0), dtype=np.float64)


def mean_interval(values: ArrayLike, level: float = 0.95) -> NDArray[np.float64]:
    """Return Student's interval of the mean over the first axis, shape ``(2, ...)``; NaN of one value."""
    table = np.asarray(values, dtype=np.float64)
    if len(table) < 2:
        return np.full((2, *table.shape[1:]), np.nan)
    half = stats.t.ppf((1 + level) / 2, len(table) - 1) * table.std(axis=0, ddof=1) / np.sqrt(len(table))
    return np.stack([table.mean(axis=0) - half, table.mean(axis=0) + half])


def _checked(scores: ArrayLike) -> Scores:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise TextEnvError(
            f"Scores of shape {table.shape}: expected finite numbers, (runs, tasks), one of each at least."
        )
    return table
