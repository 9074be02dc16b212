"""Stable-Baselines3's agents: making them, saving them as safetensors and JSON, and relabeling their replay memory."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from textenv.clips.wrappers import RewardFunction
from textenv.data.files import to_json
from textenv.types import TextEnvError
from textenv.validation import unknown_name

__all__ = ["AGENTS", "Agent", "agent_state", "make_agent", "relabel_rewards", "restore_agent"]

Agent = A2C | DDPG | DQN | PPO | SAC | TD3
AGENTS: dict[str, type[Agent]] = {"a2c": A2C, "ddpg": DDPG, "dqn": DQN, "ppo": PPO, "sac": SAC, "td3": TD3}
_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_n_calls",  # DQN's, for its target network
    "exploration_rate",  # DQN's
    "_current_progress_remaining",
)
_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_EXPLORATION_STD = 0.1  # of TD3 and DDPG, which do not explore by themselves; their actions are from -1 to 1


def make_agent(name: str, env: Any, *, seed: int, buffer_size: int, settings: Mapping[str, Any]) -> Agent:
    """Return an untrained agent with fully connected networks, on the CPU, where networks this small are fastest.

    Args:
        name: One of ``AGENTS``.
        env: A single Gymnasium environment.
        seed: Seeds the agent, the environment, and torch's and numpy's global generators, which SB3 draws from.
        buffer_size: Steps in the replay memory of an off-policy agent, at most a million.
        settings: Further keywords of the agent's class.

    Raises:
        TextEnvError: There is no such agent, it has no such setting, or cannot act in such a task.
    """
    if name not in AGENTS:
        raise unknown_name("There is no agent", name, AGENTS)
    keywords: dict[str, Any] = {}
    if issubclass(AGENTS[name], OffPolicyAlgorithm):
        keywords["buffer_size"] = min(buffer_size, 1_000_000)
    if name in ("td3", "ddpg"):
        size = spaces.flatdim(env.action_space)
        keywords["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, _EXPLORATION_STD))
    keywords |= copy.deepcopy(dict(settings))  # because A2C changes its policy_kwargs
    try:
        return AGENTS[name]("MlpPolicy", DummyVecEnv([lambda: env]), seed=seed, device="cpu", **keywords)
    except (AssertionError, TypeError, ValueError) as error:  # AssertionError: an action space that does not fit
        raise TextEnvError(
            f"Stable-Baselines3 cannot make agent {name!r} for actions of {env.action_space} with the settings "
            f"{dict(settings)}: {error}"
        ) from error


def relabel_rewards(agent: Agent, reward: RewardFunction) -> None:
    """Compute the rewards in an off-policy agent's replay memory again; on-policy agents have none.

    Args:
        agent: The agent, whose memory holds the rewards of earlier reward models.
        reward: The present reward.
    """
    memory = getattr(agent, "replay_buffer", None)
    if not isinstance(memory, ReplayBuffer) or not memory.size():
        return
    size = memory.size()
    actions = memory.actions[:size, 0]
    if isinstance(agent.action_space, spaces.Box):  # stored scaled, from -1 to 1
        actions = agent.policy.unscale_action(actions)
    memory.rewards[:size, 0] = reward(memory.observations[:size, 0], actions)


def agent_state(agent: Agent) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what an agent needs to continue at the beginning of a rollout: tensors, and JSON values.

    These are networks, optimizers, replay memory, counters and random number generators, including torch's and numpy's
    global ones, from which Stable-Baselines3 draws. The noise matrices of state-dependent exploration (``use_sde``) are
    not saved; they are drawn again.
    """
    tensors: dict[str, torch.Tensor] = {}
    _, variables = agent._get_torch_save_params()
    values = {**agent.get_parameters(), **{name: _attribute(agent, name) for name in variables}}
    state: dict[str, Any] = {"parameters": _split(values, "parameters", tensors)}
    state["counters"] = {name: getattr(agent, name) for name in _COUNTERS if hasattr(agent, name)}
    if (memory := getattr(agent, "replay_buffer", None)) is not None:
        state["memory"] = {"pos": memory.pos, "full": memory.full}
        for name in _REPLAY:
            tensors[f"memory/{name}"] = torch.from_numpy(getattr(memory, name)[: memory.size()].copy())
    tensors["last/observation"] = torch.from_numpy(np.array(agent._last_obs))
    tensors["last/episode_starts"] = torch.from_numpy(np.array(agent._last_episode_starts))
    tensors["random/torch"] = torch.get_rng_state()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (SB3's own)
    tensors["random/numpy"] = torch.from_numpy(np.array(keys, dtype=np.int64))
    state["random"] = {"numpy": [kind, *rest], "actions": agent.action_space.np_random.bit_generator.state}
    return tensors, json.loads(to_json(state))


def restore_agent(agent: Agent, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Give an agent, made with the same settings, the state that ``agent_state`` returned.

    Raises:
        TextEnvError: The state does not fit the agent.
    """
    try:
        values = _joined(state["parameters"], tensors)
        _, variables = agent._get_torch_save_params()
        agent.set_parameters({name: value for name, value in values.items() if name not in variables})
        for name in variables:
            _attribute(agent, name).data.copy_(values[name])
        if "memory" in state:
            memory: Any = getattr(agent, "replay_buffer", None)
            memory.pos, memory.full = state["memory"]["pos"], state["memory"]["full"]
            for name in _REPLAY:
                getattr(memory, name)[: memory.size()] = tensors[f"memory/{name}"].numpy()
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise TextEnvError(
            f"The checkpoint does not fit the agent: {error}. Resume with the settings that the run was started with."
        ) from error
    for name, value in state["counters"].items():
        setattr(agent, name, value)
    agent._last_obs = tensors["last/observation"].numpy()
    agent._last_episode_starts = tensors["last/episode_starts"].numpy()
    torch.set_rng_state(tensors["random/torch"])
    kind, *rest = state["random"]["numpy"]
    np.random.set_state((kind, tensors["random/numpy"].numpy().astype(np.uint32), *rest))  # noqa: NPY002
    agent.action_space.np_random.bit_generator.state = state["random"]["actions"]


def _attribute(agent: Agent, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), agent)


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return nested values as JSON, with the tensors in them moved to ``tensors`` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[key, _split(inner, f"{path}/{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_split(inner, f"{path}/{index}", tensors) for index, inner in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return {"value": value}
    raise TextEnvError(f"{path} is {value!r}, which a checkpoint cannot hold; leave that setting of the agent out.")


def _joined(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the values that ``_split`` was given."""
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "items":
        return {key: _joined(item, tensors) for key, item in inner}
    return [_joined(item, tensors) for item in inner] if kind == "list" else inner
