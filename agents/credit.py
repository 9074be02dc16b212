"""What tokens are credited with where completions of one prompt are compared: whole episodes, or turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from textenv.lazy import lazy
from textenv.types import TextEnvError

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["Baseline", "group_advantages", "refuse_turn_discount"]

Baseline = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Given returns and which of them count, ``(groups, samples)`` each, returns advantages of the same shape."""


def group_advantages(
    rollout: Rollout, samples: int, credit: Literal["episode", "turn"], baseline: Baseline
) -> torch.Tensor:
    """Return the advantage of every token, ``(batch, time)``.

    Args:
        rollout: Episodes, those of a group in consecutive rows.
        samples: Episodes of a group.
        credit: ``"episode"``: all tokens of an episode have that of its return. ``"turn"``: those of a turn have that
            of what was earned from the turn on, among the episodes of the group that have got so far.
        baseline: Makes advantages of returns.

    Raises:
        TextEnvError: Whole episodes are compared, and ``turn_discount`` says that turns are to be told apart.
    """
    rewards, mask = torch.from_numpy(rollout.rewards), torch.from_numpy(rollout.mask)
    if credit == "episode":
        refuse_turn_discount(rollout, "credit='episode'", "use credit='turn'")
        returns = (rewards.sum(dim=1) + torch.from_numpy(rollout.bootstrap)).view(-1, samples)
        return baseline(returns, torch.ones_like(returns, dtype=torch.bool)).view(-1, 1).expand(mask.shape)
    turns = torch.from_numpy(rollout.turns)
    returns = losses.turn_returns(rewards, turns, mask, rollout.turn_discount)
    advantages = torch.zeros_like(rewards)
    for turn in range(int(turns.max()) + 1):
        steps = mask & (turns == turn)
        present = steps.any(dim=1)
        first = steps.int().argmax(dim=1, keepdim=True)
        found = baseline(returns.gather(1, first).view(-1, samples), present.view(-1, samples)).view(-1, 1)
        advantages = torch.where(steps, found, advantages)
    return advantages


def refuse_turn_discount(rollout: Rollout, what: str, remedy: str) -> None:
    """Refuse a discount between turns where whole episodes are compared.

    Args:
        rollout: The episodes.
        what: What compares them, as the beginning of a sentence.
        remedy: What to do instead.

    Raises:
        TextEnvError: ``turn_discount`` is below 1.
    """
    if rollout.turn_discount < 1:
        raise TextEnvError(
            f"{what} compares what whole episodes earn, with turn_discount={rollout.turn_discount}: {remedy}, or leave "
            "the environment's turn_discount at 1."
        )
