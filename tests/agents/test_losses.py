"""Losses and advantages against hand-made numbers, brute force and automatic differentiation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textenv.agents.losses import (
    approximate_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    group_relative,
    leave_one_out,
    masked_whiten,
    n_step_advantages,
    policy_gradient_loss,
    preference_loss,
    turn_returns,
)
from textenv.types import TextEnvError


def brute_force_gae(
    rewards: list[float], values: list[float], last: float, gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Equation 16 of Schulman et al. 2016 as it stands: a double sum."""
    following = [*values[1:], last]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, following, strict=True)]
    advantages = [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas))) for t in range(len(deltas))
    ]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def test_gae_by_hand() -> None:
    advantages, returns = gae(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.5, 1.0]]),
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(1),
        gamma=0.5,
        lam=0.5,
    )
    # delta_1 = 2 - 1 = 1; delta_0 = 1 + 0.5 * 1 - 0.5 = 1; A_0 = 1 + 0.25 * 1
    torch.testing.assert_close(advantages, torch.tensor([[1.25, 1.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.75, 2.0]]))


@given(data=st.data(), gamma=st.floats(0.0, 1.0), lam=st.floats(0.0, 1.0))
@settings(max_examples=50, deadline=None)
def test_gae_against_brute_force(data: st.DataObject, gamma: float, lam: float) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    width = max(lengths) + 1
    rewards, values = (torch.from_numpy(numbers.normal(size=(len(lengths), width))) for _ in range(2))
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    truncated = torch.from_numpy(numbers.random(len(lengths)) < 0.5)
    bootstrap = torch.where(truncated, torch.from_numpy(numbers.normal(size=len(lengths))), 0.0)
    # whatever stands in the padding must not matter
    advantages, returns = gae(rewards, values, mask, bootstrap, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        expected = brute_force_gae(
            rewards[row, :length].tolist(), values[row, :length].tolist(), float(bootstrap[row]), gamma, lam
        )
        np.testing.assert_allclose(advantages[row, :length], expected[0], atol=1e-9)
        np.testing.assert_allclose(returns[row, :length], expected[1], atol=1e-9)
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_gae_of_a_terminated_episode_does_not_bootstrap() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    rewards, values = torch.ones(2, 1), torch.zeros(2, 1)
    advantages, _ = gae(rewards, values, mask, torch.tensor([0.0, 10.0]), gamma=0.9, lam=1.0)
    assert advantages[:, 0].tolist() == pytest.approx([1.0, 10.0])


def test_whitening_uses_the_population_variance_of_masked_entries_only() -> None:
    values = torch.tensor([[1.0, 3.0, 1e6], [5.0, 7.0, -1e6]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    whitened = masked_whiten(values, mask)
    expected = (np.array([1.0, 3.0, 5.0, 7.0]) - 4.0) / math.sqrt(5.0)
    np.testing.assert_allclose(whitened[mask], expected, atol=1e-6)
    assert not whitened[~mask].any()
    assert float(whitened[mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(whitened[mask].var(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_whitening_equal_values_gives_zeros_not_nan() -> None:
    assert masked_whiten(torch.full((3,), 2.0), torch.ones(3, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # a gain is paid up to 1 + epsilon
        (0.5, 2.0, -1.0),  # a loss is paid in full
        (1.5, -2.0, 3.0),
        (0.5, -2.0, 1.6),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, expected: float) -> None:
    old = torch.tensor([-1.0])
    loss = clipped_policy_loss(old + math.log(ratio), old, torch.tensor([advantage]), 0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_policy_loss_at_the_start_has_the_policy_gradient() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    actions, advantages = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    chosen = torch.log_softmax(logits, dim=-1)[torch.arange(5), actions]
    (gradient,) = torch.autograd.grad(clipped_policy_loss(chosen, chosen.detach(), advantages, 0.2).sum(), logits)
    with torch.no_grad():
        expected = -advantages[:, None] * (torch.nn.functional.one_hot(actions, 7) - torch.softmax(logits, dim=-1))
    torch.testing.assert_close(gradient, expected)


def test_a_clipped_gain_has_no_gradient() -> None:
    log_prob = torch.tensor([0.5], requires_grad=True)
    clipped_policy_loss(log_prob, torch.tensor([0.0]), torch.tensor([1.0]), 0.2).sum().backward()
    assert log_prob.grad is not None
    assert float(log_prob.grad) == 0.0


def test_value_loss_by_hand() -> None:
    values, old, returns = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.9]), torch.tensor([1.0, 2.0])
    # moved too far: the clipped value 0.2 is judged, (0.2 - 1)^2 / 2; moved little: (1 - 2)^2 / 2
    assert clipped_value_loss(values, old, returns, 0.2).tolist() == pytest.approx([0.32, 0.5])
    assert clipped_value_loss(values, old, returns, None).tolist() == pytest.approx([0.0, 0.5])


def test_approximate_kl_is_k3_and_agrees_with_the_kl_in_expectation() -> None:
    old = torch.log_softmax(torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64), dim=0)
    new = torch.log_softmax(torch.tensor([0.1, 0.5, -0.2], dtype=torch.float64), dim=0)
    expected = float((old.exp() * (old - new)).sum())
    assert float((old.exp() * approximate_kl(new, old)).sum()) == pytest.approx(expected)
    assert (approximate_kl(new, old) >= 0).all()
    assert float(approximate_kl(torch.tensor([0.1]), torch.tensor([0.0]))) == pytest.approx(
        math.exp(0.1) - 1 - 0.1, rel=1e-3
    )


def test_clip_fraction_by_hand() -> None:
    old = torch.zeros(4)
    new = torch.tensor([1.0, 1.3, 0.75, 1.1]).log()
    assert float(clip_fraction(new, old, 0.2)) == 0.5


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(TextEnvError, match=r"'advantages': \(3,\)"):
        clipped_policy_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3), 0.2)


def test_n_step_advantages_by_hand() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([[0.5, 1.0, 3.0, 9.0]])
    mask, bootstrap = torch.tensor([[True, True, True, False]]), torch.tensor([8.0])
    found = n_step_advantages(rewards, values, mask, bootstrap, gamma=0.5, steps=2)
    # 1 + 0.5 * 2 + 0.25 * 3 - 0.5;  2 + 0.5 * 4 + 0.25 * 8 - 1;  4 + 0.5 * 8 - 3: an episode that ends gives the rest
    torch.testing.assert_close(found, torch.tensor([[2.25, 5.0, 5.0, 0.0]]))


@given(data=st.data(), gamma=st.floats(0.0, 1.0), steps=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_n_step_advantages_against_brute_force(data: st.DataObject, gamma: float, steps: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    width = max(lengths) + 1
    rewards, values = (torch.from_numpy(numbers.normal(size=(len(lengths), width))) for _ in range(2))
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    bootstrap = torch.from_numpy(numbers.normal(size=len(lengths)))
    found = n_step_advantages(rewards, values, mask, bootstrap, gamma=gamma, steps=steps)
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), float(bootstrap[row])]
        for t in range(length):
            end = min(t + steps, length)
            expected = sum(gamma ** (k - t) * r[k] for k in range(t, end)) + gamma ** (end - t) * v[end] - v[t]
            assert float(found[row, t]) == pytest.approx(expected, abs=1e-9)
        assert not found[row, length:].any()


def test_one_step_and_all_steps_are_the_ends_of_gae() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 5, generator=generator) for _ in range(2))
    mask = torch.arange(5)[None, :] < torch.tensor([5, 3, 1])[:, None]
    bootstrap = torch.randn(3, generator=generator)
    for steps, lam in ((1, 0.0), (None, 1.0)):
        expected, _ = gae(rewards, values, mask, bootstrap, gamma=0.9, lam=lam)
        torch.testing.assert_close(
            n_step_advantages(rewards, values, mask, bootstrap, gamma=0.9, steps=steps), expected
        )


def test_leave_one_out_by_hand() -> None:
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]]))


