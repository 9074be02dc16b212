"""Token-level proximal policy optimization (Schulman et al. 2017), as RLHF uses it (Ziegler et al. 2019).

It maximizes the environment's return: the score less ``kl_coef`` times the KL from the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig, ValueConfig
from textenv.lazy import lazy
from textenv.validation import Count, NonNegative, Positive, Probability

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["PPO", "PPOConfig", "clipped_update"]


@dataclass(frozen=True, slots=True)
class PPOConfig(ValueConfig):
    """Settings of PPO; the defaults suit models of a few million parameters, such as the bundled one.

    Attributes:
        epochs: Passes over the episodes of an iteration.
        clip: Width of the trust region of the probability ratio.
        value_clip: Width of the range a value may move before its loss stops rewarding it; None for no limit.
        entropy_coef: Weight of an entropy bonus.
        lam: Lambda of generalized advantage estimation.
        target_kl: Stop an iteration's passes once the new policy is this far from the old one, in nats a token.
    """

    epochs: Count = 1
    clip: Positive = 0.2
    value_clip: Positive | None = 0.2
    entropy_coef: NonNegative = 0.0
    lam: Probability = 1.0
    target_kl: Positive | None = None


class PPO(Agent[PPOConfig]):
    """Ascends a clipped surrogate of the return, with advantages over a learned value function."""

    Config: ClassVar[type[AgentConfig]] = PPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        return clipped_update(self, self.config, rollout)


def clipped_update(agent: Agent[Any], config: PPOConfig, rollout: Rollout) -> dict[str, float]:
    """Make PPO's passes over the episodes of an iteration; return means over the updates, under the usual names."""
    mask, values = torch.from_numpy(rollout.mask), torch.from_numpy(rollout.values)
    rewards, bootstrap = torch.from_numpy(rollout.rewards), torch.from_numpy(rollout.bootstrap)
    discounts = torch.from_numpy(rollout.discounts)
    advantages, returns = losses.gae(
        rewards, values, mask, bootstrap, gamma=config.gamma, lam=config.lam, discounts=discounts
    )
    if config.whiten_advantages:
        advantages = losses.masked_whiten(advantages, mask)

    def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy = losses.clipped_policy_loss(
            now.log_probs, batch["log_probs"], batch["advantages"], config.clip, agent.importance_cap
        )
        value = losses.clipped_value_loss(now.values, batch["values"], batch["returns"], config.value_clip)
        policy_loss, value_loss = policy.sum() / batch.tokens, value.sum() / batch.tokens
        total = policy_loss + config.value_coef * value_loss
        total = total - config.entropy_coef * now.entropy.sum() / batch.tokens
        clipped = losses.clip_fraction(now.log_probs, batch["log_probs"], config.clip) * len(policy) / batch.tokens
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "clip_fraction": clipped}

    metrics = agent.optimize(
        rollout,
        {"values": values, "advantages": advantages, "returns": returns},
        loss,
        epochs=config.epochs,
        entropy=config.entropy_coef > 0,
        target_kl=config.target_kl,
    )
    return {**metrics, "train/explained_variance": losses.explained_variance(values, returns, mask)}
