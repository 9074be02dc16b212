"""The files of a finished run: its policy and its reward model, as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from textenv.clips.clips_config import ClipsConfig
from textenv.clips.ensemble import RewardEnsemble
from textenv.clips.measuring import make_task
from textenv.clips.sb3_agents import Agent, make_agent
from textenv.clips.segments import Features
from textenv.data.files import read_json, write_atomically, write_json
from textenv.env.trust import Source
from textenv.types import FloatArray, TextEnvError

__all__ = ["StepReward", "load_policy", "load_reward", "save_policy", "save_reward"]


@dataclass(frozen=True, slots=True)
class StepReward:
    """The reward of an ensemble, as a function of the task's observations and actions: what ``LearnedReward`` takes.

    Attributes:
        ensemble: The reward models.
        features: Turns steps into the vectors that they read.
    """

    ensemble: RewardEnsemble
    features: Features

    @torch.no_grad()
    def __call__(self, observations: NDArray[Any], actions: NDArray[Any]) -> FloatArray:
        """Return the rewards of ``n`` observations and actions, shape ``(n,)``, float32."""
        rewards: FloatArray = self.ensemble(torch.from_numpy(self.features(observations, actions))).numpy()
        return rewards


def save_policy(folder: Path, agent: Agent, config: ClipsConfig) -> None:
    """Write an agent's networks (safetensors) and what is needed to make it again (JSON)."""
    about = {"agent": config.agent, "task": config.task, "task_settings": dict(config.task_settings)}
    about["agent_settings"] = dict(config.agent_settings)
    _save(folder, agent.policy.state_dict(), about)


def load_policy(folder: Path, *, trust: bool = False) -> Agent:
    """Return an agent that acts as the saved one; it can be trained further, with an empty replay memory.

    Args:
        folder: The run's folder ``policy``.
        trust: Let its ``config.json`` name a task in a module that is then imported: only for runs of your own.

    Raises:
        TextEnvError: The folder holds no policy, or it imports code and is not trusted.
    """
    weights, about = _load(
        folder, "a policy of 'textenv clips train'", "agent", "task", "task_settings", "agent_settings"
    )
    source = Source(folder / "config.json", trust, how="trust=True")
    env = make_task(source.env(about["task"]), source.settings(about["task_settings"]))
    agent = make_agent(about["agent"], env, seed=0, buffer_size=1, settings=about["agent_settings"])
    _fill(agent.policy, weights, folder)
    return agent


def save_reward(folder: Path, ensemble: RewardEnsemble) -> None:
    """Write a reward model (safetensors and JSON)."""
    members, features, hidden = ensemble.weights[0].shape
    _save(folder, ensemble.state_dict(), {"members": members, "features": features, "hidden": hidden})


def load_reward(folder: Path, env: gym.Env[Any, Any]) -> StepReward:
    """Read the reward that a run has learned, for ``LearnedReward``.

    Args:
        folder: The run's folder ``reward``.
        env: The task, or one with the same spaces.

    Raises:
        TextEnvError: The folder holds no reward model, or it is one of a task with other spaces.
    """
    weights, about = _load(folder, "a reward model of 'textenv clips train'", "members", "features", "hidden")
    features = Features(env.observation_space, env.action_space)
    if features.size != about["features"]:
        raise TextEnvError(
            f"{folder}: the reward model reads {about['features']} numbers a step, and the task has {features.size}."
        )
    ensemble = RewardEnsemble(about["features"], members=about["members"], hidden=about["hidden"])
    _fill(ensemble, weights, folder)
    return StepReward(ensemble, features)


def _save(folder: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    copies = {name: value.detach().contiguous().clone() for name, value in weights.items()}
    write_atomically(folder / "model.safetensors", safetensors.torch.save(copies))
    write_json(folder / "config.json", about)


def _load(folder: Path, what: str, *keys: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        about = read_json(folder / "config.json")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        missing = [key for key in keys if key not in about]
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TextEnvError(f"{folder}: expected {what} ({error}).") from error
    if missing:
        raise TextEnvError(f"{folder}: expected {what}; its config.json has no {missing}.")
    return weights, about


def _fill(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise TextEnvError(f"{folder}: the weights do not fit its config.json: {error}") from error
