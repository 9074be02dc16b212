"""``textenv clips train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textenv.clips.clips_config import ClipsConfig
from textenv.commands.base import FROM_CHECKPOINT, Command
from textenv.commands.console import tell

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class Train(Command, ClipsConfig):
    """Train a Stable-Baselines3 agent on preferences between clips of what it does.

    A run that was cut off goes on when the same command is given again.
    """

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    def run(self) -> int:
        """Train, and print the true return."""
        from textenv.clips.training import train  # noqa: PLC0415 (loads Stable-Baselines3)

        results = train(self)
        tell(
            f"True return of {self.eval_episodes} episodes: {results['true_return']:.1f}, from "
            f"{results['labels_judged']} comparisons. The learning curve is {self.out / 'returns.png'}"
        )
        return 0
