"""Group-relative policy optimization (Shao et al. 2024), and its normalization by Dr. GRPO (Liu et al. 2025).

It maximizes the KL-regularized return, ``score - kl_coef * KL``, through PPO's clipped surrogate; the advantage of all
tokens of a completion is its return over the mean of its group. Unlike in the paper the KL penalty is in the return,
as in every agent here, and not a term of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from textenv.agents.agent import Agent
from textenv.agents.config import AdvantageConfig, AgentConfig
from textenv.agents.credit import group_advantages
from textenv.lazy import lazy
from textenv.validation import Count, Positive

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["GRPO", "GRPOConfig"]


@dataclass(frozen=True, slots=True)
class GRPOConfig(AdvantageConfig):
    """Settings of GRPO.

    Attributes:
        normalization: ``"grpo"`` divides advantages by the standard deviation of their group, and a completion's loss
            by its length: a long bad completion is punished less a token than a short one. ``"dr_grpo"`` does neither,
            and divides by the token budget.
        epochs: Passes over the episodes of an iteration.
        clip: Width of the trust region of the probability ratio.
    """

    normalization: Literal["grpo", "dr_grpo"] = "grpo"
    epochs: Count = 1
    clip: Positive = 0.2


class GRPO(Agent[GRPOConfig]):
    """Ascends a clipped surrogate of the return, with advantages over the group's mean."""

    Config: ClassVar[type[AgentConfig]] = GRPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        config = self.config
        scale = config.normalization == "grpo"
        advantages = group_advantages(
            rollout, config.samples, config.credit, partial(losses.group_relative, scale=scale)
        )
        budget = self.base.most_tokens

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            tokens = losses.clipped_policy_loss(
                now.log_probs, batch["log_probs"], batch["advantages"], config.clip, self.importance_cap
            )
            lengths = batch.mask.sum(dim=1) if scale else budget
            policy_loss = (batch.padded(tokens).sum(dim=1) / lengths).sum() / batch.episodes
            clipped = losses.clip_fraction(now.log_probs, batch["log_probs"], config.clip) * len(tokens) / batch.tokens
            return policy_loss, {"policy_loss": policy_loss, "clip_fraction": clipped}

        return self.optimize(rollout, {"advantages": advantages}, loss, epochs=config.epochs)
