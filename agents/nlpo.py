"""Natural language policy optimization (Ramamurthy et al. 2022, section 4): PPO masked by a lagged policy.

A token may be drawn only if it is among the fewest tokens that hold ``top_p`` of the probability of a copy of the
policy that lags behind. The policy is renormalized within this mask when it acts and when it learns, so that its ratio
is of two distributions over the same tokens. What is maximized is the KL-regularized return, ``score - kl_coef * KL``,
of the masked policy, which is also the one that ``predict`` and ``sample`` show.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from textenv.agents.agent import Agent, new_policy
from textenv.agents.config import AgentConfig
from textenv.agents.ppo import PPOConfig, clipped_update
from textenv.lazy import lazy
from textenv.types import IntArray, Observation, TextEnvError
from textenv.validation import Count

if TYPE_CHECKING:
    import torch

    from textenv.env import reference
    from textenv.models.policy import TextPolicy
    from textenv.rollouts import distributed
    from textenv.rollouts.collect import Rollout
else:
    torch, distributed = lazy("torch"), lazy("textenv.rollouts.distributed")
    reference = lazy("textenv.env.reference")

__all__ = ["NLPO", "NLPOConfig"]


@dataclass(frozen=True, slots=True)
class NLPOConfig(PPOConfig):
    """Settings of NLPO: PPO's, and those of the mask.

    Attributes:
        top_p: Probability of the lagged policy that the tokens within the mask hold.
        mask_every: Iterations between copies of the policy to the one that lags.
    """

    top_p: Annotated[float, Gt(0), Le(1)] = 0.9
    mask_every: Count = 5

    def __post_init__(self) -> None:
        """Check the settings."""
        PPOConfig.__post_init__(self)  # slots: a new class, which super() does not know
        if self.rollout_engine is not None:
            raise TextEnvError(
                f"rollout_engine={self.rollout_engine!r}: NLPO draws within a mask, which no engine knows. Take "
                "another agent, such as PPO, or leave the engine out."
            )


class NLPO(Agent[NLPOConfig]):
    """PPO over the tokens that were likely a few iterations ago."""

    Config: ClassVar[type[AgentConfig]] = NLPOConfig

    def __init__(self, env: Any, config: NLPOConfig | None = None, **keywords: Any) -> None:
        """Start from a copy of the environment's reference model (see ``Agent``)."""
        super().__init__(env, config, **keywords)
        lagged = new_policy(self.base, dataclasses.replace(self.config, value="none"))
        self.mask = self._nucleus = _Nucleus(lagged, self.config.top_p)
        self.kept["lagged"] = lagged.learned
        self._nucleus.copy_from(self.policy)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        metrics = clipped_update(self, self.config, rollout)
        if (self.iterations + 1) % self.config.mask_every == 0:
            self._nucleus.copy_from(self.policy)
        return metrics


class _Nucleus:
    """The fewest tokens that hold ``top_p`` of the probability of a policy, as an ``ActionMask``."""

    def __init__(self, policy: TextPolicy, top_p: float) -> None:
        self._policy, self._top_p = policy, top_p

    def copy_from(self, other: TextPolicy) -> None:
        """Take the weights of another policy; every process calls it."""
        mine, theirs = (
            [tensor for name, tensor in policy.learned.named_parameters() if not name.startswith("value_")]
            for policy in (self._policy, other)
        )
        with torch.no_grad():
            for old, new in zip(mine, theirs, strict=True):
                old.copy_(distributed.full(new.detach()))

    def forget(self) -> None:
        self._policy.forget()

    def __call__(self, obs: Observation, rows: IntArray, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        log_probs = self._policy.next_log_probs(obs, rows, masks=allowed)
        masks = np.zeros((len(obs["input_ids"]), log_probs.shape[1]), dtype=bool)
        masks[rows] = reference.likeliest(log_probs, None, self._top_p)
        if allowed is not None:
            masks &= allowed
        return masks
