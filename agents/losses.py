"""Losses and advantages as pure functions of tensors; each cites its source and has a numeric oracle in the tests."""

from __future__ import annotations

import math

import torch

from textenv.types import TextEnvError

__all__ = [
    "approximate_kl",
    "clip_fraction",
    "clipped_policy_loss",
    "clipped_value_loss",
    "explained_variance",
    "gae",
    "group_relative",
    "importance_ratio",
    "leave_one_out",
    "masked_whiten",
    "n_step_advantages",
    "policy_gradient_loss",
    "preference_loss",
    "truncated_share",
    "turn_returns",
]


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    bootstrap: torch.Tensor,
    *,
    gamma: float,
    lam: float,
    discounts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16) over episodes padded on the right.

    ``delta_t = r_t + gamma * V_{t+1} - V_t``; ``V`` beyond the last step is ``bootstrap``: 0 where the episode
    terminated, the value of the last state where it was truncated.

    Args:
        rewards: Shape ``(batch, time)``.
        values: ``V(s_t)``, shape ``(batch, time)``.
        mask: True at real steps, a prefix of each row, shape ``(batch, time)``.
        bootstrap: Shape ``(batch,)``.
        gamma: Discount.
        lam: Bias-variance trade-off, 1 for Monte-Carlo returns.
        discounts: A further discount of what comes after each step, shape ``(batch, time)``; None for none.

    Returns:
        Advantages, and returns (advantage plus value), both ``(batch, time)`` and 0 at padding.

    Raises:
        TextEnvError: The shapes do not agree.
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(bootstrap)
    next_value = bootstrap
    for t in reversed(range(rewards.shape[1])):
        real, share = mask[:, t], gamma if discounts is None else gamma * discounts[:, t]
        delta = rewards[:, t] + share * next_value - values[:, t]
        carried = torch.where(real, delta + share * lam * carried, carried)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = torch.where(real, carried, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def masked_whiten(values: torch.Tensor, mask: torch.Tensor, *, epsilon: float = 1e-8) -> torch.Tensor:
    """Shift and scale the masked entries to mean 0 and (population) variance 1; the others become 0.

    Args:
        values: Any shape.
        mask: True where an entry counts, the same shape.
        epsilon: Added to the standard deviation.
    """
    _same_shape(values=values, mask=mask)
    chosen = values[mask]
    centered = values - chosen.mean()
    return torch.where(mask, centered / (chosen.std(correction=0) + epsilon), 0.0)


def n_step_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    bootstrap: torch.Tensor,
    *,
    gamma: float,
    steps: int | None,
    discounts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Advantages by returns of ``steps`` steps (Mnih et al. 2016, section 4), over episodes padded on the right.

    ``r_t + gamma * r_{t+1} + ... + gamma^n * V_{t+n} - V_t``, where an episode that ends before ``t + n`` gives what
    it still pays and ``bootstrap``. Gradients pass through all of it.

    Args:
        rewards: Shape ``(batch, time)``.
        values: ``V(s_t)``, shape ``(batch, time)``.
        mask: True at real steps, a prefix of each row, shape ``(batch, time)``.
        bootstrap: ``V`` beyond the last step, 0 where the episode terminated, shape ``(batch,)``.
        gamma: Discount.
        steps: Rewards that are counted before a value stands in for the rest; None for all.
        discounts: A further discount of what comes after each step, shape ``(batch, time)``; None for none.

    Returns:
        Shape ``(batch, time)``, 0 at padding.
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    time = rewards.shape[1]
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    following = torch.where(last, bootstrap[:, None], torch.nn.functional.pad(values[:, 1:], (0, 1)))
    further = torch.ones_like(rewards) if discounts is None else discounts
    deltas = torch.where(mask, rewards + gamma * further * following - values, 0.0)  # their discounted sum telescopes
    total, share = deltas, torch.ones_like(rewards)
    for ahead in range(1, min(time, steps or time)):
        share = share * torch.nn.functional.pad(further[:, ahead - 1 :], (0, ahead - 1))
        total = total + gamma**ahead * share * torch.nn.functional.pad(deltas[:, ahead:], (0, ahead))
    return torch.where(mask, total, 0.0)


def turn_returns(rewards: torch.Tensor, turns: torch.Tensor, mask: torch.Tensor, discount: float) -> torch.Tensor:
    """What each token's turn and those after it earn: ``R_k = sum_{j >= k} discount^(j - k) * r_j``.

    Args:
        rewards: Shape ``(batch, time)``.
        turns: The turn of each step, counted from 0, shape ``(batch, time)``.
        mask: True at real steps, a prefix of each row, shape ``(batch, time)``.
        discount: Share of the next turn's return that counts towards a turn.

    Returns:
        Shape ``(batch, time)``, the same at all steps of a turn, 0 at padding.
    """
    _same_shape(rewards=rewards, turns=turns, mask=mask)
    count = int(torch.where(mask, turns, 0).max()) + 1
    earned = rewards.new_zeros(len(rewards), count)
    earned.scatter_add_(1, torch.where(mask, turns, 0), torch.where(mask, rewards, 0.0))
    for turn in reversed(range(count - 1)):
        earned[:, turn] += discount * earned[:, turn + 1]
    return torch.where(mask, earned.gather(1, torch.where(mask, turns, 0)), 0.0)


def leave_one_out(returns: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    """Advantages of a group's completions over the mean return of the others (Kool et al. 2019; Ahmadian et al. 2024).

    ``A_i = R_i - 1/(k-1) * sum_{j != i} R_j``, RLOO's estimator, whose baseline does not depend on what it is taken
    from.

    Args:
        returns: Shape ``(groups, k)``, ``k`` at least 2.
        present: Which of them count, the same shape; None for all. One that counts alone has no advantage.

    Returns:
        The same shape.
    """
    if present is None:
        size = returns.shape[1]
        return (returns - returns.mean(dim=1, keepdim=True)) * (size / (size - 1))
    sizes = present.sum(dim=1, keepdim=True)
    return _centered(returns, present) * sizes / (sizes - 1).clamp(min=1)


def group_relative(
    returns: torch.Tensor, present: torch.Tensor | None = None, *, scale: bool, epsilon: float = 1e-4
) -> torch.Tensor:
    """Advantages of a group's completions over its mean return (Shao et al. 2024, section 4.1.2).

    Args:
        returns: Shape ``(groups, k)``.
        present: Which of them count, the same shape; None for all.
        scale: Divide by the group's (population) standard deviation, as GRPO does and Dr. GRPO does not.
        epsilon: Added to the standard deviation.

    Returns:
        The same shape.
    """
    if present is None:
        centered = returns - returns.mean(dim=1, keepdim=True)
        return centered / (returns.std(dim=1, keepdim=True, correction=0) + epsilon) if scale else centered
    centered = _centered(returns, present)
    variance = (centered**2).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return centered / (variance.sqrt() + epsilon) if scale else centered


def _centered(returns: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return what counts less its mean, ``(groups, k)``, and 0 elsewhere."""
    _same_shape(returns=returns, present=present)
    kept = torch.where(present, returns, 0.0)
    means = kept.sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(present, returns - means, 0.0)


def importance_ratio(log_probs: torch.Tensor, old_log_probs: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Truncated importance weights, ``min(pi / mu, cap)``, of actions that ``mu`` has drawn (Ionides 2008, equation 3).

    ``mu`` is the policy of a few updates ago, in the precision that it drew with. Without a cap the weights are
    unbiased, and a rare action can outweigh a batch; the cap bounds the variance for a small bias (V-trace, Espeholt et
    al. 2018, section 4.1; for policies that differ by the precision of their rollouts, Yao et al. 2025). An action with
    a weight above the cap still counts, ``cap`` times: the gradient is ``min(pi / mu, cap) * grad log pi``.

    Args:
        log_probs: log pi of the actions now, of any shape: those of tokens, or of whole completions.
        old_log_probs: log mu, when they were drawn, the same shape.
        cap: The largest weight; None for no limit.

    Returns:
        The same shape.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = log_probs - old_log_probs
    if cap is not None:
        log_ratio = log_ratio + (math.log(cap) - log_ratio.detach()).clamp(max=0.0)
    return log_ratio.exp()


def truncated_share(log_probs: torch.Tensor, old_log_probs: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Share of the actions whose importance weight is above the cap, a scalar."""
    if cap is None:
        return torch.zeros(())
    return (log_probs.detach() - old_log_probs > math.log(cap)).float().mean()


def policy_gradient_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, cap: float | None = None
) -> torch.Tensor:
    """``-A * ratio``, whose gradient at ratio 1 is REINFORCE's ``-A * grad log pi`` (Williams 1992).

    The ratio weighs what is drawn from another policy (Kakade and Langford 2002, equation 4.1).

    Args:
        log_probs: log pi of the actions now, of any shape: those of tokens, or of whole completions.
        old_log_probs: log pi when they were drawn, the same shape.
        advantages: The same shape.
        cap: The largest ratio, see ``importance_ratio``.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    return -advantages * importance_ratio(log_probs, old_log_probs, cap)


def preference_loss(margins: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """DPO's loss (Rafailov et al. 2023, equation 7) of pairs whose first is preferred with a given probability.

    With the probability ``sigmoid(score_1 - score_2)`` of the Bradley-Terry model its minimum is
    ``margin = score_1 - score_2``: the policy that is optimal under the KL penalty. With 1 it is DPO as published.

    Args:
        margins: ``beta * (log pi/pi_ref of the first - log pi/pi_ref of the second)``, shape ``(pairs,)``.
        chosen: Probability that the first is preferred, shape ``(pairs,)``.

    Returns:
        ``-p * log sigmoid(m) - (1 - p) * log sigmoid(-m)``, shape ``(pairs,)``.
    """
    _same_shape(margins=margins, chosen=chosen)
    logsigmoid = torch.nn.functional.logsigmoid
    return -chosen * logsigmoid(margins) - (1 - chosen) * logsigmoid(-margins)


def clipped_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    clip: float,
    cap: float | None = None,
) -> torch.Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7) as a loss for every token.

    Args:
        log_probs: log pi of the actions now, shape ``(tokens,)``.
        old_log_probs: log pi when they were drawn, shape ``(tokens,)``.
        advantages: Shape ``(tokens,)``.
        clip: Width epsilon of the trust region of the ratio.
        cap: The largest ratio, see ``importance_ratio``; beyond the trust region it weighs losses alone.

    Returns:
        ``max(-A * ratio, -A * clip(ratio, 1 - epsilon, 1 + epsilon))``, shape ``(tokens,)``.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    ratio = importance_ratio(log_probs, old_log_probs, cap)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """Squared error of the values, pessimistic about moves beyond ``clip`` (Schulman et al. 2016's code), halved.

    Args:
        values: ``V(s)`` now, shape ``(tokens,)``.
        old_values: ``V(s)`` when the episode was written, shape ``(tokens,)``.
        returns: Targets, shape ``(tokens,)``.
        clip: Width of the range around ``old_values``; None for the plain squared error.

    Returns:
        ``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2``, shape ``(tokens,)``.
    """
    _same_shape(values=values, old_values=old_values, returns=returns)
    error = (values - returns) ** 2
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * error


def approximate_kl(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """KL of the new from the old policy by ``r - 1 - log r`` (Schulman 2020), in nats for every token."""
    log_ratio = log_probs - old_log_probs
    return torch.expm1(log_ratio) - log_ratio


def clip_fraction(log_probs: torch.Tensor, old_log_probs: torch.Tensor, clip: float) -> torch.Tensor:
    """Share of the tokens whose ratio lies outside ``1 - clip .. 1 + clip``, a scalar."""
    return (((log_probs - old_log_probs).exp() - 1).abs() > clip).float().mean()


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the share of the variance of the masked returns that the values explain, at most 1."""
    return float(1 - (returns - values)[mask].var() / returns[mask].var().clamp(min=1e-8))


def _same_shape(**tensors: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1:
        raise TextEnvError(f"Shapes differ: {shapes}; expected them to be the same.")
