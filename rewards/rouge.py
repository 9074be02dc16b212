"""ROUGE against references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from textenv.rewards._references import references
from textenv.rewards._require import require
from textenv.rewards._texts import completion_texts
from textenv.validation import NonEmpty, validate

__all__ = ["Rouge"]

Variant = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE F-measure of the completion against one or more references, from 0 to 1.

    The score is that of Google's ``rouge-score``; with several references, the best score counts. Its tokenizer keeps
    only ``a-z`` and ``0-9``, so that text in another script scores 0; use ``chrf`` for it.

    Lin, 2004: *ROUGE: A Package for Automatic Evaluation of Summaries*.

    Attributes:
        variant: ``"rouge1"`` and ``"rouge2"`` count words and pairs of words, ``"rougeL"`` the longest common
            subsequence of the whole text, ``"rougeLsum"`` that of each line.
        column: The prompts' column with the references: each value a string or a list of strings.
        stem: Whether words are reduced to their stems first (Porter).

    Raises:
        TextEnvError: If rouge-score is not installed or an argument is not what is expected; when called, if the column
            is missing or holds anything else.
    """

    variant: Variant = "rougeL"
    column: NonEmpty = "reference"
    stem: bool = False

    def __post_init__(self) -> None:
        validate(self, owner="Rouge")
        _scorer(self.variant, self.stem)

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
        scorer = _scorer(self.variant, self.stem)
        targets = references("rouge", self.column, columns, len(completions))
        return [
            float(scorer.score_multi(target, completion)[self.variant].fmeasure)
            for completion, target in zip(completion_texts(completions), targets, strict=True)
        ]


@cache
def _scorer(variant: Variant, stem: bool) -> Any:
    library = require("rouge_score.rouge_scorer", user="rouge", install="textenv[metrics]")
    return library.RougeScorer([variant], use_stemmer=stem)
