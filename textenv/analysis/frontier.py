"""Best of n: sample n completions and keep the best. No training, and a ruler for what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.types import TextEnvError

__all__ = ["COUNTS", "Frontier", "best_of_n_kl", "expected_best", "frontier", "price_in_nats", "sample_frontier"]

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The n of a frontier."""


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Score against KL of best-of-n, for every n of ``COUNTS`` that there are samples for.

    Attributes:
        n: Numbers of samples, shape ``(points,)``.
        kl: Their KL from the reference in nats, ``best_of_n_kl(n)``: an upper bound where completions or scores repeat.
        score: Expected scores, the mean over the prompts.
        stderr: Their standard errors over the prompts; NaN of one prompt.
    """

    n: NDArray[np.int64]
    kl: NDArray[np.float64]
    score: NDArray[np.float64]
    stderr: NDArray[np.float64]

    def score_at(self, n: int) -> float:
        """Return the score of best-of-``n``.

        Raises:
            TextEnvError: It is not among the points.
        """
        if n not in self.n:
            raise TextEnvError(f"n={n}: the frontier has {self.n.tolist()}; take more samples.")
        return float(self.score[self.n == n][0])


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


def frontier(scores: ArrayLike) -> Frontier:
    """Return the frontier of best-of-n from the scores of samples.

    Args:
        scores: Shape ``(prompts, N)``: of ``N`` completions of each prompt by the reference.

    Raises:
        TextEnvError: The shape is another, or a score is not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise TextEnvError(f"scores have shape {table.shape}; expected (prompts, N), at least one of each.")
    n = np.array([count for count in COUNTS if count <= table.shape[1]])
    best = np.stack([expected_best(table, int(count)) for count in n])  # (points, prompts)
    several = len(table) > 1
    stderr = best.std(axis=1, ddof=1) / np.sqrt(len(table)) if several else np.full(len(n), np.nan)
    return Frontier(n, best_of_n_kl(n), best.mean(axis=1), stderr)


def sample_frontier(
    envs: VectorEnv[Any, Any, Any], samples: int = 512, *, prompts: Sequence[Any] | None = None, seed: int = 0
) -> Frontier:
    """Sample completions of the reference, and return the frontier of best-of-n.

    No n costs samples of its own: that of every n is estimated from all of them, without bias (``expected_best``).

    Args:
        envs: A vector text environment that resets no rows by itself. ``kl_mode="lump"`` is the quickest.
        samples: Completions of each prompt; n goes as far as these.
        prompts: What ``reset(options={"prompt": ...})`` takes, one after the other; None for the environment's own.
        seed: Seeds the samples.

    Raises:
        TextEnvError: ``samples`` is less than 1, or the environment is another.
    """
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)) or samples < 1:
        raise TextEnvError(f"samples={samples!r}: expected a whole number of at least 1.")
    base = text_env(envs)
    reference = TextPolicy.of_reference(base)
    generator = torch.Generator(base.reference.device).manual_seed(seed)
    asked = list(base.prompts if prompts is None else prompts)
    episodes = sample_episodes(envs, reference, generator, [prompt for prompt in asked for _ in range(samples)])
    return frontier(np.array([episode.score for episode in episodes]).reshape(len(asked), samples))


def price_in_nats(kl: ArrayLike, score: ArrayLike, best: float, *, n: int = 32) -> float | None:
    """Return at how much more KL than best-of-n an agent first reaches its score: 1 is as good, less is better.

    Args:
        kl: KL from the reference in nats as the agent learns, of whole episodes, shape ``(points,)``.
        score: Mean score at the same points.
        best: Mean score of best-of-n of the same prompts.
        n: Its number of samples, at least 2; the KL of best-of-32 is 2.5 nats.

    Returns:
        The KL at which the straight lines between the points first reach ``best``, over ``best_of_n_kl(n)``; None if
        they never do.

    Raises:
        TextEnvError: The shapes differ, or a number is not finite.
    """
    nats, curve = np.asarray(kl, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if nats.ndim != 1 or nats.shape != curve.shape or not nats.size:
        raise TextEnvError(f"kl has shape {nats.shape}, score {curve.shape}: expected the same, (points,).")
    if not (np.isfinite(nats).all() and np.isfinite(curve).all() and np.isfinite(best)):
        raise TextEnvError(f"A point of the learning curve, or best={best}, is not finite.")
    if n < 2:
        raise TextEnvError(f"n={n!r}: expected at least 2; best of 1 is the reference, at no KL.")
    reached = np.flatnonzero(curve >= best)
    if not len(reached):
        return None
    at = int(reached[0])
    where = nats[at]
    if at:
        share = (best - curve[at - 1]) / (curve[at] - curve[at - 1])
        where = nats[at - 1] + share * (nats[at] - nats[at - 1])
    return float(where / best_of_n_kl(n))


def _log_binomial(size: int, n: int) -> float:
    return float(gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1))
