"""Which pairs are asked about next."""

import numpy as np
import pytest

from textenv.models.queries import choose_pairs, disagreement
from textenv.types import TextEnvError

PAIRS = np.array([[0, 1], [0, 2], [1, 2]])


def test_disagreement_by_hand() -> None:
    odds = np.log(3)
    scores = np.array([[odds, 0.0, odds], [0.0, odds, 0.0]])  # 3/4 and 1/4; 1/2 and 1/2; 1/4 and 3/4
    assert disagreement(scores, PAIRS).tolist() == pytest.approx([1 / 16, 0, 1 / 16])


def test_members_far_apart_who_prefer_the_same_do_not_disagree() -> None:
    assert disagreement(np.array([[1e6, 0.0], [50.0, 0.0]]), np.array([[0, 1]]))[0] == pytest.approx(0, abs=1e-12)


def test_the_most_disputed_come_first() -> None:
    scores = np.array([[0.0, 0.1, 4.0], [0.0, 0.2, -4.0], [0.0, 0.3, 1.0]])
    rng = np.random.default_rng(0)
    chosen = choose_pairs(scores, PAIRS, 3, rng=rng)
    assert np.all(np.diff(disagreement(scores, PAIRS[chosen])) <= 0)
    assert chosen[-1] == 0


@pytest.mark.parametrize("by", ["disagreement", "random"])
def test_none_is_chosen_twice_and_all_may_be(by: str) -> None:
    scores = np.zeros((2, 3))
    found = {tuple(choose_pairs(scores, PAIRS, 2, rng=np.random.default_rng(i), by=by)) for i in range(40)}  # type: ignore[arg-type]
    assert len(found) == 6
    assert all(len(set(pairs)) == 2 for pairs in found)


@pytest.mark.parametrize("wrong", [{"count": 4}, {"count": -1}, {"by": "hope"}, {"scores": np.zeros((1, 3))}])
def test_refuses(wrong: dict[str, object]) -> None:
    given: dict[str, object] = {"scores": np.zeros((2, 3)), "pairs": PAIRS, "count": 1} | wrong
    with pytest.raises(TextEnvError, match="expected no more"):
        choose_pairs(**given, rng=np.random.default_rng(0))  # type: ignore[arg-type]
