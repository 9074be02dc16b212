"""A causal language model as a pure function of token ids, made fast by a cache of prefixes.

``CausalLM.next_token_logits(input_ids, lengths)`` gives the same answer whatever was asked before; it keeps the keys
and values of what each row saw last, which changes only its speed. So any caller that asks about the observation of an
environment gets cached decoding, and no protocol can get out of step with the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from textenv.models.chat import end_of_turn, render_answer, render_conversation
from textenv.models.codec import TextCodec
from textenv.models.distributions import divide_by_temperature
from textenv.models.families import build_network
from textenv.models.forwards import agree, index_tensor, plain_hidden_states, plain_mode, trunk_of
from textenv.models.loading import BUNDLED, load_pretrained
from textenv.models.network import Network, refuse_rounding
from textenv.models.positions import attention_window, longest_input
from textenv.models.prefix_cache import PrefixCache
from textenv.models.rounding import Precision
from textenv.models.shared_prefix import find_beginnings, read_behind
from textenv.models.weight_watch import WeightWatch
from textenv.rollouts.runtime import throttle_spinning
from textenv.types import Conversation, IntArray, Prompt, TextEnvError

__all__ = ["CausalLM"]

_MAX_LOGITS = 2**26  # numbers, 256 MiB in float32: what scoring whole texts takes at a time on a GPU
_MAX_CPU_LOGITS = 2**19  # the same on a CPU, which is faster where they fit into its cache
_MIN_CPU_ROWS = 64  # rows of logits that a CPU computes at a time, whatever the vocabulary
_MAX_TOKENS = 2**16  # tokens, padding included, that scoring reads at a time on a GPU
_MAX_CPU_TOKENS = 2**11  # the same on a CPU


class CausalLM:
    """A Hugging Face causal language model, its tokenizer, and a cache of the prefixes it saw last.

    Attributes:
        model: The network, in evaluation mode: dropout is off wherever its log-probabilities are compared.
        tokenizer: Its tokenizer.
        vocab_size: Width of its logits; can exceed the tokenizer's vocabulary.
        hidden_size: Width of the hidden states that its head reads.
        eos_ids: Token ids that end a text: those that tokenizer and generation config name, and that which the chat
            template puts after the assistant's messages. None, where the model's config says that it is ``endless``.
        pad_id: Token id that fills up rows. It may be an end-of-sequence token: masks come from lengths.
        max_positions: Longest sequence the model takes, or None where it has no limit.
        adapter: Name of the LoRA adapter in the network that belongs to this model; None for the network without one.
            Models that share a network, a policy and its reference for example, differ in nothing else.
        gradient_checkpointing: Whether forwards with gradients keep only the input of each layer.
        precision: What the linear layers between embeddings and head are rounded to in forwards without gradients; see
            ``textenv.models.rounding``. Such a forward is that of the rounded weights alone, all its numbers are.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, adapter: str | None = None, precision: Precision = "float32"
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: A causal language model.
            tokenizer: The tokenizer it was trained with.
            adapter: Name of a LoRA adapter in ``model`` to run it with.
            precision: Of its linear layers in forwards without gradients.

        Raises:
            TextEnvError: There is no end-of-sequence token, or the model's logits are not what its head makes of its
                last hidden states.
        """
        throttle_spinning()
        config = model.config.get_text_config()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.gradient_checkpointing = False
        self.precision: Precision = precision
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise TextEnvError(f"{type(model).__name__} has no language-model head; expected a causal language model.")
        self.vocab_size, self.hidden_size = (int(size) for size in cast(torch.Tensor, head.weight).shape)
        self.eos_ids = _eos_ids(model, tokenizer, self.vocab_size)
        pad = tokenizer.pad_token_id
        self.pad_id = int((self.eos_ids or (0,))[0] if pad is None or pad >= self.vocab_size else pad)
        self.max_positions = longest_input(model)
        self._window = attention_window(config)
        self._logit_cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        self._logit_scale = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._embeddings = model.get_input_embeddings()
        self._watch = WeightWatch(model, adapted=adapter is not None)
        self._unchanged_contexts = 0  # how many ``unchanged`` contexts are entered
        self._network: Network | None = None
        self._cache = PrefixCache(model)
        self._codec = TextCodec(tokenizer, ends=self.eos_ids)  # not all that end turns are marked special
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
            name: ``"bundled"``, ``"smollm2"``, a folder in Hugging Face format, or a Hugging Face id.
            device: Where it runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one.
            dtype: Data type of its weights, or its name; ``"auto"`` for the one that they are saved in.

        Raises:
            TextEnvError: The folder or id cannot be loaded, or lacks weights; the message repeats the reason. Or this
                machine has no such device.
        """
        return cls(*load_pretrained(name, device=device, dtype=dtype))

    def at_precision(self, precision: Precision) -> CausalLM:
        """Return this model in another precision: the same network, seen by another ``CausalLM``."""
        if precision == self.precision:
            return self
        return CausalLM(self.model, self.tokenizer, adapter=self.adapter, precision=precision)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: not what was computed, which refers to this model's parameters."""
        return {**self.__dict__, "_watch": None, "_unchanged_contexts": 0, "_network": None, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with an empty cache."""
        self.__dict__ |= state
        self._watch, self._cache = WeightWatch(self.model, adapted=self.adapter is not None), PrefixCache(self.model)

    @property
    def activation_bytes(self) -> int:
        """Memory that a training forward keeps of one token for the backward pass, about; logits are not in it.

        Of a layer, ``4 * hidden_size + 5 * heads * head_size + 4 * intermediate_size`` numbers: the inputs of its norms
        and products, queries, keys, values, what they attend to, and both sides of a gate; with
        ``gradient_checkpointing`` its input alone.
        """
        config: Any = self.model.config.get_text_config()
        width = int(getattr(config, "hidden_size", self.hidden_size))
        heads = int(getattr(config, "num_attention_heads", 1))
        attended = heads * int(getattr(config, "head_dim", None) or width // heads)
        inner = int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width)
        layers = int(getattr(config, "num_hidden_layers", 1))
        layer = 4 * width + 5 * attended + 4 * inner
        return 4 * (layers * width + layer if self.gradient_checkpointing else layers * layer)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return cast(torch.Tensor, self._embeddings.weight).device

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

    def encode_conversation(
        self, messages: Conversation, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[str, tuple[int, ...]]:
        """Return the text and token ids that the chat template makes of messages, up to where the assistant goes on.

        Args:
            messages: The messages, at least one.
            tools: JSON schemas of functions, for a template that takes them.

        Raises:
            TextEnvError: There is no chat template or it refuses the messages, or the text has a token that the model
                does not know.
        """
        text, ids = render_conversation(self.tokenizer, messages, tools)
        return text, self._prompt_ids(text, ids)

    def _prompt_ids(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        return self._known_ids(text, tuple(ids) or (self._start_id,))

    def _known_ids(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        tokens = tuple(ids)
        if max(tokens, default=0) >= self.vocab_size:
            raise TextEnvError(
                f"The tokenizer reads {text[:80]!r} as token {max(tokens)}, but the model's tokens end at "
                f"{self.vocab_size - 1}: give the tokenizer that the model was trained with."
            )
        return tokens

    def encode_completions(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the token ids of each prompt, as ``encode`` gives them, and those that continue it.

        Both together decode to what the tokenizer makes of the whole text, as where a policy writes the completion, and
        no token spans the two.

        Raises:
            TextEnvError: As ``encode``; or no tokens continue a prompt so.
        """
        starts = self.encode_many(prompts)
        wholes = self.encode_many([prompt + rest for prompt, rest in zip(prompts, completions, strict=True)])
        return list(zip(starts, self._codec.continuations(prompts, starts, completions, wholes), strict=True))

    def encode_behind(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text that follows tokens which stay as they are.

        Raises:
            TextEnvError: The text has a token that the model does not know.
        """
        return self._known_ids(text, self._codec.encode_behind(text))

    def encode_answer(self, messages: Conversation, last_id: int) -> tuple[int, ...]:
        """Return what the chat template puts between a message of the assistant and the next one it is to write.

        That is the end of the assistant's turn, where the assistant has not written it, then ``messages``, then the
        opening of the next turn. Nothing that precedes is written again, so that a template which would change earlier
        messages cannot.

        Args:
            messages: What others have answered; none for the end and the opening alone.
            last_id: The last token of the assistant's message.

        Raises:
            TextEnvError: There is no chat template, it refuses the messages, or their text has a token that the model
                does not know.
        """
        text = render_answer(self.tokenizer, messages)
        if last_id in self.eos_ids and last_id < len(self.tokenizer):
            text = text.removeprefix(str(self.tokenizer.decode([last_id])))
        return self._known_ids(text, self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of token ids, less special tokens, those that end a text, and those the tokenizer lacks.

        The ids are a whole text: what a completion says depends on its prompt, see ``completion_text``.
        """
        return self._codec.decode(ids)

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Return token ids as a prompt; a character whose bytes are not all there is left to what follows."""
        return self._codec.prompt(ids)

    def completion_text(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """Return what a completion's tokens add to its prompt.

        Both texts together are the decoding of all token ids; see ``textenv.models.codec``.
        """
        return self._codec.completion_text(prompt, ids)

    def token_texts(self, ids: Sequence[int] | IntArray, prompt: Prompt | None = None) -> tuple[str, ...]:
        """Return the text that each token adds to its prompt and the tokens before it, for display.

        Special tokens are shown by name. The others together are ``completion_text``.
        """
        return self._codec.token_texts(ids, prompt)

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
        return self.next_token(input_ids, lengths, rows=rows)[0]

    def next_token_log_prob(
        self,
        input_ids: IntArray,
        lengths: IntArray,
        tokens: IntArray,
        temperature: float = 1.0,
        *,
        rows: IntArray | None = None,
    ) -> NDArray[np.float32]:
        """Return the log-probability in nats that one token follows each row, ``(batch,)``.

        Args:
            input_ids: As in ``next_token_logits``.
            lengths: As there.
            tokens: The tokens asked about, shape ``(batch,)``.
            temperature: Divides the logits.
            rows: As there.
        """
        logits = divide_by_temperature(self.next_token_logits(input_ids, lengths, rows=rows), temperature)
        loss = functional.cross_entropy(logits, index_tensor(tokens, logits.device), reduction="none")
        return cast(NDArray[np.float32], -loss.cpu().numpy())

    def last_hidden(self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None) -> torch.Tensor:
        """Return the hidden states that ``next_token_logits`` reads, shape ``(batch, hidden_size)``; same arguments."""
        with plain_mode(self.device):
            return self._last_hidden(input_ids, lengths, rows)

    def next_token(
        self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and the hidden states that the head computes them from; arguments as above."""
        with plain_mode(self.device):
            hidden = self._last_hidden(input_ids, lengths, rows)
            return self._logits_of(hidden), hidden

    def _last_hidden(self, input_ids: IntArray, lengths: IntArray, rows: IntArray | None) -> torch.Tensor:
        self._refresh()
        return self._cache.last_hidden(input_ids, lengths, np.arange(len(lengths)) if rows is None else rows)

    def forget(self, rows: IntArray | None = None) -> None:
        """Empty the cache of ``rows``, or all of it.

        Changed weights are noticed without it, so this serves two purposes: to make the numbers of a run, to the last
        bit, independent of what was asked before; and to report a write that cannot be noticed, one of single numbers
        through ``parameter.data``.
        """
        self._cache.forget(rows)
        if rows is None and self._network is not None:
            self._network.unpack()

    def release(self) -> None:
        """Free what forwards have left in memory: packed weights, and keys and values where no CUDA graph reads them.

        The next forward computes them again, as after ``forget``.
        """
        self._cache.release()
        if self._network is not None:
            self._network.unpack()

    @contextlib.contextmanager
    def rounded(self, precision: Precision) -> Iterator[None]:
        """Compute in another precision inside, where there are no gradients.

        Args:
            precision: What the linear layers are rounded to. The first forward refuses a model that cannot be.
        """
        before = self.precision
        if precision == before:
            yield
            return
        self.precision = precision
        self.forget()
        try:
            yield
        finally:
            self.precision = before
            self.forget()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Look for changed weights once, here, instead of before every forward; nobody may write to them inside."""
        self._refresh()
        self._unchanged_contexts += 1
        try:
            yield
        finally:
            self._unchanged_contexts -= 1

    def enable_gradient_checkpointing(self) -> None:
        """Have forwards with gradients keep only the input of each layer, and compute the rest again on the way back.

        Raises:
            TextEnvError: The architecture has no such thing, or has dropout where it does.
        """
        self.gradient_checkpointing = True
        if build_network(self.model) is not None:
            return
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        plain = trunk_of(self.model)(input_ids=ids).last_hidden_state
        try:
            # transformers 6 drops the second name
            model: Any = self.model
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        except ValueError as error:
            raise TextEnvError(f"gradient_checkpointing: {error}") from error
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # which it asks for; what is inside stays in evaluation mode
        if not agree(trunk_of(self.model)(input_ids=ids).last_hidden_state, plain, self.model.dtype):
            raise TextEnvError(
                f"gradient_checkpointing: the layers of {type(self.model).__name__} have dropout of their own, so that "
                "the policy would not be the one that acted; set its dropout to 0 in the model's config.json."
            )

    def hidden_states(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the last hidden states of whole sequences, without the cache and with gradients.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, shape ``(batch,)``.
            keep: Of which tokens they are wanted, as places in ``input_ids.flatten()``, shape ``(kept,)``; None for
                all. The last layer computes less for the others.

        Returns:
            Hidden states, shape ``(kept, hidden_size)``; or of all tokens, shape ``(batch, time, hidden_size)``, where
            those of padding have no meaning.
        """
        if torch.is_grad_enabled():
            self._read_modules()
        else:
            self._refresh()
        if self._network is not None and not self._exceeds_window(input_ids.shape[1]):
            self._network.checkpointing = self.gradient_checkpointing
            return self._network.run(input_ids, keep=keep)  # causal, so that what is on the right is not seen
        hidden = plain_hidden_states(self.model, input_ids, lengths)
        return hidden if keep is None else hidden.flatten(0, 1)[keep]

    def token_log_probs(
        self,
        input_ids: IntArray,
        lengths: IntArray,
        temperature: float = 1.0,
        *,
        asked: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Return the log-probability of every token given those before it, in one forward or, of many rows, a few.

        Padding costs no logits, and logits take no more than 256 MiB at a time.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, shape ``(batch,)``.
            temperature: Divides the logits.
            asked: Which tokens are asked for, like ``input_ids``; by default all but the first of each row.

        Returns:
            In nats, shape ``(batch, time - 1)``: entry ``t`` is that of token ``t + 1``; 0 at padding, and at tokens
            that are not asked for.
        """
        ids = np.ascontiguousarray(input_ids, dtype=np.int64)
        before = np.arange(1, ids.shape[1] + 1) < np.asarray(lengths)[:, None]  # tokens that others follow
        if asked is not None:
            before[:, :-1] &= asked[:, 1:]
        kept = np.flatnonzero(before)
        result = np.zeros(before.shape, dtype=np.float32)
        device = self.device
        with plain_mode(device):
            all_ids, sizes, keep, targets = (
                index_tensor(array, device) for array in (ids, lengths, kept, ids.reshape(-1)[kept + 1])
            )
            min_rows, max_logits = (_MIN_CPU_ROWS, _MAX_CPU_LOGITS) if device.type == "cpu" else (1, _MAX_LOGITS)
            size = max(min_rows, max_logits // self.vocab_size)
            states = self._read_shared(ids, np.asarray(lengths), kept)
            if states is None:
                states = self._read_rows(all_ids, sizes, keep)
            parts = [
                functional.cross_entropy(
                    divide_by_temperature(self._logits_of(part), temperature), part_targets, reduction="none"
                )
                for part, part_targets in zip(states.split(size), targets.split(size), strict=True)
            ]
            result.reshape(-1)[kept] = -torch.cat(parts).cpu().numpy()
        return result[:, :-1]

    def _read_shared(self, ids: IntArray, lengths: IntArray, kept: IntArray) -> torch.Tensor | None:
        """Return the hidden states of tokens, what texts begin with being read once; None where that saves little."""
        asked = np.full(len(ids), ids.shape[1])
        np.minimum.at(asked, kept // ids.shape[1], kept % ids.shape[1])
        beginnings = find_beginnings(ids, lengths, np.minimum(asked, lengths - 1))
        if beginnings is None or self._exceeds_window(ids.shape[1]):
            return None
        self._refresh()
        if self._network is None:
            return None
        at_once = _MAX_CPU_TOKENS if self.device.type == "cpu" else _MAX_TOKENS
        return read_behind(self._network, beginnings, ids, lengths, kept, at_once=at_once, device=self.device)

    def _exceeds_window(self, length: int) -> bool:
        return self._window is not None and length > self._window

    def _read_rows(self, input_ids: torch.Tensor, lengths: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Return ``hidden_states``, as many rows at a time as fit into memory; ``keep`` is in order."""
        width, most = input_ids.shape[1], _MAX_CPU_TOKENS if input_ids.is_cpu else _MAX_TOKENS
        rows = max(1, most // width)
        if rows >= len(input_ids):
            return self.hidden_states(input_ids, lengths, keep)
        found: list[torch.Tensor] = []
        for begin in range(0, len(input_ids), rows):
            inside = (keep >= begin * width) & (keep < (begin + rows) * width)
            part = slice(begin, begin + rows)
            found.append(self.hidden_states(input_ids[part], lengths[part], keep[inside] - begin * width))
        return torch.cat(found)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits that hidden states lead to, in float32, shape ``(..., vocab_size)``."""
        if self._network is not None and torch.is_grad_enabled():
            logits = self._network.head(hidden.flatten(0, -2)).view(*hidden.shape[:-1], -1)
        else:
            logits = cast(Any, self.model.get_output_embeddings())(hidden)
        return self._scale_logits(logits.float())

    def _logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``head`` of ``(rows, hidden_size)``, by packed weights if there are any; they must be up to date."""
        return self.head(hidden) if self._network is None else self._scale_logits(self._network.head(hidden).float())

    def _scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        if self._logit_cap is not None:
            logits = self._logit_cap * torch.tanh(logits / self._logit_cap)
        return logits if self._logit_scale == 1.0 else logits * self._logit_scale

    def _refresh(self) -> None:
        """Before a forward without gradients: drop what was computed from weights that have changed."""
        self._read_modules()
        if not self._unchanged_contexts and self._watch.weights_changed():
            self._cache.forget(None)
            if self._watch.addresses_changed:
                self._cache.drop_graphs()
            if self._network is not None:
                self._network.unpack()
        if self._network is not None:
            self._network.pack(self.precision)
        elif self.precision != "float32":
            raise refuse_rounding(self.model, self.precision)

    def _read_modules(self) -> None:
        """Before any forward: read the modules as they are now, with this model's adapter."""
        if not self._unchanged_contexts and self._watch.structure_changed():
            self._network = build_network(self.model, adapted=self.adapter is not None)
            self._cache = PrefixCache(self.model, self._network)
        self.activate_adapter()

    def activate_adapter(self) -> None:
        """Have the network run with this model's adapter, or without any."""
        model: Any = self.model
        if not getattr(model, "_hf_peft_config_loaded", False):
            return
        layer = next(module for module in model.modules() if hasattr(module, "base_layer"))
        if self.adapter is None:
            # A ``Network`` leaves adapters out anyway; the model's own forward, which reads texts longer than a window,
            # does not.
            only_network = self._network is not None and self._cache.usable and self._window is None
            if not only_network and not layer.disable_adapters:
                model.disable_adapters()
        elif layer.disable_adapters or list(layer.active_adapters) != [self.adapter]:
            model.enable_adapters()
            model.set_adapter(self.adapter)

    def _check_head(self) -> None:
        """Refuse an architecture that does more between its trunk and its logits than ``head`` does, or looks ahead."""
        with plain_mode(self.device):
            ids = torch.arange(4, device=self.device).repeat(2, 1)
            ids[1, -1] += 1  # which no token before it may depend on
            ids %= self.vocab_size
            theirs = self.model(input_ids=ids).logits.float()
            ours = self.head(trunk_of(self.model)(input_ids=ids).last_hidden_state)
        if not agree(ours, theirs, self.model.dtype):
            raise TextEnvError(
                f"{type(self.model).__name__} computes its logits in a way of its own, not with its output embeddings "
                "from its last hidden states; textenv cannot use it."
            )
        if not agree(theirs[0, :-1], theirs[1, :-1], self.model.dtype):
            raise TextEnvError(
                f"{type(self.model).__name__} reads a token together with those that follow it, as BERT does; expected "
                "a causal language model."
            )

    @property
    def _start_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int((self.eos_ids or (self.pad_id,))[0] if bos is None else bos)


def _eos_ids(model: PreTrainedModel, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    found: list[int] = []
    for value in (tokenizer.eos_token_id, getattr(generation, "eos_token_id", None), end_of_turn(tokenizer)):
        found += [value] if isinstance(value, int) else value or []
    ids = tuple(dict.fromkeys(int(i) for i in found if i < vocab_size))
    if not ids and not getattr(model.config, "endless", False):
        raise TextEnvError(
            f"{type(model).__name__} ({model.config.name_or_path!r}) and its tokenizer name no end-of-sequence token "
            f"that is one of the model's {vocab_size} tokens, so no episode could end by itself; set "
            "tokenizer.eos_token."
        )
    return ids
