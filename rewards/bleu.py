"""Sentence BLEU against references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from textenv.rewards._references import references
from textenv.rewards._require import require
from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError
from textenv.validation import NonEmpty, validate

__all__ = ["Bleu"]


@dataclass(frozen=True, slots=True)
class Bleu:
    """Sentence BLEU of the completion against one or more references, from 0 to 1.

    The score is that of ``sacrebleu.sentence_bleu`` divided by 100, with exponential smoothing and without n-grams
    longer than the completion.

    Papineni et al., 2002: *BLEU: a Method for Automatic Evaluation of Machine Translation*; Post, 2018: *A Call for
    Clarity in Reporting BLEU Scores*; smoothing: Chen and Cherry, 2014, method 3.

    Attributes:
        column: The prompts' column with the references: each value a string or a list of strings.
        tokenize: sacrebleu's tokenizer, such as ``"13a"``, ``"zh"``, ``"char"`` or ``"none"``.
        lowercase: Whether case is ignored.

    Raises:
        TextEnvError: If an argument is not what is expected, sacrebleu is not installed or has no such tokenizer, or
            what the tokenizer needs is not installed; when called, if the column is missing or holds anything else.
    """

    column: NonEmpty = "reference"
    tokenize: str = "13a"
    lowercase: bool = False

    def __post_init__(self) -> None:
        validate(self, owner="Bleu")
        _metric(self.tokenize, self.lowercase)

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
        metric = _metric(self.tokenize, self.lowercase)
        targets = references("bleu", self.column, columns, len(completions))
        # sacrebleu's perfect score is 100.00000000000004.
        return [
            min(metric.sentence_score(completion, target).score / 100, 1.0)
            for completion, target in zip(completion_texts(completions), targets, strict=True)
        ]


@cache
def _metric(tokenize: str, lowercase: bool) -> Any:
    library = require("sacrebleu.metrics", user="bleu", install="textenv[metrics]")
    if tokenize not in library.BLEU.TOKENIZERS:
        raise TextEnvError(
            f"Bleu(tokenize={tokenize!r}): expected a tokenizer of sacrebleu: {', '.join(library.BLEU.TOKENIZERS)}."
        )
    try:
        return library.BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    except Exception as error:  # tokenizers of some languages need a package each, others a download
        reason = " ".join(str(error).split())
        raise TextEnvError(
            f"Bleu(tokenize={tokenize!r}): sacrebleu cannot make this tokenizer ({type(error).__name__}: {reason}). "
            "Install what it needs, or take '13a', 'intl', 'zh' or 'char', which need nothing."
        ) from error
