"""The precisions of a run: of its training forward, and of the linear layers that draw."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from textenv.models import probe
from textenv.models.rounding import Precision, multiplies_bfloat16

if TYPE_CHECKING:
    from textenv.agents.config import AgentConfig
    from textenv.models.causal_lm import CausalLM
    from textenv.rollouts.distributed import Processes

__all__ = ["Precisions", "choose"]


class Precisions(NamedTuple):
    """What a run's settings stand for; a checkpoint keeps it.

    Attributes:
        training: Of the training forward; the weights stay in float32.
        rollout: Of the policy's linear layers while it writes.
    """

    training: Literal["float32", "bfloat16"]
    rollout: Precision

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Compute a training forward inside."""
        if self.training == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    @property
    def bits(self) -> float:
        """How many bits the linear layers are rounded to while the policy writes; 32 where they are not."""
        return {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0}[self.rollout]


def choose(config: AgentConfig, lm: CausalLM, rows: int, processes: Processes) -> Precisions:
    """Return the precisions that settings stand for, the same in all processes.

    Args:
        config: The settings.
        lm: The policy's language model.
        rows: Rows that it writes in.
        processes: The processes of the run, of which the first measures for all.
    """
    training, rollout = config.precision, config.rollout_precision
    if training == "auto":
        training = "bfloat16" if multiplies_bfloat16(lm.device) else "float32"
        if training == "bfloat16" and lm.device.type == "cpu":
            training = probe.fastest_training(lm)
    if rollout == "auto":
        rollout = probe.fastest_rollout(lm, rows)
    return processes.gather(Precisions(training, rollout))[0]
