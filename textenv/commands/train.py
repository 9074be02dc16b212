"""``textenv train``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from textenv.commands.base import FROM_CHECKPOINT, Command, use_threads
from textenv.commands.console import console
from textenv.commands.flags import agent_flags, in_groups, last_value
from textenv.commands.settings import TrainSettings

__all__ = ["Train"]

_TRACKING = ("eval_prompts", "eval_episodes", "checkpoint_every")


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
    def with_flags(cls, arguments: Sequence[str]) -> Callable[..., Self]:
        """Return what makes the command, with a flag for every setting of the agent that the arguments name."""
        made: type[Self] = agent_flags(cls, "agent_flags", last_value(arguments, "--agent", "ppo"))
        run = [each.name for each in fields(TrainSettings) if each.name not in (*_TRACKING, "settings", "agent_flags")]
        return in_groups(made, {"run": run, "tracking": _TRACKING})

    def run(self) -> int:
        """Train, or go on with it, in this process or in the processes that accelerate has started."""
        from textenv.commands.training_run import train  # noqa: PLC0415 (loads torch)
        from textenv.rollouts.distributed import connect  # noqa: PLC0415

        use_threads(self.threads)
        processes = connect(self.timeout)
        console.quiet = not processes.first
        with processes.watch():
            train(self, processes)
        processes.close()
        return 0
