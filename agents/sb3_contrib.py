"""sb3-contrib's ``MaskablePPO`` on a language model: see ``textenv.agents.sb3``, whose policy this is, with masks.

The masks are the environment's, ``top_k`` or ``top_p`` of the reference, and renormalize the policy and the reference
alike:

    envs = TextVecEnv(gymnasium.make_vec("textenv/MovieReview-v0", num_envs=64, top_k=50))
    agent = MaskablePPO(MaskableCausalLMPolicy, envs, rollout_buffer_class=MaskableEpisodeBuffer)
"""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from textenv.agents.sb3 import TextActorCritic, WholeEpisodes

__all__ = ["MaskableCausalLMPolicy", "MaskableEpisodeBuffer"]


class MaskableCausalLMPolicy(TextActorCritic, MaskableActorCriticPolicy):
    """A causal language model as the policy of ``MaskablePPO``; ``policy_kwargs`` as of ``TextActorCritic``."""

    def _over(self, logits: torch.Tensor, masks: Any) -> MaskableCategoricalDistribution:
        distribution = MaskableCategoricalDistribution(logits.shape[-1]).proba_distribution(action_logits=logits)
        if masks is not None:
            distribution.apply_masking(masks)
        return distribution


class MaskableEpisodeBuffer(WholeEpisodes, MaskableDictRolloutBuffer):
    """sb3-contrib's rollout buffer with minibatches of whole episodes."""
