"""Episodes as arrays, one a row, while they are written and until they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textenv.types import IntArray, Observation, Prompt, StopReason

__all__ = ["EpisodeBatch"]


@dataclass(slots=True, eq=False)
class EpisodeBatch:
    """``n`` episodes that are being written, or that have ended and are not scored yet.

    It is the form in which a step changes all rows at once; an ``Episode`` is made of a row when it is scored.

    Attributes:
        ids: Token ids of prompts and completions, padded on the right, shape ``(n, width)``.
        mask: 1 at tokens, 0 at padding, likewise.
        starts: Number of tokens of each prompt, shape ``(n,)``.
        lengths: Number of tokens of each prompt and completion, shape ``(n,)``.
        kl_coefs: Weight of the KL penalty, beta, as it was when each episode began, shape ``(n,)``.
        log_probs: log pi of the completions' tokens in nats, shape ``(n, max_new_tokens)``; 0 where none is written.
        ref_log_probs: The same of the reference, where it has read them.
        kl: KL of each token in nats, likewise.
        prompts: The ``n`` prompts.
        reasons: Why each has ended; None for one that goes on.
    """

    ids: IntArray
    mask: NDArray[np.int8]
    starts: IntArray
    lengths: IntArray
    kl_coefs: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    ref_log_probs: NDArray[np.float64]
    kl: NDArray[np.float64]
    prompts: list[Prompt]
    reasons: list[StopReason | None]

    @classmethod
    def empty(cls, n: int, *, width: int, max_new_tokens: int, pad_id: int, prompt: Prompt) -> EpisodeBatch:
        """Return rows in which nothing has begun; ``prompt`` stands in for theirs."""
        log_probs, ref_log_probs, kl = (np.zeros((n, max_new_tokens)) for _ in range(3))
        return cls(
            ids=np.full((n, width), pad_id, dtype=np.int64),
            mask=np.zeros((n, width), dtype=np.int8),
            starts=np.zeros(n, dtype=np.int64),
            lengths=np.zeros(n, dtype=np.int64),
            kl_coefs=np.zeros(n),
            log_probs=log_probs,
            ref_log_probs=ref_log_probs,
            kl=kl,
            prompts=[prompt] * n,
            reasons=[None] * n,
        )

    def begin(self, rows: IntArray, prompts: Sequence[Prompt], *, kl_coef: float, pad_id: int) -> None:
        """Begin episodes in some rows, each with its prompt alone."""
        self.ids[rows] = pad_id
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            self.prompts[row], self.reasons[row] = prompt, None
            self.starts[row] = size = len(prompt.ids)
            self.ids[row, :size] = prompt.ids
        self.lengths[rows] = self.starts[rows]
        self.mask[rows] = np.arange(self.mask.shape[1]) < self.starts[rows][:, None]
        self.kl_coefs[rows] = kl_coef
        for array in (self.log_probs, self.ref_log_probs, self.kl):
            array[rows] = 0.0

    def append(self, rows: IntArray, tokens: IntArray) -> None:
        """Append a token to each of some rows."""
        lengths = self.lengths[rows]
        self.ids[rows, lengths] = tokens
        self.mask[rows, lengths] = 1
        self.lengths[rows] = lengths + 1

    def select(self, rows: IntArray) -> EpisodeBatch:
        """Return a copy of some rows, in their order."""
        places = rows.tolist()
        return EpisodeBatch(
            ids=self.ids[rows],
            mask=self.mask[rows],
            starts=self.starts[rows],
            lengths=self.lengths[rows],
            kl_coefs=self.kl_coefs[rows],
            log_probs=self.log_probs[rows],
            ref_log_probs=self.ref_log_probs[rows],
            kl=self.kl[rows],
            prompts=[self.prompts[row] for row in places],
            reasons=[self.reasons[row] for row in places],
        )

    @staticmethod
    def concatenate(parts: Sequence[EpisodeBatch]) -> EpisodeBatch:
        """Return the rows of several batches as one."""
        return EpisodeBatch(
            ids=np.concatenate([part.ids for part in parts]),
            mask=np.concatenate([part.mask for part in parts]),
            starts=np.concatenate([part.starts for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            kl_coefs=np.concatenate([part.kl_coefs for part in parts]),
            log_probs=np.concatenate([part.log_probs for part in parts]),
            ref_log_probs=np.concatenate([part.ref_log_probs for part in parts]),
            kl=np.concatenate([part.kl for part in parts]),
            prompts=[prompt for part in parts for prompt in part.prompts],
            reasons=[reason for part in parts for reason in part.reasons],
        )

    @property
    def sizes(self) -> IntArray:
        """Number of tokens of each completion, shape ``(n,)``."""
        sizes: IntArray = self.lengths - self.starts
        return sizes

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which places of the completions hold a token, shape ``(n, max_new_tokens)``."""
        written: NDArray[np.bool_] = np.arange(self.kl.shape[1]) < self.sizes[:, None]
        return written

    def completion_ids(self, row: int) -> list[int]:
        """Return the token ids of a row's completion."""
        ids: list[int] = self.ids[row, self.starts[row] : self.lengths[row]].tolist()
        return ids

    def observation(self) -> Observation:
        """Return all rows as an observation, which shares no memory with them."""
        return {"input_ids": self.ids.copy(), "attention_mask": self.mask.copy()}
