"""What unfinished texts are worth to the policy that maximises the KL-regularised return, by soft value iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.agents.critic import hats
from textenv.exact import logsumexp
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
        self._embeddings = (embeddings - embeddings.mean(axis=0)) / max(float(embeddings.std()), 1e-12)
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
        later = states.written > 0
        features = self._embeddings[states.last[later]]
        system = features.T @ features + _EMBEDDING_RIDGE * np.eye(features.shape[1])
        for _ in range(_SWEEPS):
            left = self._sweep(states, beta)[later]  # by what the score and the length say
            self.promise = self._embeddings @ np.linalg.solve(system, features.T @ left)
        self._sweep(states, beta)

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

    def _sweep(self, states: Choices, beta: float) -> _Floats:
        """Compute the values from the end on; return what of the states' own is not of score and length, ``(n,)``."""
        self.values = np.repeat(self.knots[None], self.budget + 1, axis=0)
        left = np.zeros(len(states.written))
        for written in range(self.budget - 1, -1, -1):
            now = np.flatnonzero(states.written == written)
            self.values[written] = self.values[written + 1]
            if not len(now):
                continue
            here = Choices._make(column[now] for column in states)
            rest = np.log(np.maximum(1e-12, 1 - np.exp(here.log_probs).sum(axis=1, keepdims=True)))
            priors = np.concatenate([here.log_probs, rest], axis=1)
            value = beta * logsumexp(priors + self.q(here) / beta, axis=1)
            known = self.promise[here.last] if written else 0.0
            features = hats(self.knots, here.scores)
            system = features.T @ features + np.eye(_KNOTS)
            gain = features.T @ (value - known - self.worth(here.scores, written + 1))
            self.values[written] += np.linalg.solve(system, gain)
            left[now] = value - self.worth(here.scores, written)
        return left


def join(parts: Sequence[Choices]) -> Choices:
    """Return states together."""
    return Choices._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


_KNOTS = 9
_SWEEPS = 20  # each looks a token further ahead
_EMBEDDING_RIDGE = 300.0
