import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.best_of_n import best_of_n_kl, expected_best
from textenv.types import TextEnvError


def by_enumeration(scores: list[float], values: list[float], n: int) -> float:
    """Average over all subsets of ``n``, ties broken evenly."""
    results = []
    for chosen in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in chosen)
        results.append(np.mean([values[i] for i in chosen if scores[i] == best]))
    return float(np.mean(results))


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-9, 9)), min_size=1, max_size=7), st.data())
def test_agrees_with_enumeration(samples: list[tuple[int, int]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(samples)))
    scores, values = [float(s) for s, _ in samples], [float(v) for _, v in samples]
    assert expected_best(scores, n, values) == pytest.approx(by_enumeration(scores, values, n), abs=1e-9)


def test_ends() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5, 300))
    np.testing.assert_allclose(expected_best(scores, 1), scores.mean(axis=-1))
    np.testing.assert_allclose(expected_best(scores, 300), scores.max(axis=-1))
    assert expected_best(scores, 256).shape == (3, 5)


def test_kl() -> None:
    np.testing.assert_allclose(best_of_n_kl([1, 2, 32]), [0.0, math.log(2) - 0.5, math.log(32) - 31 / 32])


def test_kl_is_that_of_the_distribution_of_the_best() -> None:
    # Many equally likely outcomes, all different: the best of 3 has outcome i with probability ((i+1)^3 - i^3) / m^3.
    m, i = 2000, np.arange(2000)
    chosen = ((i + 1) ** 3 - i**3) / m**3
    assert best_of_n_kl(3) == pytest.approx(float((chosen * np.log(chosen * m)).sum()), abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "n", "values", "message"),
    [
        ([1.0, 2.0], 3, None, "from 1 to 2"),
        ([1.0, 2.0], 0, None, "from 1 to 2"),
        ([1.0, 2.0], 1, [1.0], r"\(2,\).*\(1,\)"),
        (1.0, 1, None, r"\(\.\.\., N\)"),
        ([1.0, math.nan], 1, None, "not finite"),
    ],
)
def test_bad_input(scores: object, n: int, values: object, message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        expected_best(scores, n, values)  # type: ignore[arg-type]


def test_bad_n_of_the_kl() -> None:
    with pytest.raises(TextEnvError, match="at least 1"):
        best_of_n_kl([1, 0])
