"""Where the sentences of a summary come from: the sentence below each with which it has the most in common."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from textenv.analysis.book_summary import Summary
from textenv.models.matcher import words_of

__all__ = ["Source", "Sources", "sentences_of"]

_END = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+|\n\s*\n")


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, each with the white space behind it, so that together they are the text."""
    ends = [found.end() for found in _END.finditer(text)]
    cuts = [0, *(end for end in ends if end < len(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts) if begin < end]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a sentence comes from.

    Attributes:
        child: Index of a node at the height below; for a sentence at height 0, of its own node, for its passage.
        sentence: Which sentence of that node's summary, or of the passage.
        share: Share of the sentence's words that are there, each weighted by how rare it is in the book.
    """

    child: int
    sentence: int
    share: float


class Sources:
    """Finds the sources of all sentences of a tree.

    Words say the more the fewer leaves of the book they are in. What is found is a guess: a model may say something in
    other words, or something that is not there at all, and then little or nothing is in common.
    """

    def __init__(self, text: str, nodes: Sequence[Summary]) -> None:
        """Take a tree.

        Args:
            text: The book.
            nodes: Its nodes, as ``summarize_book`` returns them.
        """
        self.passages = [sentences_of(text[node.first : node.end]) for node in nodes if node.height == 0]
        self.summaries: dict[int, list[list[str]]] = {}
        for node in nodes:
            self.summaries.setdefault(node.height, []).append(sentences_of(node.summary))
        self._leaves = len(self.passages)
        self._known = Counter(word for each in self.passages for word in set(words_of("".join(each))))

    def of(self, node: Summary) -> list[Source | None]:
        """Return the source of each sentence of a node's summary; None where no word is in common."""
        if node.height:
            below = self.summaries[node.height - 1]
            among = [
                (child, place, each) for child in range(node.first, node.end) for place, each in enumerate(below[child])
            ]
        else:
            among = [(node.index, place, each) for place, each in enumerate(self.passages[node.index])]
        sets = [(child, place, set(words_of(each))) for child, place, each in among]
        return [self._best(words_of(sentence), sets) for sentence in self.summaries[node.height][node.index]]

    def _best(self, words: Iterable[str], among: Sequence[tuple[int, int, set[str]]]) -> Source | None:
        weights = {word: math.log((1 + self._leaves) / (0.5 + self._known[word])) for word in words}
        total = math.fsum(weights.values())
        best = Source(0, 0, 0.0)
        for child, place, there in among:
            share = math.fsum(weight for word, weight in weights.items() if word in there) / total if total > 0 else 0.0
            if share > best.share:
                best = Source(child, place, share)
        return best if best.share > 0 else None
