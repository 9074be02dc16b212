"""Our side of the benchmarks of speed: the environment and the policy around one of their models."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode

from benchmarks import _jobs
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect
from textenv.types import KLMode


def make_env(
    model: Any,
    *,
    batch: int,
    prompt: int,
    response: int,
    kl_mode: KLMode = "lump",
    kl_coef: float = 0.05,
    reward: Any = _jobs.last_token,
) -> TextVectorEnv:
    """Return an environment with ``model`` as the reference, its prompts ``prompt`` tokens long."""
    vocab = model.config.vocab_size
    return TextVectorEnv(
        batch,
        model=CausalLM(model, _jobs.tokenizer(vocab)),
        prompts=_jobs.prompts(256, prompt, vocab),
        reward=reward,
        max_new_tokens=response,
        kl_mode=kl_mode,
        kl_coef=kl_coef,
        autoreset_mode=AutoresetMode.DISABLED,
    )


class Rollouts:
    """Collects rollouts; the policy is by default a copy of the environment's model with a value head."""

    def __init__(self, env: TextVectorEnv, policy: TextPolicy | None = None, *, per_row: int = 1) -> None:
        self.env, self.policy = env, policy or TextPolicy(env.reference)
        self._episodes = per_row * env.num_envs
        self._generator = torch.Generator(env.reference.device).manual_seed(0)
        env.reset(seed=0)

    def __call__(self) -> int:
        """Write so many episodes a row; return the number of tokens."""
        return collect(self.env, self.policy, self._generator, episodes=self._episodes).tokens
