"""Wrappers of a task that is learned from preferences alone."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.types import FloatArray

__all__ = ["FixedLength", "LearnedReward", "RewardFunction"]


class RewardFunction(Protocol):
    """A reward of observations and actions."""

    def __call__(self, observations: NDArray[Any], actions: NDArray[Any]) -> FloatArray:
        """Return a reward for each of ``n`` observations and actions, shape ``(n,)``."""
        ...


class FixedLength(gym.Wrapper[Any, Any, Any, Any]):
    """Episodes of a fixed number of steps, so that their length does not reveal the task's reward.

    If the task ends earlier it is reset, and the episode continues without the agent being told (Christiano et al.
    2017, appendix A). An episode ends as ``truncated``, so that an agent bootstraps beyond its end.

    Attributes:
        steps: Length of an episode.
        left: Steps left in the present episode.
        true_return: Sum of the task's rewards in the present episode.
        returns: True returns of the episodes that have ended; the reader empties the list.
    """

    def __init__(self, env: gym.Env[Any, Any], steps: int) -> None:
        """Wrap a task."""
        super().__init__(env)
        self.steps = self.left = steps
        self.true_return = 0.0
        self.returns: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self.left, self.true_return = self.steps, 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; ``terminated`` is always False."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.left -= 1
        self.true_return += float(reward)
        if self.left <= 0:
            self.returns.append(self.true_return)
            return observation, reward, False, True, info
        if terminated or truncated:
            observation, info = self.env.reset()
        return observation, reward, False, False, info


class LearnedReward(gym.Wrapper[Any, Any, Any, Any]):
    """Replaces the task's reward by a learned one; the task's is in ``info["true_reward"]``, for measuring only.

    Attributes:
        reward: The learned reward, a function of the observation before a step and of its action.
        observation: The present observation.
    """

    def __init__(self, env: gym.Env[Any, Any], reward: RewardFunction) -> None:
        """Wrap a task."""
        super().__init__(env)
        self.reward = reward
        self.observation: NDArray[Any] = np.empty(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the task."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.observation = np.array(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the task and return the learned reward."""
        observation, true_reward, terminated, truncated, info = self.env.step(action)
        reward = float(self.reward(self.observation[None], np.asarray(action)[None])[0])
        self.observation = np.array(observation)
        return observation, reward, terminated, truncated, {**info, "true_reward": float(true_reward)}
