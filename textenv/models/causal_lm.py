"""A causal language model as a pure function of token ids, made fast by a cache of prefixes.

``CausalLM.next_token_logits(input_ids, lengths)`` gives the same answer whatever was asked before; that it keeps the
keys and values of what each row saw last only makes it quick. So any caller that asks about the observation of an
environment gets cached decoding, and nothing in a protocol can go out of step with the cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache

from textenv.types import IntArray, TextEnvError

__all__ = ["BUNDLED", "CausalLM", "bundled_folder"]

BUNDLED = "bundled"
"""The name of the model that ships with textenv."""


def bundled_folder() -> Path:
    """Return the folder of the bundled model, in Hugging Face format."""
    return Path(str(resources.files("textenv.models") / "bundled"))


class CausalLM:
    """A Hugging Face causal language model, its tokenizer, and a cache of the prefixes it saw last.

    Attributes:
        model: The network, in evaluation mode: dropout is off wherever its log-probabilities are compared.
        tokenizer: Its tokenizer.
        vocab_size: Width of its logits; can exceed the tokenizer's vocabulary.
        eos_ids: Token ids that end a text.
        pad_id: Token id that fills up rows. It may be an end-of-sequence token: masks come from lengths.
        max_positions: Longest sequence the model takes, or None where it has no limit.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Wrap a loaded model.

        Args:
            model: A causal language model.
            tokenizer: The tokenizer it was trained with.

        Raises:
            TextEnvError: There is no end-of-sequence token.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise TextEnvError(f"{type(model).__name__} has no language-model head; expected a causal language model.")
        self.vocab_size = int(cast(torch.Tensor, head.weight).shape[0])
        self.eos_ids = _eos_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = int(self.eos_ids[0] if pad is None else pad)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_positions = None if limit is None else int(limit)
        self._cache = _PrefixCache(model)
        self._token_texts: dict[int, str] = {}

    @classmethod
    def from_pretrained(
        cls, name: str | Path = BUNDLED, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> CausalLM:
        """Load a model and its tokenizer.

        Args:
            name: ``"bundled"``, a folder in Hugging Face format, or a Hugging Face id.
            device: Where it runs.
            dtype: Data type of its weights.

        Raises:
            TextEnvError: The folder or id cannot be loaded; the message repeats the reason.
        """
        source = str(bundled_folder()) if str(name) == BUNDLED else str(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise TextEnvError(
                f"model={str(name)!r} could not be loaded: {error}\nExpected 'bundled', a folder with config.json, "
                "safetensors weights and a tokenizer, or the id of such a model on the Hugging Face hub."
            ) from error
        return cls(model.to(device), tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(cast(torch.Tensor, self.model.get_input_embeddings().weight).shape[1])

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a prompt, as the tokenizer starts a text; never empty.

        An end-of-sequence token that the tokenizer appends is dropped, since the text goes on.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return ``encode`` of each text, in one call of the tokenizer."""
        encoded = []
        for ids in self.tokenizer(list(texts))["input_ids"] if texts else ():
            tokens = list(ids)
            if len(tokens) > 1 and tokens[-1] in self.eos_ids:
                tokens.pop()
            encoded.append(tuple(tokens or [self._start_id]))
        return encoded

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of token ids, special tokens and ids beyond the tokenizer's vocabulary left out."""
        size = len(self.tokenizer)
        return str(self.tokenizer.decode([int(i) for i in ids if i < size], skip_special_tokens=True))

    def token_texts(self, ids: Sequence[int] | IntArray) -> tuple[str, ...]:
        """Return the text of each token by itself, for display; special tokens are shown by name."""
        for new in {int(i) for i in ids} - self._token_texts.keys():
            known = new < len(self.tokenizer)
            self._token_texts[new] = str(self.tokenizer.decode([new])) if known else f"<{new}>"
        return tuple(self._token_texts[int(i)] for i in ids)

    @torch.no_grad()
    def next_token_logits(
        self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None
    ) -> torch.Tensor:
        """Return the logits of the token that follows each row.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, at least one, shape ``(batch,)``.
            rows: Which row of the cache each row continues, shape ``(batch,)``; by default the row of the same
                number. A matter of speed alone.

        Returns:
            Logits in float32, shape ``(batch, vocab_size)``.
        """
        return self.head(self.last_hidden(input_ids, lengths, rows=rows))

    @torch.no_grad()
    def last_hidden(self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None) -> torch.Tensor:
        """Return the hidden states that ``next_token_logits`` reads, shape ``(batch, hidden_size)``; same arguments."""
        return self._cache.last_hidden(input_ids, lengths, np.arange(len(lengths)) if rows is None else rows)

    def forget(self, rows: IntArray | None = None) -> None:
        """Empty the cache of ``rows``, or all of it.

        Changed weights are noticed by themselves; what this is for is to make the numbers of a run, down to the last
        bit, independent of what was asked before.
        """
        self._cache.forget(rows)

    def hidden_states(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of whole sequences, without the cache and with gradients.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, shape ``(batch,)``.

        Returns:
            Hidden states, shape ``(batch, time, hidden_size)``; those of padding have no meaning.
        """
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = (steps[None, :] < lengths[:, None]).long()
        return _trunk(self.model)(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state

    @torch.no_grad()
    def token_log_probs(self, input_ids: IntArray, lengths: IntArray, temperature: float = 1.0) -> NDArray[np.float32]:
        """Return the log-probability of every token given those before it, in one forward.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, shape ``(batch,)``.
            temperature: Divides the logits.

        Returns:
            In nats, shape ``(batch, time - 1)``: entry ``t`` is that of token ``t + 1``; 0 at padding.
        """
        ids = torch.from_numpy(input_ids).to(self.device)
        sizes = torch.from_numpy(lengths).to(self.device)
        hidden = self.hidden_states(ids, sizes)[:, :-1]
        real = torch.arange(1, ids.shape[1], device=self.device)[None, :] < sizes[:, None]
        targets = ids[:, 1:][real]  # packed: padding costs no logits
        log_probs = torch.log_softmax(self.head(hidden[real]) / temperature, dim=-1)
        result = torch.zeros(real.shape, device=self.device)
        result[real] = log_probs.gather(1, targets[:, None])[:, 0]
        return cast(NDArray[np.float32], result.cpu().numpy())

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits that hidden states lead to, in float32, shape ``(..., vocab_size)``."""
        logits = cast(nn.Module, self.model.get_output_embeddings())(hidden).float()
        config = self.model.config.get_text_config()
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        return logits

    @property
    def _start_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(self.eos_ids[0] if bos is None else bos)


def _trunk(model: PreTrainedModel) -> nn.Module:
    return cast(nn.Module, model.base_model)


def _eos_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    found: list[int] = []
    for value in (tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)):
        found += [value] if isinstance(value, int) else value or []
    if not found:
        raise TextEnvError(
            f"{type(model).__name__} ({model.config.name_or_path!r}) and its tokenizer name no end-of-sequence token, "
            "so no episode could end by itself; set tokenizer.eos_token."
        )
    return tuple(dict.fromkeys(int(i) for i in found))


class _PrefixCache:
    """Keys and values of what each row saw last, in buffers ``(rows, heads, capacity, head_size)`` a layer.

    Rows are ragged: each has its own length and is written at its own positions. Keys beyond a row's length are left
    over from something else and masked.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._ids: IntArray = np.zeros((0, 0), dtype=np.int64)  # (rows, capacity)
        self._lengths: IntArray = np.zeros(0, dtype=np.int64)
        self._cache = _RaggedCache()
        self._weights: object = None
        self._usable: bool | None = None  # not known before the first call

    def forget(self, rows: IntArray | None) -> None:
        if rows is None:
            self._lengths[:] = 0
        else:
            self._lengths[rows[rows < len(self._lengths)]] = 0

    def last_hidden(self, input_ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Return the hidden state at each row's last token, ``(batch, hidden_size)``."""
        if len(lengths) == 0 or int(lengths.min()) < 1 or int(lengths.max()) > input_ids.shape[1]:
            raise TextEnvError(
                f"lengths={lengths.tolist()} for input_ids of shape {input_ids.shape}: expected at least one row, "
                f"each with 1 to {input_ids.shape[1]} tokens."
            )
        if self._usable is None:
            self._usable = self._check()
        if not self._usable:
            return self._uncached(input_ids, lengths)
        weights = _fingerprint(self._model)
        if weights != self._weights:
            self._weights = weights
            self.forget(None)
        self._grow(int(rows.max()) + 1, input_ids.shape[1])
        ids = input_ids[:, : self._ids.shape[1]]
        width = ids.shape[1]
        known = self._ids[rows, :width]
        positions = np.arange(width)
        same = (ids == known) & (positions < np.minimum(self._lengths[rows], lengths)[:, None])
        shared = np.where(same.all(axis=1), width, same.argmin(axis=1))
        start = np.minimum(shared, lengths - 1)  # the last token always runs: its hidden state is the answer
        new = lengths - start
        self._ids[rows, :width] = ids
        self._lengths[rows] = lengths
        if bool((new == new[0]).all()):
            return self._run(ids, lengths, rows, start)
        single = np.flatnonzero(new == 1)  # rows that go on by a token, apart from those that start afresh
        several = np.flatnonzero(new > 1)
        hidden: torch.Tensor | None = None
        for part in (single, several):
            if len(part):
                result = self._run(ids[part], lengths[part], rows[part], start[part])
                hidden = result.new_empty(len(rows), result.shape[-1]) if hidden is None else hidden
                hidden[torch.from_numpy(part)] = result
        assert hidden is not None
        return hidden

    def _run(self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray) -> torch.Tensor:
        device = self._model.device
        span = int((lengths - start).max())
        positions = np.minimum(start[:, None] + np.arange(span), ids.shape[1] - 1)
        block = torch.from_numpy(np.take_along_axis(ids, positions, axis=1)).to(device)
        where = torch.from_numpy(positions).to(device)
        keys = int(positions.max()) + 1
        everything = len(rows) == len(self._lengths) and bool((rows == np.arange(len(rows))).all())
        self._cache.aim(None if everything else torch.from_numpy(rows).to(device), where, keys)
        visible = torch.arange(keys, device=device)[None, None, :] <= where[:, :, None]
        mask = visible[:, None]
        if self._model.config._attn_implementation == "eager":
            lowest = torch.finfo(self._model.dtype).min
            mask = torch.zeros_like(mask, dtype=self._model.dtype).masked_fill(~mask, lowest)
        output = _trunk(self._model)(
            input_ids=block, attention_mask=mask, position_ids=where, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        last = torch.from_numpy(lengths - start - 1).to(device)
        return output[torch.arange(len(rows), device=device), last]

    def _uncached(self, input_ids: IntArray, lengths: IntArray) -> torch.Tensor:
        device = self._model.device
        width = int(lengths.max())
        mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64)).to(device)
        ids = torch.from_numpy(np.ascontiguousarray(input_ids[:, :width])).to(device)
        output = _trunk(self._model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return output[torch.arange(len(lengths), device=device), torch.from_numpy(lengths - 1).to(device)]

    def _grow(self, rows: int, width: int) -> None:
        have_rows, have_width = self._ids.shape
        if rows <= have_rows and width <= have_width:
            return
        ids = np.zeros((max(rows, have_rows), max(width, have_width)), dtype=np.int64)
        ids[:have_rows, :have_width] = self._ids
        lengths = np.zeros(len(ids), dtype=np.int64)
        lengths[:have_rows] = self._lengths
        self._ids, self._lengths = ids, lengths
        self._cache.resize(*ids.shape)

    def _check(self) -> bool:
        """Try the cached path against the plain one: an architecture may keep its state in another way."""
        config = self._model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        try:
            if window is not None and getattr(config, "use_sliding_window", True):
                raise TextEnvError("it attends within a sliding window")
            probe = _PrefixCache(self._model)
            probe._usable = True
            rng = np.random.default_rng(0)
            ids = rng.integers(0, self._model.get_input_embeddings().weight.shape[0], size=(2, 6))  # type: ignore
            rows = np.arange(2)
            for lengths in (np.array([3, 2]), np.array([4, 5]), np.array([5, 6])):
                cached, plain = probe.last_hidden(ids, lengths, rows), self._uncached(ids, lengths)
            tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.1
            worst = float((cached - plain).abs().max() / plain.abs().max())
            if worst > tolerance:
                raise TextEnvError(f"the cached path differs from the plain one by {worst:.1e}")
        except (TextEnvError, TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
            warnings.warn(
                f"{type(self._model).__name__} runs without the prefix cache, re-reading the text for every token: "
                f"{error}. The numbers are right; it is slow.",
                stacklevel=4,
            )
            return False
        return True


class _RaggedCache(Cache):
    """What the attention layers of transformers write to and read from, row by row at positions of their own."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._size = (0, 0)
        self._rows: torch.Tensor | None = None
        self._where = torch.zeros(0)
        self._length = 0

    def aim(self, rows: torch.Tensor | None, where: torch.Tensor, length: int) -> None:
        """Say which rows (None for all) the next forward writes, at which positions, and how many keys it reads."""
        self._rows, self._where, self._length = rows, where, length

    def resize(self, rows: int, capacity: int) -> None:
        """Enlarge the buffers, keeping what they hold."""
        self._size = (rows, capacity)
        for buffers in (self._keys, self._values):
            for index, old in enumerate(buffers):
                buffers[index] = self._buffer(old)
                buffers[index][: old.shape[0], :, : old.shape[2]] = old

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values ``(batch, heads, new, head_size)``; return those of the rows from their start."""
        while len(self._keys) <= layer_idx:
            self._keys.append(self._buffer(key_states))
            self._values.append(self._buffer(value_states))
        result = []
        for buffer, states in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            rows = torch.arange(len(states), device=states.device) if self._rows is None else self._rows
            buffer[rows[:, None], :, self._where] = states.transpose(1, 2)
            held = buffer[:, :, : self._length]
            result.append(held if self._rows is None else held[self._rows])
        return result[0], result[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given, never derived from the cache."""
        return 0

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        rows, capacity = self._size
        return like.new_zeros(rows, like.shape[1], capacity, like.shape[3])


def _fingerprint(model: nn.Module) -> object:
    """Return a value that changes with the weights: in-place updates, swapped storage, and writes through ``.data``.

    Writes through ``.data`` leave torch's version counter alone, so a few numbers are looked at too.
    """
    parameters = list(model.parameters())
    probe = parameters[-1].detach().flatten()[:8].tolist()
    return [(p._version, p.data_ptr()) for p in parameters], probe


def log_softmax(logits: torch.Tensor, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return ``log softmax(logits / temperature)`` as a NumPy array, same shape."""
    return cast(NDArray[np.float32], torch.log_softmax(logits / temperature, dim=-1).cpu().numpy())
