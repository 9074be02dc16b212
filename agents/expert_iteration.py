"""Expert iteration (Anthony et al. 2017) with best-of-n as the expert (RAFT, Dong et al. 2023).

Of each group of completions the one with the highest KL-regularized return, ``score - kl_coef * KL``, is imitated. The
KL in it is that of the policy that wrote them, so at the optimum of the return all completions of a prompt have the
same return, and which of them is the best is chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig, GroupConfig
from textenv.agents.credit import refuse_turn_discount
from textenv.lazy import lazy
from textenv.validation import Count

if TYPE_CHECKING:
    import torch

    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch = lazy("torch")

__all__ = ["ExpertIteration", "ExpertIterationConfig"]


@dataclass(frozen=True, slots=True)
class ExpertIterationConfig(GroupConfig):
    """Settings of expert iteration.

    Attributes:
        epochs: Passes over the best completions of an iteration.
    """

    minibatch_size: Count | None = 8
    epochs: Count = 1


class ExpertIteration(Agent[ExpertIterationConfig]):
    """Imitates the best of the completions that it wrote."""

    Config: ClassVar[type[AgentConfig]] = ExpertIterationConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        refuse_turn_discount(rollout, "Expert iteration", "use an agent with values")
        returns = (rollout.rewards.sum(axis=1) + rollout.bootstrap).reshape(-1, self.config.samples)
        best = rollout.rows(np.arange(len(returns)) * self.config.samples + returns.argmax(axis=1))
        differ = torch.from_numpy(returns.max(axis=1) > returns.min(axis=1))  # else none of them is the best
        weights = differ[:, None].expand(best.mask.shape).float()

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            policy_loss = -(batch["weights"] * now.log_probs).sum() / batch.tokens
            return policy_loss, {"policy_loss": policy_loss}

        metrics = self.optimize(best, {"weights": weights}, loss, epochs=self.config.epochs)
        return {**metrics, "objective/best_return": float(returns.max(axis=1).mean())}
