"""Writing with a watermark: a policy for our own decoding, and a logits processor for ``generate``."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from transformers import LogitsProcessor

from textenv.models.policy import TextPolicy
from textenv.models.watermark import Watermark
from textenv.types import IntArray, TextEnvError

__all__ = ["WatermarkLogits", "WatermarkedPolicy"]


class _Written:
    """Which tokens of each row's text were written by the one who asks, as opposed to read, found by what grows."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, IntArray]] = {}

    def of(self, row: int, text: IntArray) -> IntArray:
        """Return the tokens that were written in a row since a text that did not go on from the one before by a token.

        Args:
            row: Of the batch.
            text: Token ids, shape ``(time,)``.
        """
        start, before = self._rows.get(row, (-1, text[:0]))
        goes_on = start >= 0 and (np.array_equal(text[:-1], before) or np.array_equal(text, before))
        start = start if goes_on else len(text)
        self._rows[row] = (start, text.copy())
        return text[start:]


def _marked(watermark: Watermark, log_probs: torch.Tensor, written: list[IntArray]) -> torch.Tensor:
    """Return the log-probabilities to draw with, where those who have written enough are marked."""
    windows = [watermark.next_window(each.tolist()) for each in written]
    rows = [row for row, window in enumerate(windows) if window is not None]
    if not rows:
        return log_probs
    marked = watermark.mark(log_probs[rows], [window for window in windows if window is not None])
    return log_probs.index_copy(0, torch.tensor(rows, device=log_probs.device), marked)


class WatermarkedPolicy(TextPolicy):
    """A policy whose tokens carry a watermark. It shares its weights with another, and only writes.

    Its log pi is that of the distribution that it draws from, given the key: with ``gumbel`` it is 0 at marked tokens.

    Attributes:
        watermark: The watermark.
    """

    def __init__(self, policy: TextPolicy, watermark: Watermark) -> None:
        """Wrap a policy.

        Args:
            policy: What gives the distributions; one that draws from its language model as it is.
            watermark: What marks them.

        Raises:
            TextEnvError: The policy draws from something else than its language model says.
        """
        if type(policy) is not TextPolicy:
            raise TextEnvError(
                f"A {type(policy).__name__} cannot carry a watermark: expected a plain TextPolicy, which draws from "
                "its language model as it is."
            )
        super().__init__(policy.lm, value="none", temperature=policy.temperature, trainable=False)
        self.watermark = watermark
        self._written = _Written()

    def steer(self, logits: torch.Tensor, ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Return the marked log-probabilities, ``(n, vocab_size)``; see ``TextPolicy.steer``."""
        written = [
            self._written.of(int(row), text[:length]) for row, text, length in zip(rows, ids, lengths, strict=True)
        ]
        return _marked(self.watermark, torch.log_softmax(logits, dim=-1), written)

    def evaluate(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: what trains on tokens that a key has chosen has a wrong log pi.

        Raises:
            TextEnvError: Always.
        """
        raise TextEnvError(
            "A policy with a watermark is not trained: its tokens are chosen by the key, and log pi of the weights is "
            "not what drew them. Train without, and write with it afterwards (textenv sample --watermark)."
        )


class WatermarkLogits(LogitsProcessor):
    """A watermark for ``generate(do_sample=True, logits_processor=[...])`` of transformers.

    The watermark comes after temperature, top-k and top-p, and ``generate`` applies its own after this: give it
    ``temperature=1.0, top_k=0, top_p=1.0``, the temperature to this, and put transformers' ``TopKLogitsWarper`` or
    ``TopPLogitsWarper`` in front of it in the list. The key must not be in a configuration that is saved.
    """

    def __init__(self, watermark: Watermark, *, temperature: float = 1.0) -> None:
        """Make a processor, for any number of calls of ``generate`` one after the other.

        Args:
            watermark: The watermark.
            temperature: Divides the logits before.

        Raises:
            TextEnvError: The temperature is not above 0.
        """
        if not temperature > 0:
            raise TextEnvError(f"temperature={temperature!r}: expected a number above 0.")
        self._watermark, self._temperature = watermark, temperature
        self._written = _Written()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the marked log-probabilities, ``(batch, vocab_size)``.

        Args:
            input_ids: What was read and written so far, shape ``(batch, time)``.
            scores: Logits, ``(batch, vocab_size)``.
        """
        written = [self._written.of(row, text) for row, text in enumerate(input_ids.cpu().numpy())]
        return _marked(self._watermark, torch.log_softmax(scores / self._temperature, dim=-1), written)
