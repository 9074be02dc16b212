"""Estimators of the KL divergence from a reference model, and the controllers of its coefficient.

All figures are in nats and per token. With ``r = pi_ref(a|s) / pi(a|s)`` (Schulman, "Approximating KL divergence",
2020): k1 = -log r is unbiased and can be negative; k2 = (log r)^2 / 2 is biased with low variance; k3 = r - 1 - log r
is unbiased and never negative. ``full`` sums over the vocabulary, so that only the states are sampled.

k1 or full belong into a reward: the expectation of the gradient of k2 or k3 there is not that of the KL's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.types import KLEstimator, TextEnvError

__all__ = ["AdaptiveKL", "full_kl", "kl_estimate"]

_LARGEST_LOG_RATIO = 80.0  # exp of more overflows float32; a token this unlikely has lost already


def kl_estimate(log_prob: NDArray[Any], ref_log_prob: NDArray[Any], estimator: KLEstimator) -> NDArray[np.float64]:
    """Estimate KL(pi || pi_ref) from the log-probabilities of sampled tokens.

    Args:
        log_prob: ``log pi(a|s)`` in nats, any shape.
        ref_log_prob: ``log pi_ref(a|s)`` in nats, the same shape.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.

    Returns:
        The estimates in nats, the same shape.

    Raises:
        TextEnvError: The estimator needs more than the sampled tokens, or does not exist.
    """
    log_ratio = np.asarray(ref_log_prob, dtype=np.float64) - np.asarray(log_prob, dtype=np.float64)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return np.expm1(np.minimum(log_ratio, _LARGEST_LOG_RATIO)) - log_ratio
    raise TextEnvError(f"kl_estimator={estimator!r}: expected 'k1', 'k2' or 'k3' where only sampled tokens are known.")


def full_kl(log_probs: NDArray[Any], ref_log_probs: NDArray[Any]) -> NDArray[np.float64]:
    """Return KL(pi || pi_ref) of whole next-token distributions, summed over the vocabulary.

    Args:
        log_probs: ``log pi(.|s)`` in nats, shape ``(..., vocab_size)``; ``-inf`` for tokens that cannot be drawn.
        ref_log_probs: ``log pi_ref(.|s)`` in nats, the same shape.

    Returns:
        The divergence in nats, shape ``(...)``.
    """
    log_probs, ref_log_probs = np.asarray(log_probs, dtype=np.float64), np.asarray(ref_log_probs, dtype=np.float64)
    possible = np.isfinite(log_probs)
    difference = np.where(possible, log_probs, 0.0) - np.where(possible, ref_log_probs, 0.0)
    return np.asarray((np.exp(log_probs) * difference).sum(axis=-1), dtype=np.float64)


@dataclass(slots=True)
class AdaptiveKL:
    """The KL coefficient, fixed or driven towards a target (Ziegler et al. 2019, section 2.2).

    Attributes:
        coef: The coefficient beta now.
        target: KL of an episode to aim at, in nats; None keeps ``coef`` as it is.
        horizon: Episodes over which a relative error of one changes the coefficient e-fold.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def __post_init__(self) -> None:
        """Check the settings."""
        if not np.isfinite(self.coef) or self.coef < 0:
            raise TextEnvError(f"kl_coef={self.coef}: expected a finite number of at least 0.")
        if self.target is not None and not 0 < self.target < np.inf:
            raise TextEnvError(f"kl_target={self.target}: expected a finite KL per episode above 0 nats, or None.")
        if self.target is not None and self.coef == 0:
            raise TextEnvError("kl_coef=0 with kl_target set: a coefficient of 0 stays 0; give a starting value.")
        if self.horizon < 1:
            raise TextEnvError(f"kl_horizon={self.horizon}: expected a number of episodes of at least 1.")

    def update(self, mean_kl: float, episodes: int) -> None:
        """Move the coefficient by ``coef *= 1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon``.

        More episodes than the horizon count as the horizon, or the coefficient could become negative.

        Args:
            mean_kl: KL summed over an episode, in nats, mean over the episodes.
            episodes: How many episodes it was measured on.
        """
        if self.target is not None:
            error = min(max(mean_kl / self.target - 1.0, -0.2), 0.2)
            self.coef *= 1.0 + error * min(episodes / self.horizon, 1.0)
