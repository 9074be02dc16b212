import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

from textenv.analysis.exact import Tree
from textenv.analysis.frontier import COUNTS, best_of_n_kl, expected_best, frontier, price_in_nats, sample_frontier
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


# -- the frontier --------------------------------------------------------------------------------------------------


def test_the_frontier_of_samples() -> None:
    # Of n numbers drawn evenly from 0 to 1 the largest is n / (n + 1) in the mean.
    scores = np.random.default_rng(0).uniform(size=(200, 300))
    found = frontier(scores)
    assert tuple(found.n) == COUNTS
    np.testing.assert_allclose(found.kl, best_of_n_kl(COUNTS))
    assert (np.abs(found.score - found.n / (found.n + 1)) < 4 * found.stderr).all()
    assert found.score_at(32) == found.score[5]
    assert frontier(scores[:, :5]).n.tolist() == [1, 2, 4]
    assert np.isnan(frontier(scores[:1]).stderr).all()


def test_the_sampled_frontier_is_the_exact_one() -> None:
    envs = gym.make_vec(
        "textenv/Exact-v0",
        num_envs=1000,
        vocab_size=5,
        max_new_tokens=4,
        temperature=1.2,
        prompts=["a", "b"],
        kl_mode="lump",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    tree, found = Tree.of(envs), sample_frontier(envs, 4000, seed=1)
    exact = [tree.best_of_n(n) for n in COUNTS]
    np.testing.assert_allclose(found.score, [outcome.score for outcome in exact], atol=0.01)
    assert (found.kl >= [outcome.kl - 1e-12 for outcome in exact]).all()  # an upper bound
    only = sample_frontier(envs, 1000, prompts=["b"], seed=1)
    b = gym.make("textenv/Exact-v0", vocab_size=5, max_new_tokens=4, temperature=1.2, prompts=["b"])
    assert only.score_at(4) == pytest.approx(Tree.of(b).best_of_n(4).score, abs=0.02)


# -- the price -----------------------------------------------------------------------------------------------------

OWN = math.log(32) - 31 / 32


@pytest.mark.parametrize(
    ("kl", "score", "price"),
    [
        ([0.0, 4.0, 8.0], [0.1, 0.5, 0.9], 6.0 / OWN),  # 0.7 is half way between the last two
        ([0.0, 4.0, 8.0], [0.1, 0.7, 0.9], 4.0 / OWN),
        ([0.0, 4.0, 3.0, 5.0], [0.1, 0.8, 0.2, 0.9], 4.0 * 6 / 7 / OWN),  # the first time counts
        ([0.0, 4.0, 2.0], [0.1, 0.5, 0.9], 3.0 / OWN),  # KL that falls again
        ([1.0, 2.0], [0.8, 0.9], 1.0 / OWN),
        ([0.0, 4.0], [0.1, 0.69], None),
        ([0.0], [0.1], None),
    ],
)
def test_price(kl: list[float], score: list[float], price: float | None) -> None:
    found = price_in_nats(kl, score, 0.7)
    assert found == (None if price is None else pytest.approx(price))


def test_best_of_n_itself_has_a_price_of_one() -> None:
    found = frontier(np.random.default_rng(0).normal(size=(50, 300)))
    assert price_in_nats(found.kl, found.score, found.score_at(32)) == pytest.approx(1.0)
    assert price_in_nats(found.kl, found.score, found.score_at(8), n=8) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0], [0.1], 0.7), r"\(2,\), score \(1,\)"),
        (([], [], 0.7), r"\(points,\)"),
        (([0.0], [math.nan], 0.7), "not finite"),
        (([0.0], [0.1], math.inf), "best=inf"),
    ],
)
def test_bad_curves(arguments: Any, message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        price_in_nats(*arguments)


def test_bad_arguments_of_frontiers() -> None:
    with pytest.raises(TextEnvError, match="at least 2"):
        price_in_nats([0.0], [0.1], 0.5, n=1)
    with pytest.raises(TextEnvError, match=r"\(prompts, N\)"):
        frontier([0.1, 0.2])
    with pytest.raises(TextEnvError, match="take more samples"):
        frontier([[0.1, 0.2]]).score_at(32)
    envs = gym.make_vec("textenv/Exact-v0", num_envs=2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(TextEnvError, match="samples=0"):
        sample_frontier(envs, 0)
