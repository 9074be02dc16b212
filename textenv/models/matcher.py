"""A matcher of texts and summaries: how likely is a summary the one that belongs to a text? A program, not a person.

It is a linear model of a few measures of words, which learns from texts with their true summaries: the true one against
those of neighbors, texts that resemble it, and against what can go wrong with it: its words in another order, its first
half alone, its words said twice. That takes seconds, and what it likes can be read off its weights.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from textenv.types import TextEnvError

__all__ = ["Match", "Matcher", "copied_share", "matches_of", "words_of"]

_WORD = re.compile(r"\w+(?:[-'.+]\w+)*")
_LEAD = 25  # words of a text that say the most
_STEM = 5  # letters
_END = ""
_SEEN = 0.7  # weight of a word's frequency after the one before it, the rest being that of the word by itself
_RIDGE = 1e-4
_NEWTON_STEPS = 30


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; ``"file-system"`` and ``"python3.11"`` are one each."""
    return _WORD.findall(text.lower())


def copied_share(text: str, summary: str) -> float:
    """Return the share of a summary's pairs of neighboring words that are in the text; 0 if it has none."""
    pairs = list(pairwise(words_of(summary)))
    there = set(pairwise(words_of(text)))
    return sum(pair in there for pair in pairs) / len(pairs) if pairs else 0.0


@dataclass(frozen=True, slots=True)
class Match:
    """A text, its true summary, and summaries that are not.

    Attributes:
        text: The text.
        true: Its summary.
        others: Summaries of neighbors, at least one.
    """

    text: str
    true: str
    others: tuple[str, ...]


def matches_of(
    texts: Sequence[str], summaries: Sequence[str], groups: Sequence[tuple[str, ...]], *, others: int = 2, seed: int = 0
) -> list[Match]:
    """Return a match for each text, with the summaries of its neighbors.

    Args:
        texts: The texts.
        summaries: The summary of each.
        groups: Names of the groups of each, the closest first, such as its source package and its section. Neighbors
            are drawn from the closest group that has enough of them, and from all texts where none has.
        others: Summaries of neighbors, for each text.
        seed: Seeds which are drawn.

    Raises:
        TextEnvError: There are fewer different summaries than a match has.
    """
    if len(set(summaries)) <= others:
        raise TextEnvError(f"{len(set(summaries))} different summaries; expected more than {others} to learn from.")
    members: dict[str, list[str]] = {}
    for summary, names in zip(summaries, groups, strict=True):
        for name in ("", *names):
            members.setdefault(name, []).append(summary)
    pools = {name: sorted(set(each)) for name, each in members.items()}
    rng = random.Random(seed)
    found = []
    for text, summary, names in zip(texts, summaries, groups, strict=True):
        pool = next(pools[name] for name in (*names, "") if len(pools[name]) > others)
        drawn = [each for each in rng.sample(pool, others + 1) if each != summary][:others]
        found.append(Match(text, summary, tuple(drawn)))
    return found


