"""``textenv train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from textenv.commands.base import FROM_CHECKPOINT, Command
from textenv.commands.console import console
from textenv.commands.flags import agent_flags, last_value
from textenv.commands.settings import TrainSettings

__all__ = ["Train"]


@dataclass(frozen=True)
class Train(Command, TrainSettings):
    """Train an agent in a text environment.

    A run that was cut off goes on where it was when the same command is given again. Every setting of the agent is a
    flag: see "textenv train --agent NAME --help".

    On several processes or GPUs: accelerate launch --multi_gpu --num_processes 2 -m textenv train ..., and --use_fsdp
    in place of --multi_gpu to share out optimizer state, gradients and parameters.
    """

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    @classmethod
    def with_flags(cls, arguments: Sequence[str]) -> type[Self]:
        """Return the class with a flag for every setting of the agent that the arguments name."""
        made: Any = agent_flags(cls, "agent_flags", last_value(arguments, "--agent", "ppo"))
        return made  # type: ignore[no-any-return]

    def run(self) -> int:
        """Train, or go on with it, in this process or in the processes that accelerate has started."""
        from textenv.commands.training_run import train  # noqa: PLC0415 (loads torch)
        from textenv.rollouts.distributed import connect  # noqa: PLC0415

        world = connect(self.timeout)
        console.quiet = not world.first
        with world.watch():
            train(self, world)
        world.close()
        return 0
