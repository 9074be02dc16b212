"""Agreement of judges that err, against judges that are asked."""

import random

import numpy as np
import pytest

from textenv.feedback.annotators import FromReward
from textenv.feedback.noise import expected_agreement
from textenv.feedback.store import Assignment, Item
from textenv.types import TextEnvError

SCORES = {"a": 0.9, "b": 0.6, "c": 0.0}


def test_judges_that_are_asked_agree_as_often() -> None:
    judge = FromReward(lambda completions, **_: [SCORES[text] for text in completions], temperature=0.4)
    rng = random.Random(0)

    def prefers_first(pair: str) -> bool:
        items = tuple(Item(number, "completion", 0, text, "", "", None, {}) for number, text in enumerate(pair))
        ranks, _ = judge.judge(Assignment(1, 1, 1, "completion", "p", {}, items, 0.0), rng)
        return ranks == [0, 1]

    pairs = ["ab", "ca", "bc"]
    expected = expected_agreement([(SCORES[pair[0]], SCORES[pair[1]]) for pair in pairs], 0.4, [(0, 1), (0, 1), (1, 1)])
    for place, pair in enumerate(pairs):
        choices = np.array([prefers_first(pair) for _ in range(4000)])
        better = SCORES[pair[0]] > SCORES[pair[1]]
        assert expected["judges"][place] == pytest.approx((choices[::2] == choices[1::2]).mean(), abs=0.03)
        assert expected["ceiling"][place] == pytest.approx((choices == better).mean(), abs=0.03)
    assert expected["model"] == pytest.approx([1 - expected["ceiling"][0], expected["ceiling"][1], 0.5])


def test_without_errors() -> None:
    assert expected_agreement([(1, 0), (2, 2), (0, 3)], 0.0, [(1, 0), (1, 0), (1, 0)]) == {
        "judges": [1.0, 0.5, 1.0],
        "ceiling": [1.0, 0.5, 1.0],
        "model": [1.0, 0.5, 0.0],
    }
    assert expected_agreement([], 1.0) == {"judges": [], "ceiling": []}


def test_bad_arguments() -> None:
    with pytest.raises(TextEnvError, match=r"temperature=-1\.0, 1 pairs of scores"):
        expected_agreement([(0, 1)], -1.0)
    with pytest.raises(TextEnvError, match="1 pairs of scores, 2 of the model"):
        expected_agreement([(0, 1)], 1.0, [(0, 1), (0, 1)])
