"""TRL's environments, which ``GRPOTrainer`` takes as ``environment_factory``: ``trl:package.module:Class``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textenv.worlds.tools import Tools

__all__ = ["TRL"]


class TRL(Tools):
    """An environment of TRL; TRL itself is not needed."""

    def __init__(self, name: str, *, tools: Sequence[str | Callable[..., Any]] = (), describe: bool = True) -> None:
        """Make the environment.

        Args:
            name: Import path of the class, or of a function that makes one: ``"package.module:Class"``.
            tools: Further functions; see ``textenv.worlds.tools.Tools``.
            describe: As there.

        Raises:
            TextEnvError: As there.
        """
        super().__init__(environment=name, tools=tools, describe=describe)
