"""Values of unfinished texts under the policy that maximizes the KL-regularized return, by soft value iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp

from textenv.agents.critic import interpolation_weights
from textenv.types import IntArray, TextEnvError

__all__ = ["Choices", "SoftValues", "concatenate_choices"]

_Floats = NDArray[Any]


class Choices(NamedTuple):
    """States, and what every candidate for the next token leads to.

    Attributes:
        written: Tokens of the completions so far, ``(n,)``.
        scores: Of them as they are, ``(n,)``.
        last: The last token, ``(n,)``.
        tokens: The candidates, ``(n, candidates)``.
        log_probs: log pi_ref of them in nats, ``(n, candidates)``.
        next_scores: Scores with one of them more, ``(n, candidates)``.
        ended: Whether the episode ends there, ``(n, candidates)``.
    """

    written: IntArray
    scores: _Floats
    last: IntArray
    tokens: NDArray[np.integer[Any]]
    log_probs: _Floats
    next_scores: _Floats
    ended: NDArray[np.bool_]


class _Stage(NamedTuple):
    """States of the same number of tokens: row numbers, candidates, log pi_ref with all other tokens last."""

    written: int
    rows: IntArray
    choices: Choices
    priors: _Floats
    features: _Floats  # of their scores


class SoftValues:
    """The optimal soft value of a text, as a function of its score, its number of tokens and its last token.

    ``V(s) = beta * log sum over a of pi_ref(a|s) * exp(Q(s, a) / beta)``, from the last token backwards; the sum is
    over all candidates of a state, so that no noise of sampling enters. ``V`` is fitted to it by
    ridge regression, piecewise linear in the score for each number of tokens, and linear in the embedding of the last
    token: a score may say little of "very" and rise with what follows it. It is shrunk towards the value of a
    text that is one token longer.
    """

    def __init__(self, budget: int, embeddings: _Floats) -> None:
        """Begin without values.

        Args:
            budget: The most tokens of a completion.
            embeddings: Of the vocabulary, ``(vocab_size, hidden_size)``.
        """
        self.budget = budget
        self._embeddings = embeddings
        self.knots = np.zeros(0)  # scores
        self.values = np.zeros((budget + 1, 0))  # at the knots, by tokens written
        self.token_values = np.zeros(len(embeddings))  # of each token, as the last one of a text

    @property
    def fitted(self) -> bool:
        """Whether it has values."""
        return self.knots.size > 0

    def fit(self, states: Choices, beta: float) -> None:
        """Compute the values of states from those of their successors.

        Args:
            states: Of episodes of any policy.
            beta: Weight of the KL penalty, above 0.
        """
        least, most = np.quantile(states.scores, (0.005, 0.995)).tolist()
        self.knots = np.linspace(least, max(most, least + 1e-6), _KNOTS)
        self.token_values = np.zeros(len(self._embeddings))
        stages = self._stages(states)
        later = states.written > 0
        center, spread = self._embeddings.mean(axis=0), max(float(self._embeddings.std()), 1e-12)
        features = (self._embeddings[states.last[later]] - center) / spread
        system = cho_factor(features.T @ features + _EMBEDDING_RIDGE * np.eye(features.shape[1]))
        for _ in range(_SWEEPS):
            residuals = self._sweep(stages, beta, len(later))[later]  # what score and length do not explain
            slope = cho_solve(system, features.T @ residuals) / spread
            self.token_values = self._embeddings @ slope - center @ slope
        self._sweep(stages, beta, len(later))

    def values_of(self, scores: _Floats, written: IntArray | int) -> _Floats:
        """Return the values of texts by their scores and numbers of tokens, which are broadcast."""
        scores, written = np.broadcast_arrays(scores, np.minimum(written, self.budget))
        inside = np.clip(scores, self.knots[0], self.knots[-1])
        place = (inside - self.knots[0]) / (self.knots[1] - self.knots[0])
        below = np.minimum(place.astype(np.int64), _KNOTS - 2)
        above = place - below
        within = (1 - above) * self.values[written, below] + above * self.values[written, below + 1]
        found: _Floats = within + (scores - inside)
        return found

    def q(self, states: Choices) -> _Floats:
        """Return ``Q`` of the candidates, ``(n, candidates)``, and of any other token, as the last column."""
        more = states.written[:, None] + 1
        going_on = self.values_of(states.next_scores, more) + self.token_values[states.tokens]
        others = self.values_of(states.scores[:, None], more)
        return np.concatenate([np.where(states.ended, states.next_scores, going_on), others], axis=1)

    def arrays(self) -> dict[str, _Floats]:
        """Return what there is to be saved."""
        return {"knots": self.knots, "values": self.values, "token_values": self.token_values}

    def restore(self, arrays: dict[str, _Floats]) -> None:
        """Take what ``arrays`` returned.

        Raises:
            TextEnvError: It is of texts of another length, or of another vocabulary.
        """
        found = len(arrays["values"]) - 1, len(arrays["token_values"])
        if found != (self.budget, len(self.token_values)):
            raise TextEnvError(
                f"The values that were saved are of completions of up to {found[0]} tokens out of {found[1]:,}, this "
                f"environment has max_new_tokens={self.budget} and {len(self.token_values):,}; make it with the same."
            )
        self.knots, self.values, self.token_values = arrays["knots"], arrays["values"], arrays["token_values"]

    def _stages(self, states: Choices) -> list[_Stage]:
        """Return the states by tokens written, the most first, with all that no sweep changes."""
        stages = []
        for written in np.unique(states.written)[::-1].tolist():
            rows = np.flatnonzero(states.written == written)
            here = Choices._make(column[rows] for column in states)
            rest = np.log(np.maximum(1e-12, 1 - np.exp(here.log_probs).sum(axis=1, keepdims=True)))
            priors = np.concatenate([here.log_probs, rest], axis=1)
            stages.append(_Stage(written, rows, here, priors, interpolation_weights(self.knots, here.scores)))
        return stages

    def _sweep(self, stages: Sequence[_Stage], beta: float, count: int) -> _Floats:
        """Compute the values from the end on; return of ``count`` states what score and length do not explain."""
        self.values = np.repeat(self.knots[None], self.budget + 1, axis=0)
        residuals = np.zeros(count)
        for written, rows, here, priors, features in stages:
            value = beta * np.asarray(logsumexp(priors + self.q(here) / beta, axis=1))
            known = self.token_values[here.last] if written else 0.0
            more = value - known - self.values_of(here.scores, written + 1)
            gain = np.linalg.solve(features.T @ features + np.eye(_KNOTS), features.T @ more)
            self.values[: written + 1] = self.values[written + 1] + gain  # also where no state is of fewer tokens
            residuals[rows] = value - self.values_of(here.scores, written)
        return residuals


def concatenate_choices(parts: Sequence[Choices]) -> Choices:
    """Return states together."""
    return Choices._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


_KNOTS = 9
_SWEEPS = 20  # in which values and token values are fitted in turn
_EMBEDDING_RIDGE = 300.0
