"""Next-token prediction: batches of tokens with their labels, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

__all__ = ["IGNORED_LABEL", "TokenBatch", "mean_next_token_loss", "next_token_loss", "step_losses"]

IGNORED_LABEL = -100
"""The label of tokens that are no part of the loss."""


class TokenBatch(NamedTuple):
    """Token sequences to learn from, each of shape ``(batch, time)``.

    Attributes:
        inputs: Token ids, padded on the right.
        mask: 1 for tokens, 0 for padding.
        labels: The token that follows each, or ``IGNORED_LABEL``.
    """

    inputs: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


def next_token_loss(model: nn.Module, batch: TokenBatch, device: torch.device) -> torch.Tensor:
    """Return the mean cross-entropy of the labels of a batch in nats, one number."""
    inputs, mask, labels = (tensor.to(device) for tensor in batch)
    padding_mask = None if bool(mask.all()) else mask  # without padding the causal kernel needs no mask
    logits = model(input_ids=inputs, attention_mask=padding_mask, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)


@torch.no_grad()
def mean_next_token_loss(model: nn.Module, batches: Sequence[TokenBatch]) -> float:
    """Return the loss per label of all batches together, with dropout off."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    counts = [int((batch.labels != IGNORED_LABEL).sum()) for batch in batches]
    total = sum(
        float(next_token_loss(model, batch, device)) * count for batch, count in zip(batches, counts, strict=True)
    )
    model.train(training)
    return total / sum(counts)


def step_losses(model: nn.Module, batch_at: Callable[[int], TokenBatch]) -> Callable[[int], tuple[torch.Tensor, int]]:
    """Return what ``minimize`` asks for: the loss on the batch of a step, and its number of tokens."""

    def loss_at(step: int) -> tuple[torch.Tensor, int]:
        batch = batch_at(step)
        return next_token_loss(model, batch, next(model.parameters()).device), int(batch.mask.sum())

    return loss_at
