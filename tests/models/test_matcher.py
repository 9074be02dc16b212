"""The matcher of texts and summaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textenv import TextEnvError
from textenv.data.summaries import few_descriptions
from textenv.models.matcher import Match, Matcher, _fit, copied_share, matches_of, words_of

FEW = few_descriptions()
MATCHES = matches_of([e.text for e in FEW], [e.synopsis for e in FEW], [(f"section {e.section}",) for e in FEW])


def test_words() -> None:
    assert words_of("The file-system's Python3.11, (C++) & «déjà vu».") == [
        "the", "file-system's", "python3.11", "c", "déjà", "vu",
    ]  # fmt: skip


def test_the_share_of_copied_pairs_by_hand() -> None:
    text = "A tool that plays chess, for people and machines."
    assert copied_share(text, "tool that plays go") == pytest.approx(2 / 3)
    assert copied_share(text, "PLAYS Chess for") == 1
    assert copied_share(text, "chess that tool") == copied_share(text, "chess") == copied_share(text, "") == 0


@settings(deadline=None)
@given(st.text(max_size=60))
def test_a_text_is_its_own_copy(text: str) -> None:
    assert copied_share(text, text) == (1.0 if len(words_of(text)) > 1 else 0.0)


def test_neighbors_are_of_the_closest_group_that_has_enough() -> None:
    summaries = ["a", "b", "c", "d", "e", "e"]
    groups = [("x", "s"), ("x", "s"), ("x", "s"), ("y", "s"), ("y", "t"), ("z", "t")]
    found = matches_of(["text"] * 6, summaries, groups)
    assert [set(match.others) for match in found[:3]] == [{"b", "c"}, {"a", "c"}, {"a", "b"}]
    assert set(found[3].others) < {"a", "b", "c"}
    assert all(match.true not in match.others and len(match.others) == 2 for match in found)
    assert found == matches_of(["text"] * 6, summaries, groups)
    with pytest.raises(TextEnvError, match="2 different summaries; expected more than 2"):
        matches_of(["text"] * 2, ["a", "b"], [(), ()])


def test_weights_are_those_that_have_made_the_choices() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(20_000, 2))
    chosen = rng.random(20_000) < 1 / (1 + np.exp(-(differences @ [1.5, -0.5])))
    assert _fit(np.where(chosen[:, None], differences, -differences)) == pytest.approx([1.5, -0.5], abs=0.05)


def test_it_prefers_true_summaries_to_others_and_to_spoiled_ones() -> None:
    matcher = Matcher(MATCHES[:24])
    assert matcher.accuracy(MATCHES[24:]) >= 0.75
    texts, true = [m.text for m in MATCHES], [m.true for m in MATCHES]
    scores = matcher.scores(texts, true)
    for spoiled in ([" ".join(words_of(t)[:1]) for t in true], [f"{t} {t} {t}" for t in true], [""] * len(true)):
        assert np.mean(scores > matcher.scores(texts, spoiled)) > 0.9
    again = Matcher(MATCHES[:24]).scores(texts, true)
    assert scores.tolist() == again.tolist()
    with pytest.raises(TextEnvError, match="1 matches; expected at least two"):
        Matcher(MATCHES[:1])


@settings(deadline=None)
@given(text=st.text(max_size=80), summary=st.text(max_size=80))
def test_every_score_is_finite(text: str, summary: str) -> None:
    assert np.isfinite(_MATCHER.scores([text], [summary])).all()


_MATCHER = Matcher([Match("a b", "a", ("c",)), Match("c d", "c", ("a",))])
