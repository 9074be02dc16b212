"""Advantage actor-critic (Mnih et al. 2016, section 4), synchronous.

It ascends the gradient of the KL-regularized return, ``score - kl_coef * KL``, where a value stands in for what comes
more than ``n_steps`` tokens later: less noise than REINFORCE, and a bias as long as the values are wrong. An
``entropy_coef`` above 0 adds the policy's entropy to what it maximizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig, ValueConfig
from textenv.lazy import lazy
from textenv.validation import Count, NonNegative

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["A2C", "A2CConfig"]


@dataclass(frozen=True, slots=True)
class A2CConfig(ValueConfig):
    """Settings of A2C.

    Attributes:
        value: Where values come from: a ``"head"`` on the policy's layers, or a ``"model"`` of its own.
        n_steps: Rewards that are counted before a value stands in for the rest; None for all.
        entropy_coef: Weight of an entropy bonus.
    """

    value: Literal["head", "model"] = "head"
    n_steps: Count | None = 5
    entropy_coef: NonNegative = 0.0


class A2C(Agent[A2CConfig]):
    """Ascends the policy gradient with advantages over a few steps, each episode used once."""

    Config: ClassVar[type[AgentConfig]] = A2CConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        config = self.config
        mask, values = torch.from_numpy(rollout.mask), torch.from_numpy(rollout.values)
        rewards, bootstrap = torch.from_numpy(rollout.rewards), torch.from_numpy(rollout.bootstrap)
        advantages = losses.n_step_advantages(
            rewards, values, mask, bootstrap, gamma=config.gamma, steps=config.n_steps,
            discounts=torch.from_numpy(rollout.discounts),
        )  # fmt: skip
        returns = advantages + values
        if config.whiten_advantages:
            advantages = losses.masked_whiten(advantages, mask)

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            old, cap = batch["log_probs"], self.importance_cap
            policy = losses.policy_gradient_loss(now.log_probs, old, batch["advantages"], cap)
            truncated = losses.truncated_share(now.log_probs, old, cap) * len(old) / batch.tokens
            policy_loss = policy.sum() / batch.tokens
            value_loss = losses.clipped_value_loss(now.values, now.values, batch["returns"], None).sum() / batch.tokens
            entropy = now.entropy.sum() / batch.tokens
            total = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
            return total, {"policy_loss": policy_loss, "value_loss": value_loss, "truncated": truncated}

        columns = {"advantages": advantages, "returns": returns}
        metrics = self.optimize(rollout, columns, loss, entropy=config.entropy_coef > 0)
        return {**metrics, "train/explained_variance": losses.explained_variance(values, returns, mask)}
