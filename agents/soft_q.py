"""Soft Q-learning on tokens (Haarnoja et al. 2017) by path consistency (Nachum et al. 2017), with a replay.

It minimizes the soft Bellman residual of the KL-regularized return, ``score - kl_coef * KL``. With ``beta = kl_coef``
the language model's logits, normalized, are the dueling form of

    Q(s, a) = V(s) + beta * log(pi(a|s) / pi_ref(a|s)),

of which ``V(s) = beta * log sum_a pi_ref(a|s) * exp(Q(s, a) / beta)`` holds whatever the weights, and ``pi`` is the
policy that is soft-greedy under the reference. At the optimum the residual is 0 on every path, whichever policy wrote
it, so episodes are replayed without importance weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig
from textenv.agents.environment import refuse_no_kl, split_kl_penalty
from textenv.lazy import lazy
from textenv.validation import Count, LearningRate, NonNegative

if TYPE_CHECKING:
    import torch

    from textenv.agents import losses, replay
    from textenv.agents.minibatches import Batch
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, losses, replay = lazy("torch"), lazy("textenv.agents.losses"), lazy("textenv.agents.replay")

__all__ = ["SoftQ", "SoftQConfig"]


@dataclass(frozen=True, slots=True)
class SoftQConfig(AgentConfig):
    """Settings of soft Q-learning.

    Attributes:
        value: Where V comes from: a ``"head"`` on the policy's layers, or a ``"model"`` of its own.
        value_learning_rate: That of the value head, which starts at zero; ``"auto"`` for 30 times ``learning_rate``.
        value_coef: Weight of the residual's gradient in V, against that in the policy.
        n_steps: Tokens that a residual spans before V stands in for the rest; None for all.
        replay: Iterations whose episodes are kept.
        updates: Minibatches an iteration; None for as many as its episodes make.
    """

    value: Literal["head", "model"] = "head"
    value_learning_rate: LearningRate | Literal["auto"] = "auto"
    value_coef: NonNegative = 0.1
    n_steps: Count | None = None
    replay: Count = 4
    updates: Count | None = None


class SoftQ(Agent[SoftQConfig]):
    """Makes values and log-probabilities consistent along the paths of its replay."""

    Config: ClassVar[type[AgentConfig]] = SoftQConfig

    def start_learning(self) -> None:
        """Make the replay.

        Raises:
            TextEnvError: The environment has no KL penalty, which is what makes Q-learning soft.
        """
        super().start_learning()
        refuse_no_kl(self.base, "soft Q-learning")
        self._replay = replay.Replay(self.config.replay * self.episodes, self.base)
        self.kept["replay"] = self._replay

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the replay; return means over the updates, under the usual names."""
        config = self.config
        self._replay.add(rollout, *split_kl_penalty(self.base, rollout))
        beta = self.base.kl_coef

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            rewards = batch.padded(batch["rewards"])
            penalty = batch.padded(beta * (now.log_probs - batch["reference"]))
            values = batch.padded(now.values)
            end = torch.zeros(len(values), device=values.device)
            discounts = batch.padded(batch["discounts"])

            def residuals(penalty: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
                return losses.n_step_advantages(
                    rewards - penalty, values, batch.mask, end, gamma=1.0, steps=config.n_steps, discounts=discounts
                )

            policy_loss = 0.5 * (residuals(penalty, values.detach()) ** 2).sum() / batch.tokens / beta
            value_loss = 0.5 * (residuals(penalty.detach(), values) ** 2).sum() / batch.tokens
            return policy_loss + config.value_coef * value_loss, {"policy_loss": policy_loss, "value_loss": value_loss}

        size = config.minibatch_size or len(rollout.episodes)
        updates = config.updates or -(-len(rollout.episodes) // size)
        replayed, columns = self._replay.draw(size * updates, self._shuffle)
        return self.optimize(replayed, {**columns, "discounts": torch.from_numpy(replayed.discounts)}, loss)
