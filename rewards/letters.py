"""Scores of short texts of letters, for ``textenv/Exact-v0``, where the best there is can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError
from textenv.validation import Count, NonNegativeInt, validate

__all__ = ["Letters"]

Family = Literal["dense", "sparse", "deceptive", "needle"]
_WORD = 3  # letters of the word that sparse and deceptive ask for


@dataclass(frozen=True, slots=True)
class Letters:
    """One of four families of scores, from easy to nearly impossible to learn.

    With ``T`` the ``length`` and ``c_1 .. c_k`` the letters of the text:

    ============  =======================================================================================
    dense         ``sum_t (u(c_t) + b(c_{t-1}, c_t)) / (2 T)``, where ``u`` and ``b`` are drawn uniformly from -1 to 1
                  and ``b`` is 0 for the first letter: every letter and every pair of neighbors counts; from -1 to 1
    sparse        1 if the text contains a word of three letters that the seed draws, else 0
    deceptive     1 if it contains that word; else half the share of the ``T`` places with letters that are not in the
                  word: every step toward the word lowers the score, until the word is complete
    needle        1 if the text is a certain text of ``T`` letters that the seed draws, else 0
    ============  =======================================================================================

    Characters that are not among ``letters`` add nothing. Texts may be longer than ``T``; dense may then exceed 1.

    Attributes:
        family: ``"dense"``, ``"sparse"``, ``"deceptive"`` or ``"needle"``.
        letters: The alphabet, each letter once.
        length: Letters of a full text, ``T``. The word of sparse and deceptive is not longer.
        seed: Seeds the tables and the words.

    Raises:
        TextEnvError: If the family is unknown, ``letters`` is empty or repeats one, or a number is out of range.
    """

    family: Family = "dense"
    letters: str = "abcdefg"
    length: Count = 6
    seed: NonNegativeInt = 0
    word: str = field(default="", init=False, repr=False)
    """The word that sparse, deceptive and needle look for; empty for dense."""
    # (u + b) / (2 T) of a letter (column) after another (row; the last row is for the first letter of a text)
    _terms: tuple[tuple[float, ...], ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        validate(self, owner="Letters")
        given = self.letters
        if not given or len(set(given)) != len(given):
            raise TextEnvError(f"Letters(letters={given!r}): expected at least one letter, each once.")
        rng, count = np.random.default_rng(self.seed), len(given)
        single, pair = rng.uniform(-1, 1, count), rng.uniform(-1, 1, (count, count))
        terms = single + np.vstack([pair, np.zeros(count)])
        needle = "".join(given[place] for place in rng.integers(count, size=self.length))
        word = {"dense": "", "needle": needle}.get(self.family, needle[:_WORD])
        object.__setattr__(self, "word", word)
        object.__setattr__(self, "_terms", tuple(map(tuple, (terms / (2 * self.length)).tolist())))

    @property
    def __name__(self) -> str:
        """The family, as which it is reported among the parts of a mix."""
        return self.family

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores."""
        texts = completion_texts(completions)
        if self.family == "dense":
            return [self._dense(text) for text in texts]
        if self.family == "needle":
            return [float(text == self.word) for text in texts]
        if self.family == "sparse":
            return [float(self.word in text) for text in texts]
        others = set(self.letters) - set(self.word)
        return [
            1.0 if self.word in text else 0.5 * sum(letter in others for letter in text) / self.length for text in texts
        ]

    def _dense(self, text: str) -> float:
        total, before = 0.0, -1
        for letter in text:
            place = self.letters.find(letter)
            total += self._terms[before][place] if place >= 0 else 0.0
            before = place
        return total
