"""KL estimators against sums over small vocabularies, and the controller against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.env.kl import AdaptiveKL, full_kl, kl_estimate
from textenv.types import KLEstimator, TextEnvError


def log_softmax(logits: list[float]) -> Any:
    values = np.array(logits)
    return values - np.logaddexp.reduce(values)


SAMPLED: tuple[KLEstimator, ...] = ("k1", "k2", "k3")
logits = st.lists(st.floats(-4, 4), min_size=3, max_size=3)


@given(logits, logits)
def test_k1_and_k3_are_unbiased_and_full_is_the_sum(ours: list[float], theirs: list[float]) -> None:
    log_probs, ref = log_softmax(ours), log_softmax(theirs)
    probabilities = np.exp(log_probs)
    expected = sum(math.exp(p) * (p - q) for p, q in zip(log_probs.tolist(), ref.tolist(), strict=True))
    assert float(full_kl(log_probs, ref)) == pytest.approx(expected, abs=1e-9)
    for estimator in (SAMPLED[0], SAMPLED[2]):
        mean = float((probabilities * kl_estimate(log_probs, ref, estimator)).sum())
        assert mean == pytest.approx(expected, abs=1e-9), estimator


@given(st.floats(-60, 0), st.floats(-60, 0))
def test_k2_and_k3_are_never_negative_and_all_are_zero_where_nothing_differs(ours: float, theirs: float) -> None:
    one, other = np.array([ours]), np.array([theirs])
    assert kl_estimate(one, other, "k2")[0] >= 0
    assert kl_estimate(one, other, "k3")[0] >= 0
    assert [float(kl_estimate(one, one, estimator)[0]) for estimator in SAMPLED] == [0, 0, 0]


@pytest.mark.parametrize(("estimator", "expected"), [("k1", math.log(2)), ("k2", 0.5 * math.log(2) ** 2)])
def test_closed_forms(estimator: Any, expected: float) -> None:
    # pi(a) = 1/2, pi_ref(a) = 1/4, so r = 1/2
    assert kl_estimate(np.log([0.5]), np.log([0.25]), estimator)[0] == pytest.approx(expected)


def test_closed_form_of_k3() -> None:
    assert kl_estimate(np.log([0.5]), np.log([0.25]), "k3")[0] == pytest.approx(0.5 - 1 + math.log(2))


def test_k2_has_the_gradient_of_the_kl() -> None:
    # d/dx E[k2], the samples held fixed, is the gradient of KL(pi || pi_ref) when pi is where the samples come from
    ours, ref, step = [0.3, -0.2, 1.1], log_softmax([0.0, 0.5, -0.5]), 1e-6
    probabilities = np.exp(log_softmax(ours))
    for place in range(3):
        moved = [value + step * (index == place) for index, value in enumerate(ours)]
        kl = float(full_kl(log_softmax(moved), ref) - full_kl(log_softmax(ours), ref)) / step
        k2 = kl_estimate(log_softmax(moved), ref, "k2") - kl_estimate(log_softmax(ours), ref, "k2")
        assert float((probabilities * k2).sum()) / step == pytest.approx(kl, abs=1e-4)


def test_tokens_that_cannot_be_drawn_count_for_nothing() -> None:
    log_probs = np.log(np.array([[0.5, 0.5, 1.0]])) + np.array([[0, 0, -np.inf]])
    ref = np.log(np.array([[0.25, 0.25, 0.5]]))
    assert full_kl(log_probs, ref).tolist() == pytest.approx([math.log(2)])
    assert full_kl(log_probs, np.where(np.isinf(log_probs), -np.inf, ref)).tolist() == pytest.approx([math.log(2)])


def test_shapes_are_kept_and_a_hopeless_token_stays_finite() -> None:
    ours, theirs = np.full((2, 3), -900.0, dtype=np.float32), np.zeros((2, 3), dtype=np.float32)
    for estimator in SAMPLED:
        values = kl_estimate(ours, theirs, estimator)
        assert values.shape == (2, 3)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
    assert full_kl(np.zeros((2, 4, 1)), np.zeros((2, 4, 1))).shape == (2, 4)


def test_full_needs_more_than_the_sampled_tokens() -> None:
    with pytest.raises(TextEnvError, match=r"'full'.*'k1', 'k2' or 'k3'"):
        kl_estimate(np.zeros(1), np.zeros(1), "full")


@pytest.mark.parametrize(
    ("mean_kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 512 / 10_000),  # a tenth above
        (60.0, 1 + 0.2 * 512 / 10_000),  # clipped
        (5.4, 1 - 0.1 * 512 / 10_000),
        (-3.0, 1 - 0.2 * 512 / 10_000),
    ],
)
def test_the_coefficient_follows_ziegler(mean_kl: float, factor: float) -> None:
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    controller.update(mean_kl, 512)
    assert controller.coef == pytest.approx(0.15 * factor, rel=1e-12)


def test_without_a_target_the_coefficient_stays() -> None:
    controller = AdaptiveKL(0.15)
    controller.update(1e9, 512)
    assert controller.coef == 0.15


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 1000)), max_size=20))
def test_the_coefficient_stays_positive_however_short_the_horizon(updates: list[tuple[float, int]]) -> None:
    controller = AdaptiveKL(0.1, target=1.0, horizon=1)
    for mean_kl, episodes in updates:
        controller.update(mean_kl, episodes)
        assert 0 < controller.coef < math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coef": -0.1}, "kl_coef=-0.1"),
        ({"coef": math.nan}, "kl_coef=nan"),
        ({"coef": 0.1, "target": 0.0}, "kl_target=0.0"),
        ({"coef": 0.1, "target": math.inf}, "kl_target=inf"),
        ({"coef": 0.0, "target": 1.0}, "stays 0"),
        ({"coef": 0.1, "target": 1.0, "horizon": 0}, "kl_horizon=0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        AdaptiveKL(**settings)
