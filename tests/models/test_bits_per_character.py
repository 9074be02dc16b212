"""The coders that ``benchmarks/bits_per_character.py`` compares language models with."""

from __future__ import annotations

import lzma
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bits_per_character import CODE_POINTS, END, CharacterNgram, xz_bytes

LETTERS = st.text(string.ascii_lowercase[:4] + " ", max_size=12)
UNKNOWN = "\0"


@given(texts=st.lists(LETTERS, min_size=1, max_size=20), context=LETTERS, order=st.integers(1, 6))
def test_probabilities_sum_to_one_over_the_alphabet_and_unknown(texts: list[str], context: str, order: int) -> None:
    ngram = CharacterNgram(texts, order)
    probabilities = [ngram.probability(character, context) for character in (*ngram.alphabet, UNKNOWN)]
    assert sum(probabilities) == pytest.approx(1)
    assert min(probabilities) > 0


def test_probabilities_sum_to_one_with_estimated_discounts() -> None:
    text = "".join(chr(ord("a") + number * number % 23) for number in range(3000)) + string.printable.replace(END, "")
    ngram = CharacterNgram([text, "abcabdabeabf", *string.ascii_letters], order=3)
    for context in ("", "a", "ab", "zz", END + "a", UNKNOWN):
        assert sum(ngram.probability(c, context) for c in (*ngram.alphabet, UNKNOWN)) == pytest.approx(1)


def test_bigram_by_hand() -> None:
    ngram = CharacterNgram(["aab", "ab"], order=2)  # too small to estimate discounts: 0.5, 1, 1.5
    # Characters seen before a: START and a; before b: a; before the end: b. Total 4; withheld 1 + 0.5 + 0.5 = 2.
    p_a, p_b = (2 - 1 + 2 / 4) / 4, (1 - 0.5 + 2 / 4) / 4
    assert ngram.probability("a", "") == pytest.approx(p_a)
    assert ngram.probability("b", "") == pytest.approx(p_b)
    # After a: a once, b twice; withheld 0.5 + 1.
    assert ngram.probability("a", "a") == pytest.approx((1 - 0.5 + 1.5 * p_a) / 3)
    assert ngram.probability("b", "a") == pytest.approx((2 - 1 + 1.5 * p_b) / 3)


def test_bits_count_the_end_and_an_unknown_character_in_full() -> None:
    ngram = CharacterNgram(["ab", "ba"], order=1)
    chances = [ngram.probability(character, "") for character in ("a", UNKNOWN, END)]
    assert ngram.bits("a\N{SNOWMAN}") == pytest.approx(-sum(map(math.log2, chances)) + math.log2(CODE_POINTS))


def test_xz_holds_the_texts_a_line_each() -> None:
    assert xz_bytes(["a", "é"]) == len(lzma.compress("a\né\n".encode(), preset=9 | lzma.PRESET_EXTREME))
