"""A causal language model as a pure function of token ids, made fast by a cache of prefixes.

``CausalLM.next_token_logits(input_ids, lengths)`` gives the same answer whatever was asked before; that it keeps the
keys and values of what each row saw last only makes it quick. So any caller that asks about the observation of an
environment gets cached decoding, and nothing in a protocol can go out of step with the cache.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from textenv.models.chat import end_of_turn, render_conversation
from textenv.models.codec import TextCodec
from textenv.models.families import build_network, hooks_of
from textenv.models.graphs import SCRATCH, Graphs, graphs_run_on
from textenv.models.key_values import KeyValues
from textenv.models.network import Network
from textenv.models.positions import longest_input
from textenv.types import Conversation, IntArray, Prompt, TextEnvError

__all__ = ["BUNDLED", "CausalLM", "bundled_folder", "find_device", "quiet"]

BUNDLED = "bundled"
"""The name of the model that ships with textenv."""

_LOGITS_AT_ONCE = 2**26  # floats, 256 MiB: what scoring whole texts may take
_SPARSE = 4  # a batch is brought together where it has fewer than this many rows for each that is in between
_IN_CACHE, _FEW_ROWS = 2**19, 64  # the same for a processor, which is faster where they stay in its cache; and a floor


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
            template puts behind what the assistant says. None, where the model's config says that it is ``endless``.
        pad_id: Token id that fills up rows. It may be an end-of-sequence token: masks come from lengths.
        max_positions: Longest sequence the model takes, or None where it has no limit.
        adapter: Name of the LoRA adapter in the network that belongs to this model; None for the network without one.
            Models that share a network, a policy and its reference for example, differ in nothing else.
        gradient_checkpointing: Whether forwards with gradients keep only the input of each layer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, *, adapter: str | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: A causal language model.
            tokenizer: The tokenizer it was trained with.
            adapter: Name of a LoRA adapter in ``model`` to run it with.

        Raises:
            TextEnvError: There is no end-of-sequence token, or the model's logits are not its head's reading of its
                last hidden states.
        """
        config = model.config.get_text_config()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.gradient_checkpointing = False
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise TextEnvError(f"{type(model).__name__} has no language-model head; expected a causal language model.")
        self.vocab_size, self.hidden_size = (int(size) for size in cast(torch.Tensor, head.weight).shape)
        self.eos_ids = _eos_ids(model, tokenizer, self.vocab_size)
        pad = tokenizer.pad_token_id
        self.pad_id = int((self.eos_ids or (0,))[0] if pad is None or pad >= self.vocab_size else pad)
        self.max_positions = longest_input(model)
        self._window = _window(config)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self._embeddings = model.get_input_embeddings()
        self._watch = _Watch(model, adapted=adapter is not None)
        self._still = 0  # how many contexts promise that nothing changes
        self._network: Network | None = None
        self._cache = _PrefixCache(model)
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
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                if (Path(source) / "adapter_config.json").is_file():
                    model, report = _merged(source, dtype), {"missing_keys": set[str]()}
                else:
                    load: Any = AutoModelForCausalLM.from_pretrained
                    model, report = load(source, dtype=dtype, output_loading_info=True, trust_remote_code=False)
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has in common: not what was computed, which refers to this model's parameters."""
        return {**self.__dict__, "_watch": None, "_still": 0, "_network": None, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with an empty cache."""
        self.__dict__ |= state
        self._watch, self._cache = _Watch(self.model, adapted=self.adapter is not None), _PrefixCache(self.model)

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
        logits = _heated(self.next_token_logits(input_ids, lengths, rows=rows), temperature)
        loss = functional.cross_entropy(logits, _tensor(tokens, logits.device), reduction="none")
        return cast(NDArray[np.float32], -loss.cpu().numpy())

    def last_hidden(self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None) -> torch.Tensor:
        """Return the hidden states that ``next_token_logits`` reads, shape ``(batch, hidden_size)``; same arguments."""
        with _as_it_is(self.device):
            return self._last_hidden(input_ids, lengths, rows)

    def next_token(
        self, input_ids: IntArray, lengths: IntArray, *, rows: IntArray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both, the logits and the hidden states that they are read from; same arguments."""
        with _as_it_is(self.device):
            hidden = self._last_hidden(input_ids, lengths, rows)
            return self._read(hidden), hidden

    def _last_hidden(self, input_ids: IntArray, lengths: IntArray, rows: IntArray | None) -> torch.Tensor:
        self._refresh()
        return self._cache.last_hidden(input_ids, lengths, np.arange(len(lengths)) if rows is None else rows)

    def forget(self, rows: IntArray | None = None) -> None:
        """Empty the cache of ``rows``, or all of it.

        Changed weights are noticed by themselves, so this serves two ends: to make the numbers of a run, down to the
        last bit, independent of what was asked before; and to own up to a write that cannot be noticed, that of single
        numbers through ``parameter.data``.
        """
        self._cache.forget(rows)
        if rows is None and self._network is not None:
            self._network.unpack()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Look for changes once, here, instead of before every forward: inside, nobody may write to the weights."""
        self._refresh()
        self._still += 1
        try:
            yield
        finally:
            self._still -= 1

    def enable_gradient_checkpointing(self) -> None:
        """Have forwards with gradients keep only the input of each layer, and compute the rest again on the way back.

        Raises:
            TextEnvError: The architecture has no such thing, or has dropout where it does.
        """
        self.gradient_checkpointing = True
        if build_network(self.model) is not None:
            return
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        plain = _trunk(self.model)(input_ids=ids).last_hidden_state
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
        if not _close(_trunk(self.model)(input_ids=ids).last_hidden_state, plain, self.model.dtype):
            raise TextEnvError(
                f"gradient_checkpointing: the layers of {type(self.model).__name__} have dropout of their own, so that "
                "the policy would not be the one that acted; set its dropout to 0 in the model's config.json."
            )

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter in the format of peft."""
        self._activate()
        self.model.save_pretrained(folder)

    def load_adapter(self, folder: Path) -> None:
        """Read an adapter that ``save_adapter`` wrote into this one.

        Raises:
            TextEnvError: It is not there or is of another shape.
        """
        from peft import set_peft_model_state_dict  # noqa: PLC0415 (an optional dependency, and slow)

        path = folder / "adapter_model.safetensors"
        try:
            tensors = safetensors.torch.load_file(path)
            report: Any = set_peft_model_state_dict(self.model, tensors, adapter_name=str(self.adapter))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise TextEnvError(f"{path} cannot be read into the policy: {error}") from error
        if report.unexpected_keys:
            raise TextEnvError(f"{path} has {report.unexpected_keys[:3]}, which the model has not; was it another?")

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
            self._settle()
        else:
            self._refresh()
        if self._network is not None and (self._window is None or input_ids.shape[1] <= self._window):
            self._network.checkpointing = self.gradient_checkpointing
            return self._network.run(input_ids, keep=keep)  # causal, so that what is on the right is not seen
        hidden = _plain_hidden(self.model, input_ids, lengths)
        return hidden if keep is None else hidden.flatten(0, 1)[keep]

    def token_log_probs(
        self,
        input_ids: IntArray,
        lengths: IntArray,
        temperature: float = 1.0,
        *,
        starts: IntArray | None = None,
    ) -> NDArray[np.float32]:
        """Return the log-probability of every token given those before it, in one forward.

        Padding costs no logits, and logits take no more than 256 MiB at a time.

        Args:
            input_ids: Token ids, padded on the right, shape ``(batch, time)``.
            lengths: Number of tokens of each row, shape ``(batch,)``.
            temperature: Divides the logits.
            starts: First token of each row that is asked for, at least 1, shape ``(batch,)``; by default 1.

        Returns:
            In nats, shape ``(batch, time - 1)``: entry ``t`` is that of token ``t + 1``; 0 at padding and before
            ``starts``.
        """
        ids = np.ascontiguousarray(input_ids, dtype=np.int64)
        places = np.arange(1, ids.shape[1] + 1)  # of the tokens that follow
        asked = places < np.asarray(lengths)[:, None]
        if starts is not None:
            asked &= places >= np.asarray(starts)[:, None]
        kept = np.flatnonzero(asked)
        result = np.zeros(asked.shape, dtype=np.float32)
        device = self.device
        with _as_it_is(device):
            every, sizes, keep, targets = (
                _tensor(array, device) for array in (ids, lengths, kept, ids.reshape(-1)[kept + 1])
            )
            least, most = (_FEW_ROWS, _IN_CACHE) if device.type == "cpu" else (1, _LOGITS_AT_ONCE)
            size = max(least, most // self.vocab_size)
            states = self.hidden_states(every, sizes, keep)
            parts = [
                functional.cross_entropy(_heated(self._read(part), temperature), theirs, reduction="none")
                for part, theirs in zip(states.split(size), targets.split(size), strict=True)
            ]
            result.reshape(-1)[kept] = -torch.cat(parts).cpu().numpy()
        return result[:, :-1]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits that hidden states lead to, in float32, shape ``(..., vocab_size)``."""
        if self._network is not None and torch.is_grad_enabled():
            logits = self._network.head(hidden.flatten(0, -2)).view(*hidden.shape[:-1], -1)
        else:
            logits = cast(Any, self.model.get_output_embeddings())(hidden)
        return self._scaled(logits.float())

    def _read(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``head`` of ``(rows, hidden_size)``, by packed weights where there are some; they must be fresh."""
        return self.head(hidden) if self._network is None else self._scaled(self._network.head(hidden).float())

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits if self._scale == 1.0 else logits * self._scale

    def _refresh(self) -> None:
        """Before a forward without gradients: drop what was computed from weights that have changed."""
        self._settle()
        if not self._still and self._watch.changed():
            self._cache.forget(None)
            if self._watch.moved:
                self._cache.drop_graphs()
            if self._network is not None:
                self._network.unpack()
        if self._network is not None:
            self._network.pack()

    def _settle(self) -> None:
        """Before any forward: read the modules as they are now, with this model's adapter."""
        if not self._still and self._watch.restructured():
            self._network = build_network(self.model, adapted=self.adapter is not None)
            self._cache = _PrefixCache(self.model, self._network)
        self._activate()

    def _activate(self) -> None:
        """Have the network run with this model's adapter, or without any."""
        model: Any = self.model
        if not getattr(model, "_hf_peft_config_loaded", False):
            return
        layer = next(module for module in model.modules() if hasattr(module, "base_layer"))
        if self.adapter is None:
            # A network of ours leaves adapters out anyway; the model's own forward, which reads texts longer than a
            # window, does not.
            settled = self._network is not None and self._cache.usable and self._window is None
            if not settled and not layer.disable_adapters:
                model.disable_adapters()
        elif layer.disable_adapters or list(layer.active_adapters) != [self.adapter]:
            model.enable_adapters()
            model.set_adapter(self.adapter)

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
        return int((self.eos_ids or (self.pad_id,))[0] if bos is None else bos)


def _merged(folder: str, dtype: str | torch.dtype) -> Any:
    """Load a LoRA adapter and the model it belongs to, as one model."""
    try:
        from peft import PeftConfig, PeftModel  # noqa: PLC0415 (an optional dependency, and slow)
    except ImportError as error:
        raise TextEnvError(f"{folder} holds a LoRA adapter; run: pip install 'textenv[lora]'") from error
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise OSError("its adapter is not in safetensors format")  # the other format runs code
    about = PeftConfig.from_pretrained(folder)
    if about.peft_type != "LORA" or getattr(about, "megatron_config", None):  # others load, or import, what they name
        raise OSError(f"its adapter_config.json is for {str(about.peft_type)!r}: expected a plain LoRA adapter")
    base = about.base_model_name_or_path
    load: Any = AutoModelForCausalLM.from_pretrained
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks for it
        adapted: Any = PeftModel.from_pretrained(load(base, dtype=dtype, trust_remote_code=False), folder)
    return adapted.merge_and_unload()


def _trunk(model: PreTrainedModel) -> nn.Module:
    trunk: nn.Module = model.base_model
    return trunk


def _plain_hidden(model: PreTrainedModel, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states by the model's own ``forward``, without any cache, ``(batch, time, hidden)``."""
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    mask = (steps[None, :] < lengths[:, None]).long()
    hidden: torch.Tensor = _trunk(model)(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


def _as_it_is(device: torch.device) -> AbstractContextManager[Any]:
    """Compute without gradients, at the weights' own precision, whatever the caller's modes are.

    Inference tensors are kept out of the cache: outside inference mode nothing could be written to it again.
    """
    if not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(device.type):
        return torch.no_grad() if torch.is_grad_enabled() else _AS_BEFORE
    modes = contextlib.ExitStack()
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.no_grad())
    modes.enter_context(torch.autocast(device.type, enabled=False))
    return modes


_AS_BEFORE = contextlib.nullcontext()


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
    if not ids and not getattr(model.config, "endless", False):
        raise TextEnvError(
            f"{type(model).__name__} ({model.config.name_or_path!r}) and its tokenizer name no end-of-sequence token "
            f"that is one of the model's {vocab_size} tokens, so no episode could end by itself; set "
            "tokenizer.eos_token."
        )
    return ids


class _PrefixCache:
    """Keys and values of what each row saw last.

    Rows are ragged: each has its own length and is written at its own positions. Keys beyond a row's length are left
    over from something else and masked. Rows live in slots of the buffers, and those that are asked about are brought
    into the first slots, so that a batch that has lost some of its rows is still read in place; as long as few are
    lost, they run along.
    """

    def __init__(self, model: PreTrainedModel, network: Network | None = None) -> None:
        self._model = model
        self._network = network
        self._held = self._nothing()
        self._graphs: Graphs | None = None
        self._ids: IntArray = np.zeros((0, 0), dtype=np.int64)  # (rows, capacity)
        self._lengths: IntArray = np.zeros(0, dtype=np.int64)
        self._slots: IntArray = np.zeros(0, dtype=np.int64)  # where each row is held
        self._owners: IntArray = np.zeros(0, dtype=np.int64)  # of which row each slot is
        self._every: IntArray = np.zeros(0, dtype=np.int64)  # 0, 1, 2 ...
        self._first = torch.zeros(0, dtype=torch.int64)  # the same where the model is
        self._empty = True  # nothing was asked since all of it was forgotten
        self._warned = False  # of texts longer than the window
        self.usable: bool | None = None  # not known before the first call
        self.graphed = False  # likewise
        self._window = _window(model.config.get_text_config())
        self._like = next(p for p in model.parameters() if p.is_floating_point())  # where it is, and of which type
        self._placed = (self._like.dtype, self._like.device)

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

    def _nothing(self) -> KeyValues | _RaggedCache:
        return _RaggedCache() if self._network is None else KeyValues(*self._network.heads[:2])

    def drop_graphs(self) -> None:
        """Record anew what was recorded of weights at other addresses."""
        self._graphs = None

    def last_hidden(self, input_ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Return the hidden state at each row's last token, ``(batch, hidden_size)``."""
        if len(lengths) == 0 or int(lengths.min()) < 1 or int(lengths.max()) > input_ids.shape[1]:
            raise TextEnvError(
                f"lengths={lengths.tolist()} for input_ids of shape {input_ids.shape}: expected at least one row, "
                f"each with 1 to {input_ids.shape[1]} tokens."
            )
        if len(rows) != len(lengths) or int(rows.min()) < 0 or len(set(rows.tolist())) < len(rows):
            raise TextEnvError(f"rows={rows.tolist()}: expected {len(lengths)} different numbers of at least 0.")
        if self._placed != (placed := (self._like.dtype, self._like.device)):
            self._held, self._graphs, self._ids = self._nothing(), None, self._ids[:0, :0]
            self._placed, self.usable = placed, None
        if self.usable is None:
            self._find_way()
        if not self.usable or self._is_long(int(lengths.max())):
            return self._uncached(input_ids, lengths)
        self._grow(int(rows.max()) + 1, input_ids.shape[1])
        ids = input_ids[:, : self._ids.shape[1]]
        if (tokens := self._continued(ids, lengths, rows)) is not None:
            return self._go_on(tokens, lengths, rows)
        width = ids.shape[1]
        differs = ids != self._ids[rows, :width]
        first = differs.argmax(axis=1)
        first[~differs[np.arange(len(rows)), first]] = width  # no difference: argmax of nothing but False is 0
        # The last token always runs: its hidden state is the answer.
        start = np.minimum(np.minimum(first, self._lengths[rows]), lengths - 1)
        self._ids[rows, :width] = ids
        self._lengths[rows] = start  # a forward that fails half-way leaves no more than that
        return self._run_all(ids, lengths, rows, start)

    def _continued(self, ids: IntArray, lengths: IntArray, rows: IntArray) -> IntArray | None:
        """Take in and return the last tokens if all rows are a token longer than before; else return None.

        What follows finds that out too, with more bookkeeping; this is asked for every token.
        """
        at = lengths - 1
        if (self._lengths[rows] != at).any():
            return None
        known, every = self._ids[rows, : ids.shape[1]], self._every[: len(rows)]
        known[every, at] = tokens = ids[every, at]
        if (known != ids).any():
            return None
        self._ids[rows, at] = tokens
        return tokens

    def _run_all(self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray) -> torch.Tensor:
        """Run rows of which one token is new, those that begin, and others, each kind by itself."""
        kinds = np.where(lengths - start == 1, 0, np.where(start == 0, 1, 2))
        parts, results = [], []
        for kind in (2, 1, 0):
            part = np.flatnonzero(kinds == kind)
            if not len(part):
                continue
            parts.append(part)
            if kind == 0:
                results.append(self._go_on(ids[part, start[part]], lengths[part], rows[part]))
            else:
                results.append(self._read(ids[part], lengths[part], rows[part], start[part]))
        if len(parts) == 1:
            return results[0]
        return torch.cat(results)[self._there(np.argsort(np.concatenate(parts)))]

    def _go_on(self, tokens: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Run the last token of each row, ``(batch,)``, behind those that are held."""
        slots, positions = self._slots[rows], lengths - 1
        span = int(slots.max()) + 1
        if span > len(rows) + len(rows) // _SPARSE:
            slots, span = self._gather(rows), len(rows)
        straight = span == len(rows) and bool((slots == self._every[:span]).all())
        if not straight:  # slots of other rows in between write again what they hold
            owners = self._owners[:span]
            places = np.maximum(self._lengths[owners] - 1, 0)
            held = self._ids[owners, places]
            places[slots], held[slots] = positions, tokens
            positions, tokens = places, held
        with torch.inference_mode(self._network is not None):  # in which every operation is called sooner
            if self.graphed:
                if self._graphs is None:
                    assert self._network is not None
                    assert isinstance(self._held, KeyValues)
                    self._graphs = Graphs(self._network, self._held, self._like)
                hidden = self._graphs.run(tokens, positions)
            else:
                keys, where = int(positions.max()) + 1, self._there(positions)[:, None]
                mask = None if int(positions.min()) == keys - 1 else self._mask(where, keys)
                self._held.prepare(self._first[:span], where, keys, mask, prefill=False)
                hidden = self._compute(self._there(tokens)[:, None], where)
            if not straight:
                hidden = hidden[self._there(slots)]
        self._lengths[rows] = lengths
        return hidden.clone()  # not an inference tensor

    def _read(self, ids: IntArray, lengths: IntArray, rows: IntArray, start: IntArray) -> torch.Tensor:
        """Run several tokens of each row, ``ids`` from ``start``: either all rows begin, or all go on."""
        fresh, ends = not start.any(), lengths
        into = self._slots[rows]
        back: torch.Tensor | None = None
        if not fresh:
            into = self._gather(rows)
            back, order = self._there(into), np.argsort(into)  # the slots are 0 .. n-1, and so the way back
            ids, ends, start, into = ids[order], ends[order], start[order], into[order]
        positions = np.minimum(start[:, None] + np.arange(int((ends - start).max())), ids.shape[1] - 1)
        block, where = self._there(np.take_along_axis(ids, positions, axis=1)), self._there(positions)
        keys = int(ends.max())
        last = self._there(np.arange(len(rows)) * positions.shape[1] + ends - start - 1)
        with torch.inference_mode(self._network is not None):
            mask = None if fresh else self._mask(where, keys)
            self._held.prepare(self._there(into), where, keys, mask, prefill=fresh)
            hidden = self._compute(block, where, last)
            if back is not None:
                hidden = hidden[back]
        self._lengths[rows] = lengths
        return hidden.clone()

    def _compute(self, block: torch.Tensor, where: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Return hidden states ``(kept, hidden_size)`` of tokens ``(batch, new)``, for which the cache is prepared."""
        if isinstance(self._held, _RaggedCache):
            hidden = self._held.run(self._model, block).flatten(0, 1)
            return hidden if keep is None else hidden[keep]
        assert self._network is not None
        return self._network.run(block, where, self._held, keep=keep).flatten(0, -2)

    def _there(self, array: IntArray) -> torch.Tensor:
        """Return an array where the model is."""
        tensor = torch.from_numpy(array)
        return tensor if self._first.is_cpu else tensor.to(self._first.device, non_blocking=True)

    def _mask(self, where: torch.Tensor, keys: int) -> torch.Tensor:
        """Return what is added to the scores ``(rows, new, keys)``, so that no token sees beyond itself."""
        visible = torch.arange(keys, device=where.device)[None, None, :] <= where[:, :, None]
        mask = torch.zeros(visible.shape, dtype=self._like.dtype, device=where.device)
        return mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)

    def _gather(self, rows: IntArray) -> IntArray:
        """Bring ``rows`` into the first slots, in whatever order; return it."""
        slots = self._slots[rows]
        outside = rows[slots >= len(rows)]
        if len(outside):
            free = np.setdiff1d(self._every[: len(rows)], slots)
            owners = self._owners[free]
            one, other = self._there(free), self._there(self._slots[outside])
            self._held.swap(one, other, int(self._lengths.max()))
            self._slots[owners], self._slots[outside] = self._slots[outside], free
            self._owners[self._slots] = self._every[: len(self._slots)]
        return self._slots[rows]

    def _is_long(self, length: int) -> bool:
        """Tell whether a text is longer than the window of the layers, which keys and values of all of it exceed."""
        if self._window is None or length <= self._window:
            return False
        if not self._warned:
            self._warned = True
            self._refuse(f"it attends to {self._window} tokens at a time, and a text has more")
        return True

    def _uncached(self, input_ids: IntArray, lengths: IntArray) -> torch.Tensor:
        device = self._like.device
        width = int(lengths.max())
        sizes = _tensor(lengths, device)
        output = _plain_hidden(self._model, _tensor(input_ids[:, :width], device), sizes)
        return output[torch.arange(len(lengths), device=device), sizes - 1]

    def _grow(self, rows: int, width: int) -> None:
        have_rows, have_width = self._ids.shape
        if self._empty and (rows, width) != (have_rows, have_width):  # smaller or larger: as by a new cache
            have_rows, have_width, self._held = 0, 0, self._nothing()
        self._empty = False
        if rows <= have_rows and width <= have_width:
            return
        ids = np.zeros((max(rows, have_rows), max(width, have_width)), dtype=np.int64)
        ids[:have_rows, :have_width] = self._ids[:have_rows, :have_width]
        lengths = np.zeros(len(ids), dtype=np.int64)
        lengths[:have_rows] = self._lengths[:have_rows]
        slots = np.arange(len(ids))
        slots[:have_rows] = self._slots[:have_rows]
        self._ids, self._lengths, self._slots = ids, lengths, slots
        self._every = np.arange(max(ids.shape))
        self._owners = np.argsort(slots)
        self._first = torch.arange(len(ids), device=self._like.device)
        self._held.resize(len(ids), ids.shape[1] + SCRATCH if self.graphed else ids.shape[1])
        self._graphs = None

    def _find_way(self) -> None:
        """Try the cached path, with graphs and without, against the plain one."""
        self.graphed = self._network is not None and graphs_run_on(self._like.device)
        trouble = self._trouble()
        if trouble and self.graphed:
            warnings.warn(
                f"{type(self._model).__name__} writes without CUDA graphs ({trouble}). The numbers are right; it is "
                "slower.",
                stacklevel=2,
            )
            self.graphed = False
            trouble = self._trouble()
        self.usable = self._refuse(trouble) if trouble else True

    def _trouble(self) -> str:
        """Return what is wrong with the cached path, if anything: an architecture may keep its state in another way."""
        probe = _PrefixCache(self._model, self._network)
        probe.usable, probe.graphed, probe._window = True, self.graphed, None
        vocab_size = int(cast(torch.Tensor, self._model.get_input_embeddings().weight).shape[0])
        ids = np.random.default_rng(0).integers(0, vocab_size, size=(2, 6))
        try:
            # A prompt each; a token each at different places; one goes on while the other starts again.
            for lengths in (np.array([3, 2]), np.array([4, 3]), np.array([6, 6])):
                if lengths[0] == 6:
                    ids[0] = ids[0, ::-1].copy()
                cached = probe.last_hidden(ids, lengths, np.arange(2))
                if not _close(cached, self._uncached(ids, lengths), self._model.dtype):
                    return "with it, the numbers are different"
        except Exception as error:  # whatever goes wrong here, the architecture is not made for it
            return f"{type(error).__name__}: {error}"
        return ""

    def _refuse(self, reason: str) -> bool:
        warnings.warn(
            f"{type(self._model).__name__} runs without the prefix cache, re-reading the text for every token "
            f"({reason}). The numbers are right; it is slow.",
            stacklevel=2,
        )
        return False


class _RaggedCache(Cache):
    """What the attention layers of transformers write to and read from, row by row at positions of their own.

    The buffers are ``(rows, heads, capacity, head_size)`` a layer.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._size = (0, 0)
        self._rows = self._where = torch.zeros(0, dtype=torch.int64)
        self._length = 0
        self._mask: torch.Tensor | None = None

    def prepare(
        self, rows: torch.Tensor, positions: torch.Tensor, length: int, mask: torch.Tensor | None, *, prefill: bool
    ) -> None:
        """Say where the next forward writes, and what it reads; as ``KeyValues.prepare``."""
        self._rows, self._where, self._length, self._mask = rows, positions, 0 if prefill else length, mask

    def run(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of new tokens ``(batch, new)``."""
        mask = self._mask
        if mask is None:  # given all the same, so that transformers derives none from a cache it cannot read
            fresh = self._length == 0
            places = torch.arange(ids.shape[1] if fresh else self._length, device=ids.device)
            mask = torch.zeros(len(ids), ids.shape[1], len(places), dtype=model.dtype, device=ids.device)
            if fresh:
                mask.masked_fill_(places[None, :] > places[:, None], torch.finfo(mask.dtype).min)
        output: torch.Tensor = _trunk(model)(
            input_ids=ids, attention_mask=mask[:, None], position_ids=self._where, past_key_values=self, use_cache=True
        ).last_hidden_state
        return output

    def resize(self, rows: int, capacity: int) -> None:
        """Enlarge the buffers, keeping what they hold."""
        self._size = (rows, capacity)
        for buffers in (self._keys, self._values):
            for index, old in enumerate(buffers):
                buffers[index] = self._buffer(old)
                buffers[index][: old.shape[0], :, : old.shape[2]] = old

    def swap(self, one: torch.Tensor, other: torch.Tensor, length: int) -> None:
        """Exchange rows, as far as ``length``."""
        for buffer in (*self._keys, *self._values):
            held = buffer[one, :, :length]
            buffer[one, :, :length] = buffer[other, :, :length]
            buffer[other, :, :length] = held

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values ``(batch, heads, new, head_size)``; return those of the rows from their start."""
        while len(self._keys) <= layer_idx:
            self._keys.append(self._buffer(key_states))
            self._values.append(self._buffer(value_states))
        result = []
        for buffer, states in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            buffer[self._rows[:, None], :, self._where] = states.transpose(1, 2)
            result.append(buffer[: len(states), :, : self._length] if self._length else states)
        return result[0], result[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given, never derived from the cache."""
        return 0

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        rows, capacity = self._size
        return like.new_zeros(rows, like.shape[1], capacity, like.shape[3])


class _Watch:
    """Notices when a model's weights change, and when its modules do.

    Torch counts in-place writes, and storage that is swapped has another address. Writes through ``.data`` do neither
    (polyak_update of stable-baselines3 makes such), so a few numbers of every parameter are compared too, from its
    diagonal: a write to some rows or columns is likely to be among them, one to a whole parameter certain. Views of
    the parameters are held, so that no address can come back under another parameter.
    """

    def __init__(self, model: nn.Module, *, adapted: bool = True) -> None:
        self._model = model
        self._adapted = adapted  # else the weights of adapters do not count
        self._holders: list[dict[str, Any]] = []  # of modules and parameters
        self._hooks: list[Any] = []
        self._held: list[Any] = []
        self._parameters: list[nn.Parameter] = []
        self._counted: list[nn.Parameter] = []  # those whose writes torch counts
        self._places: list[int] = []
        self.moved = False  # whether addresses were among what changed
        self._versions: list[int] = []
        self._samples: list[Any] = []  # views of the parameters, as arrays where the processor computes
        self._numbers: IntArray = np.zeros(0, dtype=np.int64)

    def restructured(self) -> bool:
        """Tell whether modules, parameters or hooks were put in or taken out since the last call; True at first."""
        held = [value for holder in self._holders for value in holder.values()]
        held += [len(hooks) for hooks in self._hooks if hooks]
        if self._held and len(held) == len(self._held) and all(map(operator.is_, held, self._held)):
            return False
        modules = list(self._model.modules())
        holders: list[dict[str, Any]] = [d for m in modules for d in (m._modules, m._parameters)]
        self._holders = [holder for holder in holders if holder]
        self._hooks = [hooks for m in modules for hooks in hooks_of(m)]
        self._held = [value for holder in self._holders for value in holder.values()]
        self._held += [len(hooks) for hooks in self._hooks if hooks]
        named = self._model.named_parameters()
        self._parameters = [p for name, p in named if self._adapted or ".lora_" not in name]
        self._counted = [p for p in self._parameters if not p.is_inference()]
        self._places = []
        return True

    def changed(self) -> bool:
        """Tell whether the parameters have changed since the last call; True at first."""
        places = [p.data_ptr() for p in self._parameters]
        versions = [p._version for p in self._counted]
        self.moved = places != self._places
        if self.moved:
            samples = [_as_integers(_diagonal(p.detach())) for p in self._parameters]
            # not by .numpy(), after which a storage cannot be resized, as FSDP does
            self._samples = [np.from_dlpack(s) for s in samples] if all(s.is_cpu for s in samples) else samples
        numbers = _joined(self._samples)
        same = (places, versions) == (self._places, self._versions) and np.array_equal(numbers, self._numbers)
        self._places, self._versions, self._numbers = places, versions, numbers
        return not same


def _joined(parts: Sequence[Any]) -> IntArray:
    """Return the numbers of many small arrays or tensors, as one array."""
    # of arrays this takes a fifth of the time that torch takes over tensors
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(list(parts)).cpu().numpy()


def _as_integers(sample: torch.Tensor) -> torch.Tensor:
    """Return the bits of numbers as integers, by which a NaN is what it was."""
    return sample.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[sample.element_size()])


def _diagonal(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of up to 3 numbers along a tensor's diagonal.

    No more, since each is read from memory that nothing else has touched lately, before every token.
    """
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    while tensor.ndim > 1:
        tensor = tensor.diagonal()
    return tensor[:: max(1, (len(tensor) + 1) // 2)]


def _window(config: Any) -> int | None:
    """Return how many tokens the layers with the shortest sight attend to, or None where all see the whole text."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    names = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def _heated(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1.0 else logits / temperature


def log_softmax(logits: torch.Tensor, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return ``log softmax(logits / temperature)`` as a NumPy array, same shape."""
    return cast(NDArray[np.float32], torch.log_softmax(_heated(logits, temperature), dim=-1).cpu().numpy())