class Matcher:
    """Scores summaries of texts.

    The score is a log-odds: of two summaries of a text, one is taken for the true one with probability ``sigmoid`` of
    the difference (Bradley and Terry). True summaries have the mean 0.

    Attributes:
        weights: Of the measures in ``FEATURES``, shape ``(features,)``.
        shift: Mean of the weighted measures over true summaries.
    """

    FEATURES = (
        "words in the text",
        "words in its beginning",
        "stems in the text",
        "beginning covered",
        "fluency",
        "new words",
        "length",
    )
    """The first four are shares of words, each weighted by how rare it is. Fluency is the mean log-probability of a
    word after the one before, new words the share of words that are not repeated, and length minus the square of how
    many standard deviations its logarithm is from that of true summaries."""

    def __init__(self, matches: Sequence[Match], *, seed: int = 0) -> None:
        """Learn from matches: what words are worth from one half of them, the weights from the other.

        Args:
            matches: At least two.
            seed: Seeds the halves, and in which order the words of summaries are put.

        Raises:
            TextEnvError: There are fewer.
        """
        if len(matches) < 2:
            raise TextEnvError(f"{len(matches)} matches; expected at least two to learn from.")
        rng = random.Random(seed)
        mixed = rng.sample(list(matches), len(matches))
        counted, weighed = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
        self._texts = len(counted)
        self._known = Counter(word for match in counted for word in set(words_of(match.text)))
        self._words, self._pairs, self._firsts = _counts([match.true for match in counted])
        self._total = sum(self._words.values()) + len(self._words) + 1
        lengths = np.log1p([len(words_of(match.true)) for match in counted])
        self._length, self._spread = float(lengths.mean()), max(float(lengths.std()), 0.1)
        true = self._measures([(match.text, match.true) for match in weighed])
        wrong = []
        for match, measured in zip(weighed, true, strict=True):
            others = self._measures([(match.text, other) for other in (*match.others, *_spoiled(match.true, rng))])
            wrong.append(measured - others)
        self.weights = _fit(np.concatenate(wrong))
        self.shift = float((true @ self.weights).mean())

    def scores(self, texts: Sequence[str], summaries: Sequence[str]) -> NDArray[np.float64]:
        """Return the score of each summary of each text, shape ``(n,)``."""
        found: NDArray[np.float64] = self._measures(list(zip(texts, summaries, strict=True))) @ self.weights
        return found - self.shift

    def accuracy(self, matches: Sequence[Match]) -> float:
        """Return the share of pairs of a true summary and another that it orders rightly; equal scores count 1/2."""
        right = []
        for match in matches:
            true, *others = self.scores([match.text] * (1 + len(match.others)), [match.true, *match.others])
            right += [0.5 + 0.5 * float(np.sign(true - other)) for other in others]
        return float(np.mean(right))

    def _measures(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Return the measures of texts and summaries, shape ``(n, features)``."""
        return np.array([self._measure(words_of(text), words_of(summary)) for text, summary in pairs]).reshape(
            -1, len(self.FEATURES)
        )

    def _measure(self, text: Sequence[str], summary: Sequence[str]) -> list[float]:
        said, lead = set(summary), text[:_LEAD]
        far = (math.log1p(len(summary)) - self._length) / self._spread
        stems = {word[:_STEM] for word in text}
        return [
            self._share(said, set(text)),
            self._share(said, set(lead)),
            self._share(said, {word for word in said if word[:_STEM] in stems}),
            self._share(set(lead), said),
            self._fluency(summary),
            len(said) / len(summary) if summary else 0.0,
            -(far**2),
        ]

    def _share(self, words: set[str], among: set[str]) -> float:
        """Return the share of words that are among others, each weighted by how rare it is."""
        weights = {word: math.log((1 + self._texts) / (0.5 + self._known[word])) for word in sorted(words)}
        total = math.fsum(weights.values())
        return math.fsum(weight for word, weight in weights.items() if word in among) / total if total else 0.0

    def _fluency(self, summary: Sequence[str]) -> float:
        logs = []
        for before, word in pairwise((_END, *summary, _END)):
            alone = (1 + self._words[word]) / self._total
            after = self._pairs[before, word] / self._firsts[before] if self._firsts[before] else 0.0
            logs.append(math.log((1 - _SEEN) * alone + _SEEN * after))
        return math.fsum(logs) / len(logs)


def _spoiled(summary: str, rng: random.Random) -> list[str]:
    """Return a summary with its words in another order, its first half, and its words twice."""
    words = words_of(summary)
    return [" ".join(each) for each in (rng.sample(words, len(words)), words[: len(words) // 2], words * 2)]


def _counts(summaries: Sequence[str]) -> tuple[Counter[str], Counter[tuple[str, str]], Counter[str]]:
    """Return how often words, pairs of neighboring words and first words of pairs come; ``""`` is the end."""
    pairs = Counter(pair for summary in summaries for pair in pairwise((_END, *words_of(summary), _END)))
    words: Counter[str] = Counter()
    firsts: Counter[str] = Counter()
    for (before, word), count in pairs.items():
        words[word] += count
        firsts[before] += count
    return words, pairs, firsts


def _fit(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of a logistic regression without intercept by Newton's method.

    Args:
        differences: Measures of what is right less those of what is wrong, shape ``(pairs, features)``.
    """
    weights = np.zeros(differences.shape[1])
    for _ in range(_NEWTON_STEPS):
        wrong = 1 / (1 + np.exp(np.clip(differences @ weights, -500, 500)))
        gradient = differences.T @ wrong / len(differences) - _RIDGE * weights
        curvature = (differences * (wrong * (1 - wrong))[:, None]).T @ differences / len(differences)
        step = np.linalg.solve(curvature + _RIDGE * np.eye(len(weights)), gradient)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return weights
