"""Environments that are registered with Gymnasium and speak in texts: ``gymnasium:ID``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces

from textenv.types import TextEnvError, in_one_line

__all__ = ["Gymnasium"]


class Gymnasium:
    """A registered environment whose actions are texts, and whose observations are texts or lists of messages.

    What the agent writes is handed over as it is, whether or not the alphabet and the length of the action space allow
    it.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        """Make the environment.

        Args:
            name: Its id, as ``gymnasium.make`` takes it: ``"MyEnv-v0"``, or ``"package.module:MyEnv-v0"`` for one that
                importing a module registers.
            **settings: Keywords of ``gymnasium.make``.

        Raises:
            TextEnvError: It is not registered or does not take these settings, or its spaces are not of texts.
        """
        try:
            self._env: gym.Env[Any, Any] = gym.make(name, **{"disable_env_checker": True, **settings})
        except Exception as error:  # whatever the environment raises
            raise TextEnvError(f"The world 'gymnasium:{name}' cannot be made: {in_one_line(error)}") from error
        seen, done = self._env.observation_space, self._env.action_space
        if not isinstance(done, spaces.Text) or not _may_be_messages(seen):
            self._env.close()
            raise TextEnvError(
                f"The world 'gymnasium:{name}' has observations {seen} and actions {done}; expected actions of the "
                "space Text, and observations that are texts or lists of messages."
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        return self._env.reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a turn."""
        said, reward, terminated, truncated, info = self._env.step(action)
        return said, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _may_be_messages(space: spaces.Space[Any]) -> bool:
    """Return whether what a space holds may be texts or lists of messages; what others define, only a value shows."""
    ours = isinstance(space, (spaces.Text, spaces.Sequence)) or type(space) is spaces.Space
    return ours or not type(space).__module__.startswith("gymnasium.")
