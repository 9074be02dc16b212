"""What unfinished texts are worth to the policy that maximises the KL-regularised return, by soft value iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from textenv.agents.critic import hats
from textenv.analysis.exact import logsumexp
from textenv.types import IntArray, TextEnvError

__all__ = ["Choices", "SoftValues"]

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
        over: Whether the episode ends there, ``(n, candidates)``.
    """

    written: IntArray
    scores: _Floats
    last: IntArray
    tokens: NDArray[np.integer[Any]]
    log_probs: _Floats
    next_scores: _Floats
    over: NDArray[np.bool_]


class _Stage(NamedTuple):
    """States of as many tokens: where they stand, what they lead to, log pi_ref with the rest as the last column."""

    written: int
    rows: IntArray
    choices: Choices
    priors: _Floats
    features: _Floats  # of their scores


class SoftValues:
    """The optimal soft value of a text, as a function of its score, its number of tokens and its last token.

    ``V(s) = beta * log sum over a of pi_ref(a|s) * exp(Q(s, a) / beta)``, from the last token backwards; the sum is
    over all candidates of a state, so that nothing is left to the chance of what was written. ``V`` is fitted to it by
    ridge regression, piecewise linear in the score for each number of tokens, and linear in the embedding of the last
    token: "very" says little yet and promises much. It is shrunk towards the value with a token less to come.
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
        self.promise = np.zeros(len(embeddings))  # of each token

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
        self.promise = np.zeros(len(self._embeddings))
        stages = self._stages(states)
        later = states.written > 0
        centre, spread = self._embeddings.mean(axis=0), max(float(self._embeddings.std()), 1e-12)
        features = (self._embeddings[states.last[later]] - centre) / spread
        system = cho_factor(features.T @ features + _EMBEDDING_RIDGE * np.eye(features.shape[1]))
        for _ in range(_SWEEPS):
            left = self._sweep(stages, beta, len(later))[later]  # by what the score and the length say
            slope = cho_solve(system, features.T @ left) / spread
            self.promise = self._embeddings @ slope - centre @ slope
        self._sweep(stages, beta, len(later))

    def worth(self, scores: _Floats, written: IntArray | int) -> _Floats:
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
        going_on = self.worth(states.next_scores, more) + self.promise[states.tokens]
        others = self.worth(states.scores[:, None], more)
        return np.concatenate([np.where(states.over, states.next_scores, going_on), others], axis=1)

    def arrays(self) -> dict[str, _Floats]:
        """Return what there is to be saved."""
        return {"knots": self.knots, "values": self.values, "promise": self.promise}

    def restore(self, arrays: dict[str, _Floats]) -> None:
        """Take what ``arrays`` returned.

        Raises:
            TextEnvError: It is of texts of another length, or of another vocabulary.
        """
        found = len(arrays["values"]) - 1, len(arrays["promise"])
        if found != (self.budget, len(self.promise)):
            raise TextEnvError(
                f"The values that were saved are of completions of up to {found[0]} tokens out of {found[1]:,}, this "
                f"environment has max_new_tokens={self.budget} and {len(self.promise):,}; make it with the same."
            )
        self.knots, self.values, self.promise = arrays["knots"], arrays["values"], arrays["promise"]

    def _stages(self, states: Choices) -> list[_Stage]:
        """Return the states by tokens written, the most first, with all of them that no sweep changes."""
        stages = []
        for written in np.unique(states.written)[::-1].tolist():
            rows = np.flatnonzero(states.written == written)
            here = Choices._make(column[rows] for column in states)
            rest = np.log(np.maximum(1e-12, 1 - np.exp(here.log_probs).sum(axis=1, keepdims=True)))
            priors = np.concatenate([here.log_probs, rest], axis=1)
            stages.append(_Stage(written, rows, here, priors, hats(self.knots, here.scores)))
        return stages

    def _sweep(self, stages: Sequence[_Stage], beta: float, count: int) -> _Floats:
        """Compute the values from the end on; return what score and length leave of those of ``count`` states."""
        self.values = np.repeat(self.knots[None], self.budget + 1, axis=0)
        left = np.zeros(count)
        for written, rows, here, priors, features in stages:
            value = beta * logsumexp(priors + self.q(here) / beta, axis=1)
            known = self.promise[here.last] if written else 0.0
            more = value - known - self.worth(here.scores, written + 1)
            gain = np.linalg.solve(features.T @ features + np.eye(_KNOTS), features.T @ more)
            self.values[: written + 1] = self.values[written + 1] + gain  # also where no state is of fewer tokens
            left[rows] = value - self.worth(here.scores, written)
        return left


def join(parts: Sequence[Choices]) -> Choices:
    """Return states together."""
    return Choices._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


_KNOTS = 9
_SWEEPS = 20  # in which values and promises are fitted in turn
_EMBEDDING_RIDGE = 300.0
