"""The episodes of an iteration as minibatches, and these as parts that are computed at a time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from textenv.types import IntArray

if TYPE_CHECKING:
    from textenv.models.causal_lm import CausalLM
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
    from textenv.rollouts.distributed import Processes

__all__ = ["Batch", "Loss", "minibatch_rows", "room_for_tokens", "split_by_length", "split_minibatch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some episodes of a minibatch, as a loss gets them.

    Attributes:
        columns: What ``Agent.optimize`` was given, and ``log_probs`` of the tokens when they were drawn, at every token
            written, packed row by row, each of shape ``(tokens,)``.
        mask: True at tokens written, ``(episodes, time)``.
        tokens: Number of tokens of the whole minibatch, of which this may be a part.
        episodes: Number of its episodes.
    """

    columns: Mapping[str, torch.Tensor]
    mask: torch.Tensor
    tokens: int
    episodes: int

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.columns[name]

    def padded(self, packed: torch.Tensor) -> torch.Tensor:
        """Return packed values as ``(episodes, time)``, with 0 where no token was written."""
        return torch.zeros(self.mask.shape, dtype=packed.dtype, device=packed.device).masked_scatter(self.mask, packed)


Loss = Callable[["Evaluation", Batch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
"""A loss and metrics of some episodes, each already divided by the minibatch's number of tokens, or of episodes."""


def minibatch_rows(
    episodes: int, size: int | None, *, epochs: int, group: int, generator: torch.Generator, processes: Processes
) -> Iterator[torch.Tensor]:
    """Yield the rows of each minibatch, those of a group one after the other.

    Args:
        episodes: Number of episodes.
        size: Episodes of a minibatch; None for all.
        epochs: Passes over the episodes, each in another order.
        group: Number of consecutive rows that stay together.
        generator: Draws the orders.
        processes: The processes that share each minibatch.

    Raises:
        TextEnvError: A minibatch cannot be shared out among the processes.
    """
    for _ in range(epochs):
        order = torch.randperm(episodes // group, generator=generator)
        for groups in torch.split(order, max(1, (size or episodes) // group)):
            processes.share("groups of an update" if group > 1 else "episodes of an update", len(groups))
            yield (groups[:, None] * group + torch.arange(group)).flatten()


def split_minibatch(
    rows: torch.Tensor, rollout: Rollout, *, group: int, size: int | None, lm: CausalLM, processes: Processes
) -> Sequence[torch.Tensor]:
    """Return this process's share of a minibatch, in the parts that are computed at a time.

    Args:
        rows: Of the minibatch.
        rollout: The episodes of all processes.
        group: Number of consecutive rows that stay together.
        size: Episodes of a part; None for as many as suit the model's device.
        lm: The model that computes.
        processes: The processes that share the minibatch.
    """
    groups = rows.view(-1, group)[processes.rank :: processes.size]
    longest = rollout.longest[groups.numpy()].max(axis=1)
    if size is None and processes.size == 1:
        written = rollout.mask.sum(axis=1)[groups.numpy()].sum(axis=1)
        parts = split_by_length(longest, written, room_for_tokens(lm), most=room_for_texts(lm) // group)
    else:  # several processes make the same number of passes
        order = torch.from_numpy(np.argsort(-longest, kind="stable"))
        parts = torch.split(order, len(order) if size is None else max(1, size // group))
    return [groups[part].flatten() for part in parts]


_ROWS = 8  # fewer are not worth a pass of their own
_SHORTER = 0.75  # a row shorter than this share of the longest is left to the next pass
_LOGITS_CPU, _LOGITS_GPU = 2**20, 2**28  # logits of a pass: what a CPU's caches hold, what keeps a GPU busy

_ACTIVATIONS_CPU = 2**28  # bytes of activations that a pass keeps for its way back on a CPU, or, of a large model,
_OF_WEIGHTS = 0.5  # this share of what its weights take, so that each pass has enough to do with them


def room_for_tokens(lm: CausalLM) -> int:
    """Return of how many tokens a model computes logits at a time, so that they suit its device."""
    return (_LOGITS_CPU if lm.device.type == "cpu" else _LOGITS_GPU) // lm.vocab_size


def room_for_texts(lm: CausalLM) -> int:
    """Return of how many tokens a model keeps activations for a backward pass at a time, padding included."""
    if lm.device.type != "cpu":
        return sys.maxsize
    weights = sum(parameter.nbytes for parameter in lm.model.parameters())
    return max(_ACTIVATIONS_CPU, int(_OF_WEIGHTS * weights)) // lm.activation_bytes


def split_by_length(
    lengths: IntArray, written: IntArray, room: int, *, most: int = sys.maxsize
) -> Sequence[torch.Tensor]:
    """Split rows into what is computed at a time: of about the same length, with ``room`` for tokens written.

    Args:
        lengths: Tokens of each row, shape ``(rows,)``.
        written: Those that the agent wrote, likewise.
        room: Tokens written of a part, at most, unless it is the smallest.
        most: Tokens of a part with padding, at most, unless it is a single row.

    Returns:
        Row numbers of each part, the longest rows first.
    """
    ordered = np.argsort(-lengths, kind="stable")
    sizes, written = lengths[ordered], written[ordered]
    ends = [0]
    for place in range(1, len(sizes)):
        rows, longest = place - ends[-1], sizes[ends[-1]]
        full = written[ends[-1] : place + 1].sum() > room
        if (rows >= _ROWS and (full or sizes[place] <= _SHORTER * longest)) or (rows + 1) * longest > most:
            ends.append(place)
    return [torch.from_numpy(ordered[begin:end]) for begin, end in itertools.pairwise([*ends, len(sizes)])]
