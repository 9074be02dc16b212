"""REINFORCE with a learned baseline (Williams 1992; Sutton and Barto 2018, section 13.4).

It ascends the gradient of the KL-regularized return, ``score - kl_coef * KL``: a token is weighed by what the episode
earned from it on, less the value of the state. At the optimum of that return what is still earned equals the value in
every episode, so the noise of the gradient vanishes there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig, ValueConfig
from textenv.lazy import lazy

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["REINFORCE", "REINFORCEConfig"]


@dataclass(frozen=True, slots=True)
class REINFORCEConfig(ValueConfig):
    """Settings of REINFORCE: those of every agent with a value function, which is its baseline."""


class REINFORCE(Agent[REINFORCEConfig]):
    """Ascends the policy gradient, a step a minibatch, each episode used once."""

    Config: ClassVar[type[AgentConfig]] = REINFORCEConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        config = self.config
        mask, values = torch.from_numpy(rollout.mask), torch.from_numpy(rollout.values)
        rewards, bootstrap = torch.from_numpy(rollout.rewards), torch.from_numpy(rollout.bootstrap)
        discounts = torch.from_numpy(rollout.discounts)
        advantages = losses.n_step_advantages(
            rewards, values, mask, bootstrap, gamma=config.gamma, steps=None, discounts=discounts
        )
        returns = advantages + values
        if config.whiten_advantages:
            advantages = losses.masked_whiten(advantages, mask)

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            old, cap = batch["log_probs"], self.importance_cap
            policy = losses.policy_gradient_loss(now.log_probs, old, batch["advantages"], cap)
            truncated = losses.truncated_share(now.log_probs, old, cap) * len(old) / batch.tokens
            policy_loss = policy.sum() / batch.tokens
            value_loss = losses.clipped_value_loss(now.values, now.values, batch["returns"], None).sum() / batch.tokens
            return policy_loss + config.value_coef * value_loss, {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "truncated": truncated,
            }

        metrics = self.optimize(rollout, {"advantages": advantages, "returns": returns}, loss)
        return {**metrics, "train/explained_variance": losses.explained_variance(values, returns, mask)}