def test_group_relative_by_hand() -> None:
    returns = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert group_relative(returns, scale=False).tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    torch.testing.assert_close(
        group_relative(returns, scale=True), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), atol=2e-4, rtol=0
    )


def test_policy_gradient_loss_has_the_gradient_of_reinforce() -> None:
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_gradient_loss(log_probs, log_probs.detach(), torch.tensor([3.0, -0.5])).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-3.0, 0.5]
    # drawn half as often as the policy would now: counts twice
    loss = policy_gradient_loss(torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]), torch.tensor([3.0]))
    assert float(loss) == pytest.approx(-6.0)


def test_preference_loss_by_hand() -> None:
    margins = torch.tensor([0.0, 2.0, 2.0])
    found = preference_loss(margins, torch.tensor([1.0, 1.0, 0.25]))
    log_sigmoid = -math.log(1 + math.exp(-2.0))
    expected = [math.log(2.0), -log_sigmoid, -0.25 * log_sigmoid - 0.75 * (log_sigmoid - 2.0)]
    assert found.tolist() == pytest.approx(expected)


def test_preference_loss_is_least_where_the_margin_is_the_difference_of_the_scores() -> None:
    margin = torch.tensor([0.7], requires_grad=True)
    preference_loss(margin, torch.sigmoid(torch.tensor([0.7]))).sum().backward()
    assert margin.grad is not None
    assert float(margin.grad) == pytest.approx(0.0, abs=1e-7)


