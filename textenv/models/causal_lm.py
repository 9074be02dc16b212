"""A causal language model as a pure function of token ids, made fast by a cache of prefixes.

``CausalLM.next_token_logits(input_ids, lengths)`` gives the same answer whatever was asked before; that it keeps the
keys and values of what each row saw last only makes it quick. So any caller that asks about the observation of an
environment gets cached decoding, and nothing in a protocol can go out of step with the cache.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import logging

from textenv.models.chat import end_of_turn, render_conversation
from textenv.types import Conversation, IntArray, TextEnvError

__all__ = ["BUNDLED", "CausalLM", "bundled_folder", "find_device", "quiet"]

BUNDLED = "bundled"
"""The name of the model that ships with textenv."""

_LOGITS_AT_ONCE = 2**26  # floats, 256 MiB: what scoring whole texts may take


def bundled_folder() -> Path:
    """Return the folder of the bundled model, in Hugging Face format."""
    return Path(str(resources.files("textenv.models") / "bundled"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars for loading and saving; those of downloads stay."""
    hook = getattr(logging, "set_tqdm_hook", None)  # transformers >= 5.4
    if hook is None:
        yield
        return
    before = hook(lambda _, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        hook(before)


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, ``"auto"`` being a GPU if there is one and the CPU if not.

    Raises:
        TextEnvError: It is of another kind, or this machine has none that torch can use.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise TextEnvError(f"device={name!r}: expected 'cpu', 'cuda', 'cuda:1' or 'auto'.") from error
    have = {"cpu": 1, "cuda": gpus}.get(device.type)
    if have is None:
        raise TextEnvError(f"device={str(name)!r}: expected 'cpu', 'cuda', 'cuda:1' or 'auto'.")
    if (device.index or 0) >= have:
        raise TextEnvError(
            f"device={str(name)!r}: torch {torch.__version__} can use {have} device(s) of the kind {device.type!r} on "
            "this machine; expected one of them, or 'auto' for a GPU if there is one."
        )
    return device


class CausalLM:
    """A Hugging Face causal language model, its tokenizer, and a cache of the prefixes it saw last.

    Attributes:
        model: The network, in evaluation mode: dropout is off wherever its log-probabilities are compared.
        tokenizer: Its tokenizer.
        vocab_size: Width of its logits; can exceed the tokenizer's vocabulary.
        hidden_size: Width of the hidden states that its head reads.
        eos_ids: Token ids that end a text: those that tokenizer and generation config name, and that which the chat
            template puts behind what the assistant says.
        pad_id: Token id that fills up rows. It may be an end-of-sequence token: masks come from lengths.
        max_positions: Longest sequence the model takes, or None where it has no limit.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Wrap a loaded model.

        Args:
            model: A causal language model.
            tokenizer: The tokenizer it was trained with.

        Raises:
            TextEnvError: There is no end-of-sequence token, or the model's logits are not its head's reading of its
                last hidden states.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise TextEnvError(f"{type(model).__name__} has no language-model head; expected a causal language model.")
        self.vocab_size, self.hidden_size = (int(size) for size in cast(torch.Tensor, head.weight).shape)
        self.eos_ids = _eos_ids(model, tokenizer, self.vocab_size)
        pad = tokenizer.pad_token_id
        self.pad_id = int(self.eos_ids[0] if pad is None or pad >= self.vocab_size else pad)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_positions = None if limit is None else int(limit)
        self._cache = _PrefixCache(model)
        self._token_texts: dict[int, str] = {}
        self._appends_eos = tokenizer("a")["input_ids"][-1:] in [[i] for i in self.eos_ids]
        self._check_head()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = BUNDLED,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> CausalLM:
        """Load a model and its tokenizer.

        Args:
            name: ``"bundled"``, a folder in Hugging Face format, or a Hugging Face id.
            device: Where it runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one.
            dtype: Data type of its weights, or its name; ``"auto"`` for the one that they are saved in.

        Raises:
            TextEnvError: The folder or id cannot be loaded, or lacks weights; the message repeats the reason. Or this
                machine has no such device.
        """
        where = find_device(device)
        source = str(bundled_folder()) if str(name) == BUNDLED else str(name)
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(source)
                load: Any = AutoModelForCausalLM.from_pretrained
                model, report = load(source, dtype=dtype, output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise TextEnvError(
                f"model={str(name)!r} could not be loaded: {error}\nExpected 'bundled', a folder with config.json, "
                "safetensors weights and a tokenizer, or the id of such a model on the Hugging Face hub."
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise TextEnvError(
                f"model={str(name)!r} lacks {len(missing)} of the weights of a {type(model).__name__}, among them "
                f"{', '.join(missing[:3])}; expected a causal language model, saved whole."
            )
        return cls(model.to(where), tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a prompt, as the tokenizer starts a text; never empty.

        An end-of-sequence token that the tokenizer appends is dropped, since the text goes on.

        Raises:
            TextEnvError: The tokenizer knows more tokens than the model, and the text has one of them.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return ``encode`` of each text, in one call of the tokenizer."""
        encoded: list[tuple[int, ...]] = []
        for text, ids in zip(texts, self.tokenizer(list(texts))["input_ids"] if texts else (), strict=True):
            encoded.append(self._prompt_ids(text, ids[:-1] if self._appends_eos else ids))
        return encoded

    def encode_conversation(self, messages: Conversation) -> tuple[str, tuple[int, ...]]:
        """Return the text and token ids that the chat template makes of messages, up to where the assistant goes on.

        Raises:
            TextEnvError: There is no chat template or it refuses the messages, or the text has a token that the model
                does not know.
        """
        text, ids = render_conversation(self.tokenizer, messages)
        return text, self._prompt_ids(text, ids)

    def _prompt_ids(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        tokens = tuple(ids) or (self._start_id,)
        if max(tokens) >= self.vocab_size:
            raise TextEnvError(
                f"The tokenizer reads {text[:80]!r} as token {max(tokens)}, but the model's tokens end at "
                f"{self.vocab_size - 1}: give the tokenizer that the model was trained with."
            )
        return tokens

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of token ids, less special tokens, those that end a text, and those the tokenizer lacks."""
        size = len(self.tokenizer)
        kept = [int(i) for i in ids if i < size and i not in self.eos_ids]  # not all that end turns are marked special
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def token_texts(self, ids: Sequence[int] | IntArray) -> tuple[str, ...]:
        """Return the text of each token by itself, for display; special tokens are shown by name."""
        for new in {int(i) for i in ids} - self._token_texts.keys():
            known = new < len(self.tokenizer)
            self._token_texts[new] = str(self.tokenizer.decode([new])) if known else f"<{new}>"
        return tuple(self._token_texts[int(i)] for i in ids)

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
            Logits in float32, shape ``(batch, vocab_size)``, without gradients.

        Raises:
            TextEnvError: A row is empty or longer than ``input_ids``, or ``rows`` names one twice.
        """
        with _as_it_is(self.device):
            return self.head(self.last_hidden(input_ids, lengths, rows=rows))

    def last_hidden(self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None) -> torch.Tensor:
        """Return the hidden states that ``next_token_logits`` reads, shape ``(batch, hidden_size)``; same arguments."""
        rows = np.arange(len(lengths)) if rows is None else rows
        with _as_it_is(self.device):
            return self._cache.last_hidden(input_ids, lengths, rows)

    def forget(self, rows: IntArray | None = None) -> None:
        """Empty the cache of ``rows``, or all of it.

        Changed weights are noticed by themselves, so this serves two ends: to make the numbers of a run, down to the
        last bit, independent of what was asked before; and to own up to a write that cannot be noticed, that of single
        numbers through ``parameter.data``.
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
        hidden: torch.Tensor = _trunk(self.model)(
            input_ids=input_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return hidden

    def token_log_probs(self, input_ids: IntArray, lengths: IntArray, temperature: float = 1.0) -> NDArray[np.float32]:
        """Return the log-probability of every token given those before it, in one forward.

        Padding costs no logits, and logits take no more than 256 MiB at a time.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, shape ``(batch,)``.
            temperature: Divides the logits.

        Returns:
            In nats, shape ``(batch, time - 1)``: entry ``t`` is that of token ``t + 1``; 0 at padding.
        """
        with _as_it_is(self.device):
            ids, sizes = (_tensor(array, self.device) for array in (input_ids, lengths))
            hidden = self.hidden_states(ids, sizes)[:, :-1]
            real = torch.arange(1, ids.shape[1], device=self.device)[None, :] < sizes[:, None]
            result = torch.zeros(real.shape, device=self.device)
            size = max(1, _LOGITS_AT_ONCE // self.vocab_size)
            parts = zip(hidden[real].split(size), ids[:, 1:][real].split(size), strict=True)
            result[real] = torch.cat(
                [
                    torch.log_softmax(self.head(states) / temperature, dim=-1).gather(1, targets[:, None])[:, 0]
                    for states, targets in parts
                ]
            )
            return cast(NDArray[np.float32], result.cpu().numpy())

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits that hidden states lead to, in float32, shape ``(..., vocab_size)``."""
        reader: Any = self.model.get_output_embeddings()
        logits: torch.Tensor = reader(hidden).float()
        config = self.model.config.get_text_config()
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scale
        return logits

    def _check_head(self) -> None:
        """Refuse an architecture that does more between its trunk and its logits than ``head`` does."""
        with _as_it_is(self.device):
            ids = torch.arange(4, device=self.device)[None] % self.vocab_size
            theirs = self.model(input_ids=ids).logits.float()
            ours = self.head(_trunk(self.model)(input_ids=ids).last_hidden_state)
        if not _close(ours, theirs, self.model.dtype):
            raise TextEnvError(
                f"{type(self.model).__name__} computes its logits in a way of its own, not with its output embeddings "
                "from its last hidden states; textenv cannot use it."
            )

    @property
    def _start_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(self.eos_ids[0] if bos is None else bos)


def _trunk(model: PreTrainedModel) -> nn.Module:
    trunk: nn.Module = model.base_model
    return trunk


@contextlib.contextmanager
def _as_it_is(device: torch.device) -> Iterator[None]:
    """Compute without gradients, at the weights' own precision, whatever the caller's modes are.

    Inference tensors are kept out of the cache: outside inference mode nothing could be written to it again.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64)).to(device)  # a copy: torch warns of read-only arrays


def _close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two computations of the same numbers agree, as far as the weights' precision allows."""
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= theirs.abs().max() * (1e-3 if dtype == torch.float32 else 0.1))


def _eos_ids(model: PreTrainedModel, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    found: list[int] = []
    for value in (tokenizer.eos_token_id, getattr(generation, "eos_token_id", None), end_of_turn(tokenizer)):
        found += [value] if isinstance(value, int) else value or []
    ids = tuple(dict.fromkeys(int(i) for i in found if i < vocab_size))
    if not ids:
        raise TextEnvError(
            f"{type(model).__name__} ({model.config.name_or_path!r}) and its tokenizer name no end-of-sequence token "
            f"that is one of the model's {vocab_size} tokens, so no episode could end by itself; set "
            "tokenizer.eos_token."
        )
    return ids


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
        self._weights = _Weights(model)
        self._usable: bool | None = None  # not known before the first call
        self._window = _window(model.config.get_text_config())

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
        if len(rows) != len(lengths) or int(rows.min()) < 0 or len(np.unique(rows)) < len(rows):
            raise TextEnvError(f"rows={rows.tolist()}: expected {len(lengths)} different numbers of at least 0.")
        if self._usable is None:
            self._usable = self._check()
        if self._usable and self._window is not None and int(lengths.max()) > self._window:
            self._usable = self._refuse(f"it attends to {self._window} tokens at a time, and a text has more")
        if not self._usable:
            return self._uncached(input_ids, lengths)
        if self._weights.changed():
            self.forget(None)
            self._cache.match(self._model.dtype, self._model.device)
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
        self._lengths[rows] = start  # a forward that fails half-way leaves no more than that
        hidden = self._run_all(ids, lengths, rows, start, new)
        self._lengths[rows] = lengths
        return hidden

    def _run_all(
        self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray, new: IntArray
    ) -> torch.Tensor:
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
        output: torch.Tensor = _trunk(self._model)(
            input_ids=block, attention_mask=mask, position_ids=where, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        last = torch.from_numpy(lengths - start - 1).to(device)
        return output[torch.arange(len(rows), device=device), last]

    def _uncached(self, input_ids: IntArray, lengths: IntArray) -> torch.Tensor:
        device = self._model.device
        width = int(lengths.max())
        mask = _tensor(np.arange(width) < lengths[:, None], device)
        ids = _tensor(input_ids[:, :width], device)
        output: torch.Tensor = _trunk(self._model)(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return output[torch.arange(len(lengths), device=device), _tensor(lengths - 1, device)]

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
        probe = _PrefixCache(self._model)
        probe._usable, probe._window = True, None
        vocab_size = int(cast(torch.Tensor, self._model.get_input_embeddings().weight).shape[0])
        ids = np.random.default_rng(0).integers(0, vocab_size, size=(2, 6))
        try:
            # A prompt each; a token each at different places; one goes on while the other starts again.
            for lengths in (np.array([3, 2]), np.array([4, 3]), np.array([6, 6])):
                if lengths[0] == 6:
                    ids[0] = ids[0, ::-1].copy()
                cached = probe.last_hidden(ids, lengths, np.arange(2))
                if not _close(cached, self._uncached(ids, lengths), self._model.dtype):
                    return self._refuse("with it, the numbers are different")
        except Exception as error:  # whatever goes wrong here, the architecture is not made for it
            return self._refuse(f"{type(error).__name__}: {error}")
        return True

    def _refuse(self, reason: str) -> bool:
        warnings.warn(
            f"{type(self._model).__name__} runs without the prefix cache, re-reading the text for every token "
            f"({reason}). The numbers are right; it is slow.",
            stacklevel=2,
        )
        return False


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

    def match(self, dtype: torch.dtype, device: torch.device) -> None:
        """Drop the buffers of a model that has moved to another data type or device."""
        if self._keys and (self._keys[0].dtype, self._keys[0].device) != (dtype, device):
            self._keys, self._values = [], []

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


class _Weights:
    """Notices when a model's weights change.

    Torch counts in-place writes, and storage that is swapped has another address. Writes through ``.data`` do neither
    (polyak_update of stable-baselines3 makes such), so a few numbers of every parameter are compared too, from its
    diagonal: a write to some rows or columns is likely to be among them, one to a whole parameter certain. Views of
    the parameters are held, so that no address can come back under another parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._marks: list[tuple[int, int]] = []
        self._samples: list[torch.Tensor] = []
        self._numbers = b""

    def changed(self) -> bool:
        """Tell whether they have changed since the last call; True for the first."""
        parameters = list(self._model.parameters())
        marks = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if [place for place, _ in marks] != [place for place, _ in self._marks]:
            self._samples = [_diagonal(p.detach()) for p in parameters]
        numbers = torch.cat(self._samples).double().cpu().numpy().tobytes()
        changed = (marks, numbers) != (self._marks, self._numbers)
        self._marks, self._numbers = marks, numbers
        return changed


def _diagonal(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of 8 to 15 numbers along a tensor's diagonal, or all of it where it is shorter."""
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    while tensor.ndim > 1:
        tensor = tensor.diagonal()
    return tensor[:: max(1, len(tensor) // 8)]


def _window(config: Any) -> int | None:
    """Return how many tokens the layers with the shortest sight attend to, or None where all see the whole text."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    names = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def log_softmax(logits: torch.Tensor, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return ``log softmax(logits / temperature)`` as a NumPy array, same shape."""
    return cast(NDArray[np.float32], torch.log_softmax(logits / temperature, dim=-1).cpu().numpy())
