"""What texts that are not finished still earn, estimated from the reward model's score of them so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from textenv.env.vector import TextVectorEnv
from textenv.rollouts.collect import Rollout
from textenv.types import IntArray, Prompt

__all__ = ["Critic", "interpolation_weights", "score_next", "score_prefixes"]

_Floats = NDArray[np.float64]


class Critic(nn.Module):
    """What texts still earn, by the score of what is written and the number of its tokens.

    A piecewise linear function of both, fitted by ridge regression to the returns it was last given. It is shrunk
    towards the score itself, as if nothing more were earned.
    """

    def __init__(self, episodes: int, budget: int) -> None:
        """Begin without episodes.

        Args:
            episodes: How many are kept.
            budget: The most tokens of a completion.
        """
        super().__init__()
        self.budget = budget
        for name in ("scores", "returns"):
            self.register_buffer(name, torch.zeros(episodes, budget, dtype=torch.float64))
        self.register_buffer("mask", torch.zeros(episodes, budget, dtype=torch.bool))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))
        self._fit: tuple[_Floats, _Floats] | None = None

    def add(self, scores: _Floats, rollout: Rollout) -> None:
        """Put episodes in the place of the oldest, and fit.

        Args:
            scores: Of the texts before each token, ``(batch, time)``.
            rollout: The episodes.
        """
        mask = rollout.mask
        returns = np.where(mask, rollout.rewards, 0.0)[:, ::-1].cumsum(axis=1)[:, ::-1]
        buffers = dict(self.named_buffers())
        places = (int(buffers["added"]) + torch.arange(len(mask))) % len(buffers["mask"])
        for name, array in (("scores", scores), ("returns", returns), ("mask", mask)):
            rows = torch.zeros(len(places), self.budget, dtype=buffers[name].dtype)
            rows[:, : array.shape[1]] = torch.from_numpy(np.ascontiguousarray(array))
            buffers[name][places] = rows
        buffers["added"] += len(places)
        self._refit()

    def _refit(self) -> None:
        buffers = dict(self.named_buffers())
        held = buffers["mask"].numpy()
        known, earned = buffers["scores"].numpy()[held], buffers["returns"].numpy()[held]
        least, most = np.quantile(known, (0.005, 0.995)).tolist()
        knots = np.unique(np.linspace(least, most, _SCORE_KNOTS))
        features = self._features(knots, known, np.nonzero(held)[1])
        system = features.T @ features + _RIDGE * np.eye(features.shape[1])
        self._fit = knots, np.linalg.solve(system, features.T @ (earned - known)).astype(np.float64)

    def predict(self, scores: _Floats, written: IntArray) -> _Floats:
        """Return the returns that are expected of texts from here on.

        Args:
            scores: Of the texts so far.
            written: Numbers of their tokens; the two are broadcast.
        """
        assert self._fit is not None
        knots, weights = self._fit
        scores, written = np.broadcast_arrays(scores, written)
        later = self._features(knots, scores.ravel(), written.ravel()) @ weights
        found: _Floats = np.where(written == self.budget, scores, scores + later.reshape(scores.shape))
        return found

    def _features(self, knots: _Floats, scores: _Floats, written: IntArray) -> _Floats:
        times = np.linspace(0, self.budget, min(self.budget, _TIME_KNOTS) + 1)
        both = interpolation_weights(knots, scores)[:, :, None] * interpolation_weights(times, written)[:, None, :]
        return both.reshape(len(scores), -1)


def score_prefixes(
    base: TextVectorEnv,
    texts: Sequence[tuple[Prompt, tuple[int, ...]]],
    tokens: IntArray | None,
    *,
    time: int | None = None,
) -> tuple[_Floats, NDArray[np.bool_]]:
    """Score every prefix of some completions, with one token appended.

    Args:
        base: The environment that scores.
        texts: Prompts and completions.
        tokens: What is appended to the prefix of ``t`` tokens, ``(batch, time, candidates)``; None for nothing.
        time: Its second dimension where it is None.

    Returns:
        The scores, and whether an episode would end there, both ``(batch, time, candidates)``.
    """
    shape = (len(texts), time or 0, 1) if tokens is None else tokens.shape
    scores, ended = np.zeros(shape), np.zeros(shape, dtype=bool)
    for row, (prompt, completion) in enumerate(texts):
        ids: list[tuple[int, ...]] = []
        for place in range(len(completion)):
            begun = completion[:place]
            ids += [begun] if tokens is None else [(*begun, token) for token in tokens[row, place].tolist()]
        found, over = score_next(base, [prompt] * len(ids), ids)
        scores[row, : len(completion)] = found.reshape(len(completion), -1)
        ended[row, : len(completion)] = over.reshape(len(completion), -1)
    return scores, ended


def score_next(
    base: TextVectorEnv, prompts: Sequence[Prompt], ids: Sequence[tuple[int, ...]]
) -> tuple[_Floats, NDArray[np.bool_]]:
    """Score completions that may not be finished; return the scores, and which are finished, ``(n,)`` each."""
    texts = [base.endings.completion_text(prompt, each) for prompt, each in zip(prompts, ids, strict=True)]
    last = np.array([each[-1] if each else 0 for each in ids], dtype=np.int64)
    sizes = np.array([len(each) for each in ids], dtype=np.int64)
    ended = base.endings.ends(last, sizes, lambda: [stopped for _, stopped in texts])
    over = np.zeros(len(ids), dtype=bool)
    over[list(ended)] = True
    # A completion that goes on is scored without the penalty for a missing end, as one that has ended by itself is.
    unfinished = [ended.get(place) == "length" for place in range(len(ids))]
    return base.scorer.score(prompts, [text for text, _ in texts], ids, unfinished=unfinished), over


_SCORE_KNOTS, _TIME_KNOTS = 9, 6
_RIDGE = 1.0


def interpolation_weights(knots: _Floats, at: NDArray[Any]) -> _Floats:
    """Return the weights by which values at ``knots`` are interpolated linearly, ``(len(at), len(knots))``."""
    identity = np.eye(len(knots))
    return np.stack([np.interp(at, knots, identity[knot]) for knot in range(len(knots))], axis=1)