def test_explained_variance_by_hand() -> None:
    returns, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(1, 3), returns, mask) == pytest.approx(0.0)


# -- turns ----------------------------------------------------------------------------------------------------------


@given(data=st.data(), discount=st.floats(0.0, 1.0), lam=st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_a_discount_between_turns_is_one_of_the_return(data: st.DataObject, discount: float, lam: float) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    time = sum(sizes)
    rewards, values = (torch.from_numpy(numbers.normal(size=(1, time + 1))) for _ in range(2))
    mask = torch.arange(time + 1)[None, :] < time
    shares = [discount if place == size - 1 else 1.0 for size in sizes for place in range(size)]
    discounts = torch.tensor([[*shares[:-1], 1.0, 1.0]], dtype=torch.float64)
    last = torch.from_numpy(numbers.normal(size=1))
    plain = [*values[0, 1:time].tolist(), float(last)]
    deltas = [float(rewards[0, t]) + float(discounts[0, t]) * plain[t] - float(values[0, t]) for t in range(time)]
    expected = [
        sum(lam ** (later - t) * math.prod(discounts[0, t:later].tolist()) * deltas[later] for later in range(t, time))
        for t in range(time)
    ]
    found, _ = gae(rewards, values, mask, last, gamma=1.0, lam=lam, discounts=discounts)
    np.testing.assert_allclose(found[0, :time], expected, atol=1e-9)
    whole = n_step_advantages(rewards, values, mask, last, gamma=1.0, steps=None, discounts=discounts)
    to_the_end, _ = gae(rewards, values, mask, last, gamma=1.0, lam=1.0, discounts=discounts)
    np.testing.assert_allclose(whole, to_the_end, atol=1e-9)


def test_returns_of_turns_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]])
    turns = torch.tensor([[0, 0, 1, 2], [0, 1, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = turn_returns(rewards, turns, mask, 0.5)
    # of the first row 4, then 3 + 0.5 * 4 = 5, then 1 + 2 + 0.5 * 5 = 5.5
    torch.testing.assert_close(found, torch.tensor([[5.5, 5.5, 5.0, 4.0], [8.0, 6.0, 0.0, 0.0]]))


def test_a_group_counts_those_that_are_present() -> None:
    returns = torch.tensor([[1.0, 2.0, 6.0, 100.0], [4.0, 0.0, 0.0, 0.0]])
    present = torch.tensor([[True, True, True, False], [True, False, False, False]])
    torch.testing.assert_close(
        leave_one_out(returns, present), torch.tensor([[-3.0, -1.5, 4.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    )
    everyone = torch.ones_like(present)
    torch.testing.assert_close(leave_one_out(returns, everyone), leave_one_out(returns))
    for scale in (False, True):
        kept = group_relative(returns[:1, :3], scale=scale)
        torch.testing.assert_close(group_relative(returns, present, scale=scale)[:1, :3], kept)
        torch.testing.assert_close(group_relative(returns, everyone, scale=scale), group_relative(returns, scale=scale))
