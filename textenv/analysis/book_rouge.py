"""ROUGE of summaries against those by people, and what extracts of the text can reach.

Lin 2004: *ROUGE: A Package for Automatic Evaluation of Summaries*. The extractive oracle reads the summary by people,
and so says how far copied sentences could get; the greedy search for it is that of Nallapati et al. 2017
(arXiv:1611.04230).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from textenv.env.scoring import resolve_reward, score

__all__ = ["ROUGE", "extractive_oracle", "overlap", "rouge_of"]

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
"""The variants that are measured, and what the reward ``rouge`` calls them."""

_WORD = re.compile("[a-z0-9]+")  # as rouge-score reads texts


def rouge_of(summaries: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return the F-measures of ``n`` summaries, each against its reference, by the name of the variant.

    Raises:
        TextEnvError: rouge-score is not installed.
    """
    return {
        name: score(
            resolve_reward({"name": "rouge", "variant": variant}),
            prompts=[""] * len(summaries),
            completions=summaries,
            completion_ids=[()] * len(summaries),
            columns={"reference": references},
        ).tolist()
        for name, variant in ROUGE.items()
    }


def overlap(text: str, reference: str) -> float:
    """Return the F-measures of ROUGE-1 and ROUGE-2, added up: from 0 to 2."""
    return sum(_f_measure(_grams(text, size), _grams(reference, size)) for size in (1, 2))


def extractive_oracle(sentences: Sequence[str], reference: str, cut: Callable[[str], str]) -> str:
    """Return sentences of a text, in their order, that overlap with a reference as much as a greedy search finds.

    Sentence by sentence the one is added that raises ``overlap`` the most, as long as one does.

    Args:
        sentences: Of the text.
        reference: What they are to say; whoever chooses knows it.
        cut: Shortens a text to what a summary may have; what it cuts counts for nothing.
    """
    chosen: list[int] = []
    best, text = 0.0, ""
    while left := [place for place in range(len(sentences)) if place not in chosen]:
        tried = [
            (overlap(found, reference), -place, found)
            for place in left
            for found in [cut(" ".join(sentences[each].strip() for each in sorted([*chosen, place])))]
        ]
        value, place, found = max(tried)
        if value <= best:
            break
        best, text = value, found
        chosen.append(-place)
    return text


def _grams(text: str, size: int) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter(zip(*(words[begin:] for begin in range(size)), strict=False))


def _f_measure(found: Counter[tuple[str, ...]], wanted: Counter[tuple[str, ...]]) -> float:
    total = found.total() + wanted.total()
    return 2 * (found & wanted).total() / total if total else 0.0
