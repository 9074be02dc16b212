"""The optimizer of an agent's policy: its parameters in groups by learning rate, and the schedule of the rates."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import torch

from textenv.agents.config import MAY_CHANGE
from textenv.data.files import to_json

if TYPE_CHECKING:
    from textenv.agents.config import AgentConfig
    from textenv.models.policy import TextPolicy

__all__ = ["make_optimizer", "rate_share", "resolved_settings"]

_AUTO = {"embedding_learning_rate": 8.0, "value_learning_rate": 30.0}
"""What ``"auto"`` stands for, as multiples of ``learning_rate``."""


def resolved_settings(config: AgentConfig) -> dict[str, Any]:
    """Return settings as JSON values, a learning rate that is ``"auto"`` as the number that it stands for.

    What a run may go on with otherwise is left out (``MAY_CHANGE``).
    """
    settings = json.loads(to_json(dataclasses.asdict(config)))
    settings = {name: value for name, value in settings.items() if name not in MAY_CHANGE}
    rates = {name: multiple * config.learning_rate for name, multiple in _AUTO.items()}
    return {name: rates[name] if value == "auto" and name in rates else value for name, value in settings.items()}


def make_optimizer(policy: TextPolicy, config: AgentConfig) -> torch.optim.Optimizer:
    """Return Adam over what a policy learns, with learning rates of their own for embeddings and value head.

    Each parameter group keeps its rate at the peak of the schedule under ``"peak"``.
    """
    peaks: dict[Any, float] = dict.fromkeys(policy.learned.parameters(), config.learning_rate)
    rates = resolved_settings(config)
    embedding_rate: float | None = rates["embedding_learning_rate"]
    if embedding_rate is not None:
        for module in (policy.model.get_input_embeddings(), policy.model.get_output_embeddings()):
            if module is not None and config.lora_rank is None:
                peaks |= dict.fromkeys(module.parameters(), embedding_rate)
    if policy.value_head is not None:  # agents with one have a rate for it
        value_rate: float = rates["value_learning_rate"]
        peaks |= dict.fromkeys(policy.value_head.parameters(), value_rate)
    groups = [{"params": [p for p in peaks if peaks[p] == peak], "peak": peak} for peak in sorted(set(peaks.values()))]
    return torch.optim.AdamW(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=True)


def rate_share(config: AgentConfig, before: float, after: float) -> float:
    """Return the learning rate of an iteration, as a share of its peak.

    Args:
        config: Schedule and warmup.
        before: Share of all steps that were done before the iteration, from 0 to 1.
        after: The same after it.
    """
    warm = min(1.0, after / config.lr_warmup) if config.lr_warmup else 1.0
    falls = {"constant": 1.0, "linear": 1 - before, "cosine": 0.5 * (1 + math.cos(math.pi * before))}
    return warm * falls[config.lr_schedule]
