"""Strengths of policies from comparisons of what they wrote (Bradley & Terry 1952)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from textenv.feedback.store import FeedbackStore
from textenv.types import Ranking, TextEnvError

__all__ = ["Strength", "fit_bradley_terry", "policy_strengths"]

_PRIOR = 0.1  # weight of a drawn game of each player against a player of strength 0


@dataclass(frozen=True, slots=True)
class Strength:
    """The strength of one player.

    Attributes:
        strength: In logits, with a mean of 0 over all players: a player whose strength is higher by ``d`` wins with
            probability ``sigmoid(d)``.
        interval: Its 95 % interval, from the curvature of the likelihood.
        comparisons: Number of comparisons that it took part in.
    """

    strength: float
    interval: tuple[float, float]
    comparisons: int


def fit_bradley_terry(wins: NDArray[np.float64], *, prior: float = _PRIOR) -> list[Strength]:
    """Fit strengths to how often players beat each other, by penalized maximum likelihood.

    A tie counts as half a win for either side. Each player is assumed to have drawn ``prior`` games against a player of
    strength 0, so that a player who has never lost, and groups that have never met, have finite strengths.

    Args:
        wins: ``wins[i, j]`` is how often ``i`` beat ``j``, ties being halves; shape ``(players, players)``, 0 on the
            diagonal.
        prior: Number of those games, any number above 0.

    Returns:
        Each player's strength.

    Raises:
        TextEnvError: ``wins`` is not such an array, or ``prior`` is not above 0.
    """
    table = np.asarray(wins, dtype=np.float64)
    count = len(table)
    if table.shape != (count, count) or not (np.isfinite(table).all() and (table >= 0).all()) or np.diag(table).any():
        raise TextEnvError(
            f"wins of shape {table.shape}: expected a square of numbers of at least 0, with 0 on its diagonal."
        )
    if not prior > 0:
        raise TextEnvError(f"prior={prior}: expected a number above 0.")
    if not count:
        return []
    games = table + table.T

    def loss(x: NDArray[np.float64]) -> float:
        lead = np.subtract.outer(x, x)
        drawn = 0.5 * (np.logaddexp(0, -x) + np.logaddexp(0, x))
        return float((table * np.logaddexp(0, -lead)).sum() + prior * drawn.sum())

    def gradient(x: NDArray[np.float64]) -> NDArray[np.float64]:
        won = expit(np.subtract.outer(x, x))
        return np.asarray((games * won - table).sum(axis=1) + prior * (expit(x) - 0.5))

    def curvature(x: NDArray[np.float64]) -> NDArray[np.float64]:
        won = expit(np.subtract.outer(x, x))
        weight = games * won * (1 - won)
        return np.asarray(np.diag(weight.sum(axis=1) + prior * expit(x) * expit(-x)) - weight)

    # Not "trust-exact", which divides 0 by 0 when a step of the trust radius is orthogonal to a shift of all x, along
    # which the loss is nearly flat.
    x = minimize(loss, np.zeros(count), jac=gradient, hess=curvature, method="dogleg", tol=1e-9).x
    center = np.eye(count) - 1 / count
    covariance = center @ np.linalg.inv(curvature(x)) @ center
    error = 1.959964 * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    x = center @ x
    return [
        Strength(float(value), (float(value - wide), float(value + wide)), round(float(played)))
        for value, wide, played in zip(x, error, games.sum(axis=1), strict=True)
    ]


def policy_strengths(store: FeedbackStore) -> list[tuple[str, Strength]]:
    """Return the strengths of the policies that were compared with others, with their names, strongest first.

    Repeated and gold tasks are left out, and so are comparisons of a policy with itself. The pairs of one ranking count
    as if they were independent, which makes the intervals of long rankings too narrow.
    """
    policies = store.policies()
    place = {policy.id: number for number, policy in enumerate(policies)}
    author = {item.id: item.policy for item in (*store.completions(), *store.clips())}
    tasks = {task.id: task for task in store.tasks()}
    wins = np.zeros((len(policies), len(policies)))
    for judgement in store.judgements():
        task = tasks[judgement.task]
        if judgement.verdict != "ranked" or task.gold is not None or task.repeat_of is not None:
            continue
        for better, worse, tied in _pairs(judgement.ranks):
            one, other = author[task.items[better]], author[task.items[worse]]
            if one is None or other is None or one == other:
                continue
            wins[place[one], place[other]] += 0.5 if tied else 1.0
            wins[place[other], place[one]] += 0.5 if tied else 0.0
    met = np.flatnonzero((wins + wins.T).sum(axis=1))
    fitted = fit_bradley_terry(wins[np.ix_(met, met)])
    found = [(policies[number].name, strength) for number, strength in zip(met.tolist(), fitted, strict=True)]
    return sorted(found, key=lambda pair: -pair[1].strength)


def _pairs(ranks: Sequence[int | None]) -> list[tuple[int, int, bool]]:
    return Ranking("", ("",) * len(ranks), tuple(ranks)).pairs()
