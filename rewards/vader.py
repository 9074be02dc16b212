"""Sentiment by a lexicon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from textenv.rewards._require import require
from textenv.rewards._texts import completion_texts

__all__ = ["Vader"]


@dataclass(frozen=True, slots=True)
class Vader:
    """How positive the completion reads: VADER's compound score, from -1 (negative) to 1 (positive).

    Needs no model and no network, and scores some ten thousand short texts a second. Text without a word of the
    lexicon scores 0. English only.

    Hutto and Gilbert, 2014: *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*.

    Raises:
        TextEnvError: If ``vaderSentiment`` is not installed.
    """

    def __post_init__(self) -> None:
        _analyzer()

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores from -1 to 1."""
        analyzer = _analyzer()
        return [float(analyzer.polarity_scores(completion)["compound"]) for completion in completion_texts(completions)]


@cache
def _analyzer() -> Any:
    """Read the lexicon once a process; the analyzer keeps no state between texts."""
    library = require("vaderSentiment.vaderSentiment", user="vader", install="vaderSentiment")
    return library.SentimentIntensityAnalyzer()
