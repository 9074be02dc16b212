"""The bundled openings of movie reviews: how many there are, their form, and that they take no side."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped]

from textenv.data.openings import movie_openings

TRAIN, HELDOUT = movie_openings("train"), movie_openings("heldout")


def test_each_half_has_256_openings_and_no_two_are_alike() -> None:
    assert len(TRAIN) == len(HELDOUT) == 256
    assert len({opening.lower() for opening in TRAIN + HELDOUT}) == 512


@pytest.mark.parametrize("half", ["train", "heldout"])
def test_every_length_from_one_to_six_words_is_well_represented(half: Literal["train", "heldout"]) -> None:
    lengths = Counter(len(opening.split(" ")) for opening in movie_openings(half))
    assert set(lengths) == {1, 2, 3, 4, 5, 6}
    assert min(lengths.values()) >= 40


def test_openings_begin_a_snippet_and_go_on() -> None:
    for opening in TRAIN + HELDOUT:
        assert opening == " ".join(opening.split())  # no whitespace at the ends, single spaces within
        assert opening[0].isupper(), opening
        assert opening[-1].isalnum(), opening


def test_openings_take_no_side() -> None:
    analyzer = SentimentIntensityAnalyzer()
    compound = {opening: analyzer.polarity_scores(opening)["compound"] for opening in TRAIN + HELDOUT}
    assert {opening: value for opening, value in compound.items() if abs(value) >= 0.2} == {}


def test_no_opening_of_three_or_more_words_begins_one_of_the_other_half() -> None:
    for one, other in ((TRAIN, HELDOUT), (HELDOUT, TRAIN)):
        long = [opening for opening in one if len(opening.split()) >= 3]
        assert [a for a in long if any(b.startswith(f"{a} ") for b in other)] == []
