"""REINFORCE leave-one-out (Kool et al. 2019), as RLHF uses it (Ahmadian et al. 2024).

A completion is one action. It ascends the gradient of the KL-regularized return, ``score - kl_coef * KL``; the baseline
of a completion is the mean return of the others of its prompt, so nothing but the policy is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textenv.agents.agent import Agent
from textenv.agents.config import AdvantageConfig, AgentConfig
from textenv.agents.credit import group_advantages
from textenv.lazy import lazy

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["RLOO", "RLOOConfig"]


@dataclass(frozen=True, slots=True)
class RLOOConfig(AdvantageConfig):
    """Settings of RLOO: those of every agent that samples several completions of a prompt."""


class RLOO(Agent[RLOOConfig]):
    """Ascends the policy gradient of whole completions, each used once."""

    Config: ClassVar[type[AgentConfig]] = RLOOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        config = self.config
        advantages = group_advantages(rollout, config.samples, config.credit, losses.leave_one_out)
        of_tokens, cap = config.credit == "turn", self.importance_cap

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            log_probs, old, advantages = now.log_probs, batch["log_probs"], batch["advantages"]
            number = batch.tokens
            if not of_tokens:
                log_probs, old = (batch.padded(each).sum(dim=1) for each in (log_probs, old))
                advantages, number = batch.padded(advantages)[:, 0], batch.episodes
            policy_loss = losses.policy_gradient_loss(log_probs, old, advantages, cap).sum() / batch.episodes
            truncated = losses.truncated_share(log_probs, old, cap) * len(old) / number
            return policy_loss, {"policy_loss": policy_loss, "truncated": truncated}

        return self.optimize(rollout, {"advantages": advantages}, loss)
