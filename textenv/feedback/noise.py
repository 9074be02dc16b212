"""What errors of a judge cost: how far two such judges agree, and the most that a reward model can be right.

The judge is ``textenv.feedback.annotators.FromReward`` with a temperature T: of two texts whose scores differ by d it
prefers the better with probability ``sigmoid(d / T)``. Two judges agree on the pair with ``p^2 + (1 - p)^2``, and who
knows the scores agrees with a judge in ``max(p, 1 - p)``: the noise ceiling of a model of its choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from textenv.types import TextEnvError

__all__ = ["expected_agreement"]


def expected_agreement(
    scores: Sequence[tuple[float, float]], temperature: float, proxy: Sequence[tuple[float, float]] | None = None
) -> dict[str, list[float]]:
    """Return how probable agreement is on each pair of texts.

    Args:
        scores: The judge's scores of the two texts of each pair.
        temperature: That of the judge, in units of its scores; 0 never errs, and two equal scores are a coin's toss.
        proxy: A reward model's scores of the same texts; None without one.

    Returns:
        Probabilities by name, one a pair: ``"judges"``, that two judges agree; ``"ceiling"``, that whoever knows the
        scores agrees with a judge; and with ``proxy`` ``"model"``, that the model does, equal scores as halves.

    Raises:
        TextEnvError: ``temperature`` is negative, or the two lists are of other lengths.
    """
    if temperature < 0 or (proxy is not None and len(proxy) != len(scores)):
        raise TextEnvError(
            f"temperature={temperature}, {len(scores)} pairs of scores, {len(proxy or scores)} of the model: expected "
            "a temperature of at least 0 and as many of both."
        )
    pairs = np.array(scores, dtype=float).reshape(-1, 2)
    difference = pairs[:, 0] - pairs[:, 1]
    first = expit(difference / temperature) if temperature else (1 + np.sign(difference)) / 2
    found = {"judges": first**2 + (1 - first) ** 2, "ceiling": np.maximum(first, 1 - first)}
    if proxy is not None:
        preferred = np.array(proxy, dtype=float).reshape(-1, 2)
        side = np.sign(preferred[:, 0] - preferred[:, 1])
        found["model"] = 0.5 + side * (first - 0.5)
    return {name: values.tolist() for name, values in found.items()}
