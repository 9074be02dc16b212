"""The cache of prefixes: keys and values of what each row saw last, so that only new tokens are computed."""

from __future__ import annotations

import contextlib
import warnings
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel

from textenv.models.forwards import additive_mask, agree, index_tensor, plain_hidden_states
from textenv.models.graphs import SCRATCH, Graphs, graphs_run_on
from textenv.models.key_values import KeyValues
from textenv.models.network import Network
from textenv.models.positions import attention_window
from textenv.models.transformers_cache import RaggedCache
from textenv.types import IntArray, TextEnvError

__all__ = ["PrefixCache"]

_ROWS_PER_GAP = 4  # a decoding step computes unneeded rows too, if there are at most one for so many that are needed
_SHARED = 0.5  # share of a text that another row must have read before it is copied: less is read as fast


class PrefixCache:
    """Keys and values of what each row saw last.

    Rows are ragged: each has its own length and is written at its own positions. Keys beyond a row's length are left
    over from another text and masked. Rows are stored in slots of the buffers, and those that are asked about are moved
    to the first slots, so that a batch that has lost some of its rows is still read in place; as long as few are lost,
    those in between are computed too. A row that begins with what another row has read, the prompt of a group of
    completions for example, copies its keys and values.

    Attributes:
        usable: Whether the cached path gives the numbers of the plain one; None before the first call, which finds out.
        graphed: Whether decoding steps are recorded as CUDA graphs; False before the first call.
    """

    def __init__(self, model: PreTrainedModel, network: Network | None = None) -> None:
        """Begin with an empty cache.

        Args:
            model: A causal language model.
            network: Its ``Network``; None where it runs through its own ``forward``.
        """
        self.usable: bool | None = None
        self.graphed = False
        self._model = model
        self._network = network
        self._keys_values = self._new_keys_values()
        self._graphs: Graphs | None = None
        self._ids: IntArray = np.zeros((0, 0), dtype=np.int64)  # (rows, capacity)
        self._lengths: IntArray = np.zeros(0, dtype=np.int64)  # of each row, how many tokens are cached
        self._slots: IntArray = np.zeros(0, dtype=np.int64)  # slot of each row
        self._owners: IntArray = np.zeros(0, dtype=np.int64)  # row in each slot
        self._counting: IntArray = np.zeros(0, dtype=np.int64)  # 0, 1, 2 ...
        self._counting_tensor = torch.zeros(0, dtype=torch.int64)  # the same on the model's device
        self._empty = True  # whether nothing was asked since all of it was forgotten
        self._warned_of_window = False
        self._window = attention_window(model.config.get_text_config())
        self._weight = next(p for p in model.parameters() if p.is_floating_point())  # for its device and data type
        self._placement = (self._weight.dtype, self._weight.device)

    def forget(self, rows: IntArray | None) -> None:
        """Empty ``rows``; with None all of it, so that what follows is computed as by a cache that is new.

        Which slots rows are in, and how large the buffers are, decides the shapes of forwards, and thereby their last
        bits.
        """
        if rows is None:
            self._lengths[:] = 0
            self._slots, self._owners = np.arange(len(self._ids)), np.arange(len(self._ids))
            self._empty = True
        else:
            self._lengths[rows[rows < len(self._lengths)]] = 0

    def release(self) -> None:
        """Forget all of it and free the buffers, unless recorded decoding steps read them."""
        self.forget(None)
        if not self.graphed:
            self._keys_values, self._ids = self._new_keys_values(), self._ids[:0, :0]
            self._lengths = self._lengths[:0]
            self._slots, self._owners = self._slots[:0], self._owners[:0]

    def drop_graphs(self) -> None:
        """Drop the recorded decoding steps, because weights are at other addresses; they are recorded again."""
        self._graphs = None

    def last_hidden(self, input_ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Return the hidden state at each row's last token.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, at least one, shape ``(batch,)``.
            rows: Which row of the cache each row continues, shape ``(batch,)``.

        Returns:
            Shape ``(batch, hidden_size)``.

        Raises:
            TextEnvError: A row is empty or longer than ``input_ids``, or ``rows`` names one twice.
        """
        _check_rows(input_ids, lengths, rows)
        if self._placement != (placement := (self._weight.dtype, self._weight.device)):
            self._keys_values, self._graphs, self._ids = self._new_keys_values(), None, self._ids[:0, :0]
            self._placement, self.usable = placement, None
        if self.usable is None:
            self._choose_path()
        if not self.usable or self._exceeds_window(int(lengths.max())):
            return self._uncached(input_ids, lengths)
        self._reserve(int(rows.max()) + 1, input_ids.shape[1])
        ids = input_ids[:, : self._ids.shape[1]]
        if (tokens := self._take_appended_tokens(ids, lengths, rows)) is not None:
            return self._decode(tokens, lengths, rows)
        width = ids.shape[1]
        differs = ids != self._ids[rows, :width]
        first = differs.argmax(axis=1)
        first[~differs[np.arange(len(rows)), first]] = width  # no difference: argmax of nothing but False is 0
        # The last token always runs: its hidden state is the answer.
        start = np.minimum(np.minimum(first, self._lengths[rows]), lengths - 1)
        start = self._copy_shared(ids, lengths, rows, start)
        self._ids[rows, :width] = ids
        self._lengths[rows] = start  # if the forward fails half-way, only that much is cached
        leaders = _find_leaders(ids, lengths, start)
        return self._run_by_kind(ids, lengths, rows, start, leaders)

    def _copy_shared(self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray) -> IntArray:
        """Copy the beginnings of texts from other rows that have read them; return what is cached of each row then."""
        start = start.copy()
        width, takers, givers = ids.shape[1], list[int](), list[int]()
        for place in np.flatnonzero(start < _SHARED * (lengths - 1)):
            same = self._ids[:, :width] == ids[place]
            shared = np.where(same.all(axis=1), width, same.argmin(axis=1))
            shared = np.minimum(np.minimum(shared, self._lengths), lengths[place] - 1)
            giver = int(shared.argmax())
            if shared[giver] >= _SHARED * (lengths[place] - 1):
                takers.append(int(place))
                givers.append(giver)
                start[place] = shared[giver]
        if takers:
            self._copy(np.array(givers), rows[takers], int(start[takers].max()))
        return start

    def _copy(self, givers: IntArray, takers: IntArray, length: int) -> None:
        """Copy keys and values up to a position from rows to other rows, ``(count,)`` each."""
        sources, targets = self._to_device(self._slots[givers]), self._to_device(self._slots[takers])
        self._keys_values.copy(sources, targets, length)

    def _take_appended_tokens(self, ids: IntArray, lengths: IntArray, rows: IntArray) -> IntArray | None:
        """Store and return the last tokens, ``(batch,)``, if every row is one token longer than before; else None.

        What follows in ``last_hidden`` finds that out too, with more bookkeeping; this is asked for every token.
        """
        last = lengths - 1
        if (self._lengths[rows] != last).any():
            return None
        known, batch = self._ids[rows, : ids.shape[1]], self._counting[: len(rows)]
        known[batch, last] = tokens = ids[batch, last]
        if (known != ids).any():
            return None
        self._ids[rows, last] = tokens
        return tokens

    def _run_by_kind(
        self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray, leaders: IntArray
    ) -> torch.Tensor:
        """Run rows with several new tokens, rows that begin, and rows with one new token, each kind by itself.

        Rows that begin with the same text as another, their leader, copy all but its last token when it has been read.
        """
        followers = np.flatnonzero(leaders != np.arange(len(leaders)))
        start = start.copy()
        start[followers] = lengths[followers] - 1
        kinds = np.where(lengths - start == 1, 0, np.where(start == 0, 1, 2))
        parts, results = [], []
        for kind in (2, 1, 0):
            part = np.flatnonzero(kinds == kind)
            if not len(part):
                continue
            parts.append(part)
            if kind == 0:
                if len(followers):
                    self._copy(rows[leaders[followers]], rows[followers], int(start[followers].max()))
                    self._lengths[rows[followers]] = start[followers]
                results.append(self._decode(ids[part, start[part]], lengths[part], rows[part]))
            else:
                results.append(self._read_tokens(ids[part], lengths[part], rows[part], start[part]))
        if len(parts) == 1:
            return results[0]
        return torch.cat(results)[self._to_device(np.argsort(np.concatenate(parts)))]

    def _decode(self, tokens: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Run the last token of each row, ``(batch,)``, all before it being cached; return ``(batch, hidden_size)``."""
        slots, positions = self._slots[rows], lengths - 1
        span = int(slots.max()) + 1
        if span > len(rows) + len(rows) // _ROWS_PER_GAP:
            slots, span = self._move_to_front(rows), len(rows)
        in_order = span == len(rows) and bool((slots == self._counting[:span]).all())
        if not in_order:  # slots of other rows in between write again what they hold
            owners = self._owners[:span]
            slot_positions = np.maximum(self._lengths[owners] - 1, 0)
            slot_tokens = self._ids[owners, slot_positions]
            slot_positions[slots], slot_tokens[slots] = positions, tokens
            positions, tokens = slot_positions, slot_tokens
        with torch.inference_mode(self._network is not None):  # in which torch calls every operation faster
            hidden = self._decoding_step(tokens, positions)
            if not in_order:
                hidden = hidden[self._to_device(slots)]
        self._lengths[rows] = lengths
        return hidden.clone()  # not an inference tensor

    def _decoding_step(self, tokens: IntArray, positions: IntArray) -> torch.Tensor:
        """Run one token in each of the first slots; tokens and positions are ``(slots,)``."""
        if self.graphed:
            if self._graphs is None:
                assert self._network is not None
                assert isinstance(self._keys_values, KeyValues)
                self._graphs = Graphs(self._network, self._keys_values, self._weight)
            return self._graphs.run(tokens, positions)
        keys, where = int(positions.max()) + 1, self._to_device(positions)[:, None]
        mask = None if int(positions.min()) == keys - 1 else self._causal_mask(where, keys)
        self._keys_values.prepare(self._counting_tensor[: len(tokens)], where, keys, mask, prefill=False)
        return self._compute(self._to_device(tokens)[:, None], where)

    def _read_tokens(self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray) -> torch.Tensor:
        """Run several tokens of each row, ``ids`` from ``start``: either all rows begin, or all are extended."""
        prefill, ends = not start.any(), lengths
        slots = self._slots[rows]
        restore: torch.Tensor | None = None
        if not prefill:
            slots = self._move_to_front(rows)
            # The slots are 0 .. n-1, so that they are also the indices that restore the order of the rows.
            restore, order = self._to_device(slots), np.argsort(slots)
            ids, ends, start, slots = ids[order], ends[order], start[order], slots[order]
        positions = np.minimum(start[:, None] + np.arange(int((ends - start).max())), ids.shape[1] - 1)
        block, where = self._to_device(np.take_along_axis(ids, positions, axis=1)), self._to_device(positions)
        keys = int(ends.max())
        last = self._to_device(np.arange(len(rows)) * positions.shape[1] + ends - start - 1)
        with torch.inference_mode(self._network is not None):
            mask = None if prefill else self._causal_mask(where, keys)
            self._keys_values.prepare(self._to_device(slots), where, keys, mask, prefill=prefill)
            hidden = self._compute(block, where, last)
            if restore is not None:
                hidden = hidden[restore]
        self._lengths[rows] = lengths
        return hidden.clone()

    def _compute(self, block: torch.Tensor, where: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Return hidden states ``(kept, hidden_size)`` of tokens ``(batch, new)``, for which the cache is prepared."""
        if isinstance(self._keys_values, RaggedCache):
            hidden = self._keys_values.run(self._model, block).flatten(0, 1)
            return hidden if keep is None else hidden[keep]
        assert self._network is not None
        return self._network.run(block, where, self._keys_values, keep=keep).flatten(0, -2)

    def _uncached(self, input_ids: IntArray, lengths: IntArray) -> torch.Tensor:
        device = self._weight.device
        width = int(lengths.max())
        sizes = index_tensor(lengths, device)
        output = plain_hidden_states(self._model, index_tensor(input_ids[:, :width], device), sizes)
        return output[torch.arange(len(lengths), device=device), sizes - 1]

    def _to_device(self, array: IntArray) -> torch.Tensor:
        """Return an array as a tensor on the model's device."""
        tensor = torch.from_numpy(array)
        counting = self._counting_tensor
        return tensor if counting.is_cpu else tensor.to(counting.device, non_blocking=True)

    def _causal_mask(self, where: torch.Tensor, keys: int) -> torch.Tensor:
        """Return what is added to the scores ``(rows, new, keys)``, so that no token attends to later ones.

        Args:
            where: Positions of the new tokens, ``(rows, new)``.
            keys: Number of keys that are read.
        """
        visible = torch.arange(keys, device=where.device)[None, None, :] <= where[:, :, None]
        return additive_mask(visible, self._weight.dtype)

    def _move_to_front(self, rows: IntArray) -> IntArray:
        """Move ``rows`` into the first slots, in whatever order; return the slot of each."""
        slots = self._slots[rows]
        outside = rows[slots >= len(rows)]
        if len(outside):
            free = np.setdiff1d(self._counting[: len(rows)], slots)
            owners = self._owners[free]
            one, other = self._to_device(free), self._to_device(self._slots[outside])
            self._keys_values.swap(one, other, int(self._lengths.max()))
            self._slots[owners], self._slots[outside] = self._slots[outside], free
            self._owners[self._slots] = self._counting[: len(self._slots)]
        return self._slots[rows]

    def _reserve(self, rows: int, width: int) -> None:
        """Make room for so many rows and tokens, keeping what is cached."""
        old_rows, old_width = self._ids.shape
        if self._empty and (rows, width) != (old_rows, old_width):  # of exactly this size, as in a new cache
            old_rows, old_width, self._keys_values = 0, 0, self._new_keys_values()
        self._empty = False
        if rows <= old_rows and width <= old_width:
            return
        ids = np.zeros((max(rows, old_rows), max(width, old_width)), dtype=np.int64)
        ids[:old_rows, :old_width] = self._ids[:old_rows, :old_width]
        lengths = np.zeros(len(ids), dtype=np.int64)
        lengths[:old_rows] = self._lengths[:old_rows]
        slots = np.arange(len(ids))
        slots[:old_rows] = self._slots[:old_rows]
        self._ids, self._lengths, self._slots = ids, lengths, slots
        self._counting = np.arange(max(ids.shape))
        self._owners = np.argsort(slots)
        self._counting_tensor = torch.arange(len(ids), device=self._weight.device)
        self._keys_values.resize(len(ids), ids.shape[1] + SCRATCH if self.graphed else ids.shape[1])
        self._graphs = None

    def _new_keys_values(self) -> KeyValues | RaggedCache:
        return RaggedCache() if self._network is None else KeyValues(*self._network.heads[:2])

    def _exceeds_window(self, length: int) -> bool:
        """Tell whether a text is longer than the window of some layers, which must not see the keys of all of it."""
        if self._window is None or length <= self._window:
            return False
        if not self._warned_of_window:
            self._warned_of_window = True
            self._warn_uncached(f"it attends to {self._window} tokens at a time, and a text has more")
        return True

    def _choose_path(self) -> None:
        """Choose the fastest path, with CUDA graphs, without, or uncached, that gives the numbers of the plain one."""
        with contextlib.nullcontext() if self._network is None else self._network.unrounded():
            self._choose_among_paths()

    def _choose_among_paths(self) -> None:
        self.graphed = self._network is not None and graphs_run_on(self._weight.device)
        fault = self._find_fault()
        if fault and self.graphed:
            warnings.warn(
                f"{type(self._model).__name__} writes without CUDA graphs ({fault}). The numbers are right; it is "
                "slower.",
                stacklevel=2,
            )
            self.graphed = False
            fault = self._find_fault()
        if fault:
            self._warn_uncached(fault)
        self.usable = not fault

    def _find_fault(self) -> str:
        """Return what is wrong with the cached path, ``""`` for nothing: an architecture may keep other state."""
        probe = PrefixCache(self._model, self._network)
        probe.usable, probe.graphed, probe._window = True, self.graphed, None
        vocab_size = int(cast(torch.Tensor, self._model.get_input_embeddings().weight).shape[0])
        ids = np.random.default_rng(0).integers(0, vocab_size, size=(2, 6))
        try:
            # A prompt each; a token each at different places; one is extended while the other begins again, then begins
            # with what the first has read.
            for step, lengths in enumerate(np.array([[3, 2], [4, 3], [6, 6], [6, 5]])):
                if step >= 2:
                    ids[0] = ids[0, ::-1].copy() if step == 2 else ids[1]
                cached = probe.last_hidden(ids, lengths, np.arange(2))
                if not agree(cached, self._uncached(ids, lengths), self._model.dtype):
                    return "with it, the numbers are different"
        except Exception as error:  # whatever goes wrong here, the architecture does not fit the cache
            return f"{type(error).__name__}: {error}"
        return ""

    def _warn_uncached(self, reason: str) -> None:
        warnings.warn(
            f"{type(self._model).__name__} runs without the prefix cache, re-reading the text for every token "
            f"({reason}). The numbers are right; it is slow.",
            stacklevel=2,
        )


def _find_leaders(ids: IntArray, lengths: IntArray, start: IntArray) -> IntArray:
    """Return for each row the first of those that begin with the same text, or itself, ``(batch,)``.

    Args:
        ids: Token ids, padded on the right, ``(batch, time)``.
        lengths: Of the texts, ``(batch,)``.
        start: What is cached of each, ``(batch,)``.
    """
    leaders, first = np.arange(len(ids)), dict[bytes, int]()
    for row in np.flatnonzero((start == 0) & (lengths > 1)):
        leaders[row] = first.setdefault(ids[row, : lengths[row]].tobytes(), int(row))
    return leaders


def _check_rows(input_ids: IntArray, lengths: IntArray, rows: IntArray) -> None:
    if len(lengths) == 0 or int(lengths.min()) < 1 or int(lengths.max()) > input_ids.shape[1]:
        raise TextEnvError(
            f"lengths={lengths.tolist()} for input_ids of shape {input_ids.shape}: expected at least one row, "
            f"each with 1 to {input_ids.shape[1]} tokens."
        )
    if len(rows) != len(lengths) or int(rows.min()) < 0 or len(set(rows.tolist())) < len(rows):
        raise TextEnvError(f"rows={rows.tolist()}: expected {len(lengths)} different numbers of at least 0.")
