"""Whole texts read together whose beginnings are the same: each beginning is read once, its keys and values serve all.

Completions of one prompt begin with that prompt, and texts in a chat template with its system prompt. Tokens attend to
the keys of their beginning as if it stood in their own row, so the hidden states are those of reading every text by
itself, up to the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from textenv.models.forwards import additive_mask, index_tensor
from textenv.models.key_values import KeyValues
from textenv.models.network import Network
from textenv.types import IntArray

__all__ = ["Beginnings", "find_beginnings", "read_behind"]

_LEAST = 0.2  # share of the tokens that sharing must save, to be worth an attention with a mask
_MIN_LENGTH = 8  # tokens of a beginning


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What texts begin with.

    Attributes:
        ids: Token ids of the beginnings, padded on the right, shape ``(beginnings, longest)``.
        lengths: Tokens of each, shape ``(beginnings,)``.
        of_rows: The number of each text's beginning, shape ``(batch,)``.
    """

    ids: IntArray
    lengths: IntArray
    of_rows: IntArray


def find_beginnings(ids: IntArray, lengths: IntArray, asked: IntArray) -> Beginnings | None:
    """Return beginnings that save a fifth of the tokens or more, or None.

    They are the texts before what is asked about, where several have the same; else what all texts begin with.

    Args:
        ids: Token ids, padded on the right, shape ``(batch, time)``.
        lengths: Tokens of each text, shape ``(batch,)``.
        asked: First token of each text whose hidden state is asked for, shape ``(batch,)``.
    """
    numbers: dict[bytes, int] = {}
    texts = [row[:end].tobytes() for row, end in zip(ids, asked, strict=True)]
    of_rows = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    first = np.unique(of_rows, return_index=True)[1]
    each = Beginnings(ids[first, : int(asked.max())], asked[first], of_rows)
    differs = (ids != ids[0]).any(axis=0)
    common = min(int(asked.min()), int(differs.argmax()) if differs.any() else ids.shape[1])
    one = Beginnings(ids[:1, :common], np.array([common]), np.zeros(len(ids), dtype=np.int64))
    best = max((each, one), key=_saved)
    return best if int(best.lengths.min()) >= _MIN_LENGTH and _saved(best) >= _LEAST * int(lengths.sum()) else None


def _saved(beginnings: Beginnings) -> int:
    return int(beginnings.lengths[beginnings.of_rows].sum() - beginnings.lengths.sum())


def read_behind(
    network: Network,
    beginnings: Beginnings,
    ids: IntArray,
    lengths: IntArray,
    keep: IntArray,
    *,
    at_once: int,
    device: torch.device,
) -> torch.Tensor:
    """Return the hidden states of some tokens behind the beginnings, without gradients, shape ``(kept, hidden_size)``.

    Args:
        network: The model.
        beginnings: What the texts begin with.
        ids: The texts, padded on the right, shape ``(batch, time)``.
        lengths: Tokens of each, shape ``(batch,)``.
        keep: Places in ``ids.flatten()`` of the tokens asked about, in order, shape ``(kept,)``.
        at_once: Tokens of a forward, padding included.
        device: Where the model is.
    """
    starts = beginnings.lengths[beginnings.of_rows]
    rows, places = np.divmod(keep, ids.shape[1])
    found, answered = list[torch.Tensor](), list[IntArray]()
    count, longest = beginnings.ids.shape
    for some in _parts(np.arange(count), longest, at_once):  # keys and values of a few at a time are in memory
        begun = _Recorder(network.heads, longest)
        network.run(index_tensor(beginnings.ids[some], device), keys_values=begun)
        behind = np.flatnonzero(np.isin(beginnings.of_rows, some))
        for part in _parts(behind, int((lengths - starts).max()), at_once):
            new = int((lengths[part] - starts[part]).max())
            # Padding reads the last column again; nothing looks at what comes of it.
            positions = np.minimum(starts[part, None] + np.arange(new), ids.shape[1] - 1)
            mine = np.flatnonzero(np.isin(rows, part))
            wanted = np.searchsorted(part, rows[mine]) * new + places[mine] - starts[rows[mine]]
            tokens = np.take_along_axis(ids[part], positions, axis=1)
            block, where, keep_here, of_rows, start = (
                index_tensor(array, device)
                for array in (tokens, positions, wanted, beginnings.of_rows[part] - some[0], starts[part])
            )
            seen = _Behind(network.heads, begun, of_rows, start, new, size=(len(block), ids.shape[1]))
            found.append(network.run(block, where, seen, keep=keep_here))
            answered.append(mine)
    return torch.cat(found)[index_tensor(np.argsort(np.concatenate(answered)), device)]


def _parts(rows: IntArray, width: int, at_once: int) -> Iterator[IntArray]:
    step = max(1, at_once // width)
    return (rows[begin : begin + step] for begin in range(0, len(rows), step))


class _Recorder(KeyValues):
    """Keeps the keys and values of texts of the same length from their first token on.

    Attributes:
        tokens: Tokens of each text.
        layers: What each layer has computed, ``(2, texts, kv_heads, tokens, head_size)``.
    """

    def __init__(self, heads: tuple[int, int, int], tokens: int) -> None:
        super().__init__(*heads[:2])
        self.prefill, self.size, self.tokens = True, (0, tokens), tokens
        self.layers: list[torch.Tensor] = []

    def write(self, layer: int, qkv: torch.Tensor) -> None:
        """Keep what a layer has computed."""
        self.layers.append(_keys_and_values(qkv, self.tokens, self._heads))


class _Behind(KeyValues):
    """Has new tokens attend to those of their beginning, and to one another."""

    def __init__(
        self,
        heads: tuple[int, int, int],
        begun: _Recorder,
        of_rows: torch.Tensor,
        starts: torch.Tensor,
        new: int,
        *,
        size: tuple[int, int],
    ) -> None:
        super().__init__(*heads[:2])
        self.size, self.length = size, begun.tokens + new
        self._begun, self._of_rows, self._new = begun, of_rows, new
        self._now: torch.Tensor | None = None
        device = starts.device
        before = torch.arange(begun.tokens, device=device) < starts[:, None, None]
        among = torch.ones(new, new, dtype=torch.bool, device=device).tril()
        visible = torch.cat((before.expand(-1, new, -1), among.expand(len(starts), -1, -1)), dim=2)
        self.mask = additive_mask(visible, begun.layers[0].dtype)

    def write(self, layer: int, qkv: torch.Tensor) -> None:
        """Take the keys and values of the new tokens."""
        self._now = _keys_and_values(qkv, self._new, self._heads)

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and the values to attend to, each ``(batch * kv_heads, length, head_size)``."""
        assert self._now is not None
        keys, values = torch.cat((self._begun.layers[layer][:, self._of_rows], self._now), dim=3).flatten(1, 2).unbind()
        return keys, values


def _keys_and_values(qkv: torch.Tensor, tokens: int, heads: tuple[int, int]) -> torch.Tensor:
    """Return keys and values ``(2, texts, kv_heads, tokens, head_size)`` of ``(texts * tokens, heads, head_size)``."""
    kv = qkv[:, heads[0] :].view(-1, tokens, 2, heads[1], qkv.shape[2])
    return kv.permute(2, 0, 3, 1, 4)
