"""Sentence chrF against references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from textenv.rewards._references import references
from textenv.rewards._require import require
from textenv.rewards._texts import completion_texts
from textenv.validation import Count, NonEmpty, NonNegativeInt, validate

__all__ = ["Chrf"]


@dataclass(frozen=True, slots=True)
class Chrf:
    """Character n-gram F-score of the completion against one or more references, from 0 to 1.

    The score is that of ``sacrebleu.sentence_chrf`` divided by 100. Characters need no tokenizer, so this works in any
    language, and a partly right word counts: a denser signal than BLEU. With several references, the best score counts.

    Popović, 2015: *chrF: character n-gram F-score for automatic MT evaluation*; Popović, 2017: *chrF++: words helping
    character n-grams* (``word_order=2``).

    Attributes:
        column: The prompts' column with the references: each value a string or a list of strings.
        char_order: Longest character n-gram, at least 1.
        word_order: Longest word n-gram, 0 for none.
        beta: Recall counts ``beta`` times as much as precision, at least 1.

    Raises:
        TextEnvError: If sacrebleu is not installed or an argument is not what is expected; when called, if the column
            is missing or holds anything else.
    """

    column: NonEmpty = "reference"
    char_order: Count = 6
    word_order: NonNegativeInt = 0
    beta: Count = 2

    def __post_init__(self) -> None:
        validate(self, owner="Chrf")
        _metric(self.char_order, self.word_order, self.beta)

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores from 0 to 1."""
        metric = _metric(self.char_order, self.word_order, self.beta)
        targets = references("chrf", self.column, columns, len(completions))
        return [
            min(metric.sentence_score(completion, target).score / 100, 1.0)
            for completion, target in zip(completion_texts(completions), targets, strict=True)
        ]


@cache
def _metric(char_order: int, word_order: int, beta: int) -> Any:
    library = require("sacrebleu.metrics", user="chrf", install="textenv[metrics]")
    return library.CHRF(char_order=char_order, word_order=word_order, beta=beta)
