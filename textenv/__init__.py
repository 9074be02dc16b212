"""Reinforcement learning from human feedback as a Gymnasium environment.

``gymnasium.make("textenv/MovieReview-v0")`` after ``import textenv``; the general id is ``textenv/Text-v0``. Names are
imported when they are first used, so that registering the environments takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from textenv.env.registry import EnvRecord, register, register_all
from textenv.rollouts.runtime import limit_spinning
from textenv.types import Episode, Prompt, Reward, TextEnvError

if TYPE_CHECKING:
    from textenv.agents.a2c import A2C, A2CConfig
    from textenv.agents.best_of_n import BestOfN, BestOfNConfig
    from textenv.agents.expert_iteration import ExpertIteration, ExpertIterationConfig
    from textenv.agents.grpo import GRPO, GRPOConfig
    from textenv.agents.guided import Guided, GuidedConfig
    from textenv.agents.mac import MAC, MACConfig
    from textenv.agents.nlpo import NLPO, NLPOConfig
    from textenv.agents.online_dpo import OnlineDPO, OnlineDPOConfig
    from textenv.agents.ppo import PPO, PPOConfig
    from textenv.agents.reinforce import REINFORCE, REINFORCEConfig
    from textenv.agents.rloo import RLOO, RLOOConfig
    from textenv.agents.soft_q import SoftQ, SoftQConfig
    from textenv.env.handle import Handle
    from textenv.env.settings import TextEnvSettings
    from textenv.env.single import TextEnv
    from textenv.env.vector import TextVectorEnv
    from textenv.models.causal_lm import CausalLM
    from textenv.models.policy import TextPolicy
    from textenv.rewards import make as load_reward
    from textenv.rollouts.collect import Rollout, collect

__version__ = "0.1.0"

_LAZY = {
    "CausalLM": "textenv.models.causal_lm:CausalLM",
    "Handle": "textenv.env.handle:Handle",
    "Rollout": "textenv.rollouts.collect:Rollout",
    "TextEnv": "textenv.env.single:TextEnv",
    "TextEnvSettings": "textenv.env.settings:TextEnvSettings",
    "TextPolicy": "textenv.models.policy:TextPolicy",
    "TextVectorEnv": "textenv.env.vector:TextVectorEnv",
    "collect": "textenv.rollouts.collect:collect",
    "load_reward": "textenv.rewards:make",
}

__all__ = [
    "A2C",
    "GRPO",
    "MAC",
    "NLPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "A2CConfig",
    "BestOfN",
    "BestOfNConfig",
    "CausalLM",
    "EnvRecord",
    "Episode",
    "ExpertIteration",
    "ExpertIterationConfig",
    "GRPOConfig",
    "Guided",
    "GuidedConfig",
    "Handle",
    "MACConfig",
    "NLPOConfig",
    "OnlineDPO",
    "OnlineDPOConfig",
    "PPOConfig",
    "Prompt",
    "REINFORCEConfig",
    "RLOOConfig",
    "Reward",
    "Rollout",
    "SoftQ",
    "SoftQConfig",
    "TextEnv",
    "TextEnvError",
    "TextEnvSettings",
    "TextPolicy",
    "TextVectorEnv",
    "collect",
    "load_reward",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; every agent and its config are public names."""
    path = _LAZY.get(name) or _agents().get(name)
    if path is None:
        raise AttributeError(f"module 'textenv' has no attribute {name!r}")
    module, _, attribute = path.partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_agents()})


def _agents() -> dict[str, str]:
    """Return the import path of each agent and of its config, by class name."""
    from textenv.plugins import built_in  # noqa: PLC0415 (reads the files of the agents)

    found = built_in("textenv.agents", suffixes=("", "Config"))
    return {
        f"{name}{suffix}": f"textenv.agents.{file}:{name}{suffix}"
        for file, name in found.items()
        for suffix in ("", "Config")
    }


limit_spinning()  # before torch is loaded
register_all()
