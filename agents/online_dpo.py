"""Online direct preference optimization (Rafailov et al. 2023; Guo et al. 2024), judged by the environment's own score.

Of each group of completions the best and the worst by score are a pair. With ``labels="soft"`` the better is preferred
with the probability ``sigmoid(difference of the scores)`` of the Bradley-Terry model, and the minimum of the loss is
the optimum of the KL-regularized return, ``score - kl_coef * KL``. With ``"hard"``, as published, it is preferred for
sure, whatever the difference: the margin then grows without end, and only training that stops limits the KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig, GroupConfig
from textenv.agents.credit import refuse_turn_discount
from textenv.agents.environment import split_kl_penalty
from textenv.lazy import lazy
from textenv.types import TextEnvError
from textenv.validation import Count, Positive

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses = lazy("torch"), lazy("textenv.agents.losses")

__all__ = ["OnlineDPO", "OnlineDPOConfig"]


@dataclass(frozen=True, slots=True)
class OnlineDPOConfig(GroupConfig):
    """Settings of online DPO.

    Attributes:
        beta: Weight of the KL in the loss; None for the environment's ``kl_coef``.
        labels: ``"soft"`` or ``"hard"``.
        epochs: Passes over the pairs of an iteration.
    """

    samples: Annotated[int, Ge(2)] = 2
    beta: Positive | None = None
    labels: Literal["soft", "hard"] = "soft"
    epochs: Count = 1


class OnlineDPO(Agent[OnlineDPOConfig]):
    """Moves probability from the worst completion of a prompt to the best."""

    Config: ClassVar[type[AgentConfig]] = OnlineDPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names.

        Raises:
            TextEnvError: The environment has no KL penalty and the settings no ``beta``, or an episode was cut off.
        """
        config = self.config
        beta = config.beta or self.base.kl_coef
        if not beta > 0:
            raise TextEnvError("kl_coef=0 leaves DPO without a beta, the weight of its KL: set the agent's own.")
        refuse_turn_discount(rollout, "Online DPO", "use an agent with values")
        kl, rewards = split_kl_penalty(self.base, rollout)
        scores = rewards.sum(axis=1).reshape(-1, config.samples)
        ends = np.stack([scores.argmax(axis=1), scores.argmin(axis=1)], axis=1)
        ends[:, 1] = np.where(ends[:, 0] == ends[:, 1], ends[:, 0] - 1, ends[:, 1])  # all alike: any other
        picks = (np.arange(len(scores))[:, None] * config.samples + ends % config.samples).ravel()
        pairs = rollout.rows(picks)
        differences = torch.from_numpy(scores.max(axis=1) - scores.min(axis=1)).float()
        chosen = torch.sigmoid(differences) if config.labels == "soft" else 0.5 + 0.5 * (differences > 0).float()
        columns = {
            "reference": torch.from_numpy((rollout.log_probs - kl)[picks]),
            "chosen": chosen.repeat_interleave(2)[:, None].expand(pairs.mask.shape),
        }

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            ratios = batch.padded(now.log_probs - batch["reference"]).sum(dim=1).view(-1, 2)
            preferred = batch.padded(batch["chosen"])[::2, 0]
            margins = beta * (ratios[:, 0] - ratios[:, 1])
            number = batch.episodes // 2
            policy_loss = losses.preference_loss(margins, preferred).sum() / number
            return policy_loss / beta, {"policy_loss": policy_loss, "margin": margins.sum() / number}

        return self.optimize(pairs, columns, loss, epochs=config.epochs, group=2)
