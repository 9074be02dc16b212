"""Best of n: sample n completions and keep the best. No training, and a ruler for what is trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from textenv.types import TextEnvError

__all__ = ["best_of_n_kl", "expected_best"]


def best_of_n_kl(n: ArrayLike) -> NDArray[np.float64]:
    """Return the KL divergence of best-of-n from what it samples from, in nats: ``log n - (n - 1) / n``.

    That is exact where no two samples are equal, and an upper bound where they are (Stiennon et al. 2020, appendix G.3;
    Beirami et al. 2024).

    Args:
        n: Number of samples, at least 1, of any shape.
    """
    count = np.asarray(n, dtype=np.float64)
    if (count < 1).any():
        raise TextEnvError(f"n={n!r}: expected numbers of at least 1.")
    return np.asarray(np.log(count) - (count - 1) / count)


def expected_best(scores: ArrayLike, n: int, values: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return what best-of-n comes to in expectation, estimated without bias from more samples than n.

    Of ``N`` samples, the one with ``i`` worse ones is the best of a random ``n`` with probability
    ``binom(i, n - 1) / binom(N, n)`` (Nakano et al. 2021, WebGPT, section 3.2, equation 1). Samples with equal scores
    are equally likely to be kept.

    Args:
        scores: What the best is chosen by, shape ``(..., N)``.
        n: Number of samples it is the best of, from 1 to ``N``.
        values: What is wanted of the chosen sample, same shape: its score by another reward, say. The scores
            themselves if not given.

    Returns:
        Shape ``(...)``.

    Raises:
        TextEnvError: ``n`` is out of range, or the shapes differ.
    """
    score = np.asarray(scores, dtype=np.float64)
    value = score if values is None else np.asarray(values, dtype=np.float64)
    if score.ndim == 0 or score.shape != value.shape:
        raise TextEnvError(f"scores have shape {score.shape}, values {value.shape}: expected the same, (..., N).")
    size = score.shape[-1]
    if not 1 <= n <= size:
        raise TextEnvError(f"n={n}: expected a number from 1 to {size}, of which there are samples.")
    if not (np.isfinite(score).all() and np.isfinite(value).all()):
        raise TextEnvError("A score or a value is not finite, so there is no best one.")
    worse = np.arange(n - 1, size)
    log_weights = gammaln(worse + 1) - gammaln(n) - gammaln(worse - n + 2) - _log_binomial(size, n)
    weights = np.zeros(size)
    weights[n - 1 :] = np.exp(log_weights)
    order = np.argsort(score, axis=-1, kind="stable")
    ranked = np.take_along_axis(score, order, axis=-1)
    sorted_values = np.take_along_axis(value, order, axis=-1).reshape(-1, size)
    result = np.empty(len(sorted_values))
    for row, (line, mine) in enumerate(zip(ranked.reshape(-1, size), sorted_values, strict=True)):
        _, group, counts = np.unique(line, return_inverse=True, return_counts=True)
        shared = np.bincount(group, weights)[group] / counts[group]
        result[row] = shared @ mine
    return result.reshape(score.shape[:-1])


def _log_binomial(size: int, n: int) -> float:
    return float(gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1))
