"""Which pairs to ask people about next."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textenv.types import IntArray, TextEnvError

__all__ = ["choose_pairs", "disagreement"]


def disagreement(scores: NDArray[Any], pairs: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far the members of an ensemble disagree about pairs (Christiano et al. 2017, section 2.2.4).

    It is the variance over members of the probability that the first is better, at most 1/4. That members lie far from
    each other does not matter if they prefer the same one.

    Args:
        scores: The score that each member gives each item, as a log-odds, shape ``(members, items)``.
        pairs: Indices of items, shape ``(pairs, 2)``.

    Returns:
        Variances, shape ``(pairs,)``.
    """
    lead = np.asarray(scores, dtype=np.float64)
    lead = lead[:, pairs[:, 0]] - lead[:, pairs[:, 1]]
    variance: NDArray[np.float64] = (0.5 + 0.5 * np.tanh(lead / 2)).var(axis=0)
    return variance


def choose_pairs(
    scores: NDArray[Any],
    pairs: NDArray[Any],
    count: int,
    *,
    rng: np.random.Generator,
    by: Literal["disagreement", "random"] = "disagreement",
) -> IntArray:
    """Return which pairs to ask about: those that the ensemble disagrees about most, or any.

    Args:
        scores: See ``disagreement``.
        pairs: Candidates, shape ``(pairs, 2)``.
        count: How many to choose.
        rng: Draws at random, and among pairs of equal disagreement.
        by: ``"disagreement"`` or ``"random"``.

    Returns:
        Indices of pairs, the most disputed first, shape ``(count,)``.

    Raises:
        TextEnvError: There are fewer pairs, or one member alone is to disagree.
    """
    alone = by == "disagreement" and len(scores) < 2
    if not 0 <= count <= len(pairs) or by not in ("disagreement", "random") or alone:
        raise TextEnvError(
            f"count={count} of {len(pairs)} pairs, by={by!r}, {len(scores)} members: expected no more than there are, "
            "and 'random', or 'disagreement' of at least two members."
        )
    order = rng.permutation(len(pairs))
    if by == "disagreement":
        order = order[np.argsort(-disagreement(scores, pairs[order]), kind="stable")]
    chosen: IntArray = order[:count].astype(np.int64)
    return chosen
