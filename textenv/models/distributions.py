"""Functions of logits that policies and environments share: log-probabilities, entropy and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

__all__ = ["divide_by_temperature", "draw", "entropy", "log_softmax", "token_log_prob"]


def divide_by_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return ``logits / temperature``, the same tensor where the temperature is 1."""
    return logits if temperature == 1.0 else logits / temperature


def log_softmax(logits: torch.Tensor, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return ``log softmax(logits / temperature)`` as a NumPy array, same shape."""
    scaled = divide_by_temperature(logits, temperature)
    return cast(NDArray[np.float32], torch.log_softmax(scaled, dim=-1).cpu().numpy())


class _TokenLogProb(torch.autograd.Function):
    """``log_softmax`` at one place of each row, with one pass over the vocabulary backwards instead of three."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Map ``(n, vocab_size)`` logits and ``(n,)`` tokens to log-probabilities, ``(n,)``."""
        log_probs = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(log_probs, tokens)
        return log_probs.gather(1, tokens[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradient of the logits: the one-hot token less the probabilities."""
        log_probs, tokens = ctx.saved_tensors
        logits_grad = log_probs.exp().mul_(-grad[:, None])
        return logits_grad.scatter_add_(1, tokens[:, None], grad[:, None]), None


token_log_prob: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _TokenLogProb.apply
"""``token_log_prob(logits, tokens)``: the log-probability in nats of one token a row, which can be differentiated once.

``logits`` is ``(n, vocab_size)``, ``tokens`` is ``(n,)``; the result is ``(n,)``.
"""


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropies in nats of ``(..., vocab_size)`` logits, some of which may be ``-inf``; shape ``(...)``."""
    log_probs = torch.log_softmax(logits, dim=-1)
    # Their terms become 1 * 0 before they are multiplied: a mask after it would still send 0 * inf backwards.
    log_probs = log_probs.masked_fill(logits == -torch.inf, 0.0)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def draw(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw from probabilities by the inverse of the distribution function.

    Args:
        probabilities: Shape ``(rows, vocab_size)``.
        uniform: Numbers from 0 to 1, shape ``(rows, 1)``.

    Returns:
        Token ids, shape ``(rows,)``.
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative.narrow(1, cumulative.shape[1] - 1, 1)
    uniform = uniform.clamp(max=1 - 2**-23)  # so that its product with the total stays below that, rounded
    return torch.searchsorted(cumulative, uniform * total, right=True).squeeze(1)
