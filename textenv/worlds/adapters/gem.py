"""Environments of GEM, the package ``gem-llm``: ``gem:ID``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textenv.types import TextEnvError, in_one_line
from textenv.worlds.adapters._randomness import OwnRandomness
from textenv.worlds.adapters._require import require

__all__ = ["Gem"]


class Gem:
    """An environment of GEM: games, mathematics, code, questions.

    What it says and the ``prefix`` and ``suffix`` in its infos, which say what is to be done next, are lines of their
    own. GEM draws from the random numbers that all of a process shares; here each world has its own.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        """Make the environment.

        Args:
            name: Its id, such as ``"game:GuessTheNumber-v0-easy"``.
            **settings: Keywords of ``gem.make``.

        Raises:
            TextEnvError: gem-llm is not installed, has no such environment, or refuses the settings.
        """
        package = require("gem", world=f"gem:{name}", install="gem-llm")
        self._randomness = OwnRandomness()
        try:
            with self._randomness.lent():
                self._env = package.make(name, **settings)
        except Exception as error:  # whatever the environment raises
            raise TextEnvError(f"The world 'gem:{name}' cannot be made: {in_one_line(error)}") from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode."""
        with self._randomness.seeded(seed):
            said, info = self._env.reset(seed=seed)
        return _lines(said, info), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a turn."""
        with self._randomness.lent():
            said, reward, terminated, truncated, info = self._env.step(action)
        return "\n" + _lines(said, info), float(reward), bool(terminated), bool(truncated), info

    def close(self) -> None:
        """Close the environment, if it can be closed."""
        close = getattr(self._env, "close", None)
        if callable(close):
            close()


def _lines(said: Any, info: Mapping[str, Any]) -> str:
    parts = [str(part) for part in (info.get("prefix"), said, info.get("suffix")) if part]
    return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts)
