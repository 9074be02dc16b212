"""``textenv rlhf``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from textenv.commands.base import FROM_CHECKPOINT, Command, use_threads
from textenv.commands.flags import agent_flags
from textenv.commands.settings import RlhfSettings

__all__ = ["Rlhf"]


@dataclass(frozen=True)
class Rlhf(Command, RlhfSettings):
    """Run all of RLHF: fine-tune on demonstrations, sample, rank, train a reward model, train with PPO, and repeat.

    With people, it stops where their rankings are missing and says how to give them; the same command goes on.
    """

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    @classmethod
    def with_flags(cls, arguments: Sequence[str]) -> Callable[..., Self]:
        """Return the class with a flag for every setting of PPO."""
        made: Any = agent_flags(cls, "ppo", "ppo")
        return made  # type: ignore[no-any-return]

    def run(self) -> int:
        """Run the pipeline as far as it comes without people."""
        from textenv.commands.rlhf_run import rlhf  # noqa: PLC0415 (loads torch)

        use_threads(self.threads)
        rlhf(self)
        return 0
