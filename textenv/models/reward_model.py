"""A reward model: the trunk of a causal language model, and a scalar read at the last token of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from textenv.data.files import make_folder, read_json, write_atomically, write_json
from textenv.data.values import as_conversation
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import BUNDLED, find_device, load_pretrained, quiet, resolve_model
from textenv.types import Conversation, Message, TextEnvError, short
from textenv.validation import Count, FilePath, NonNegative, validated

__all__ = ["Ensemble", "RewardModel", "bundled_reward_folder"]

_HEAD_FILE, _ABOUT_FILE = "reward_head.safetensors", "reward.json"
_TOKENS_AT_ONCE = 4096  # of one forward without gradients, padding included


def bundled_reward_folder() -> Path:
    """Return the folder of the bundled reward model."""
    return Path(str(resources.files("textenv.models") / "bundled_reward"))


class RewardModel(nn.Module):
    """A causal language model whose last hidden state is read as a score, Ouyang et al. 2022, section 3.5.

    A text is the prompt followed by the completion, read by the model's own tokenizer and followed by the
    end-of-sequence token, where the score is read. A conversation is what the tokenizer's chat template makes of it.
    A text that is too long is cut at its beginning, never at its end. Dropout is off.

    Attributes:
        lm: The language model; its output embeddings serve only an auxiliary loss.
        head: Maps hidden states to scores, ``(hidden_size) -> 1``.
        log_nu: Logarithm of Davidson's ``nu``: how often people call two texts equal. See ``training.preferences``.
        shift: Mean of the head's output on the reference samples.
        scale: Its standard deviation there; a score is ``(output - shift) / scale``.
        max_tokens: Tokens read of a text, the end included.
        about: What its folder says beyond these: the settings and the report of its training.
    """

    @validated
    def __init__(self, lm: CausalLM, *, max_tokens: Count | None = None) -> None:
        """Put a new head on a language model, which is not copied.

        The head's weights are normal with standard deviation ``1 / sqrt(hidden_size + 1)`` (Stiennon et al. 2020,
        appendix C.1), drawn from torch's global generator; its bias is 0.

        Args:
            lm: The model to read texts with.
            max_tokens: Tokens to read of a text; None for as many as the model takes.

        Raises:
            TextEnvError: ``lm`` is no model, or ``max_tokens`` is below 1 or more than it takes.
        """
        given: Any = lm
        if not isinstance(given, CausalLM):
            raise TextEnvError(f"RewardModel(lm={short(given)}): expected a CausalLM, or RewardModel.load of a folder.")
        super().__init__()
        longest = lm.max_positions
        if max_tokens is not None and longest is not None and max_tokens > longest:
            raise TextEnvError(f"max_tokens={max_tokens}: expected a whole number from 1 to {longest}, for this model.")
        self.lm = lm
        self.model = lm.model  # registers the parameters
        self.head = nn.Linear(lm.hidden_size, 1, device=lm.device)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(lm.hidden_size + 1))
        nn.init.zeros_(self.head.bias)
        self.log_nu = nn.Parameter(torch.zeros((), device=lm.device))
        self.shift, self.scale = 0.0, 1.0
        self.max_tokens = max_tokens or longest
        self.about: dict[str, Any] = {}

    @classmethod
    @validated
    def load(
        cls, folder: FilePath = BUNDLED, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
    ) -> RewardModel:
        """Read what ``save`` wrote.

        Args:
            folder: The folder, or ``"bundled"``.
            device: Where it runs, see ``CausalLM.from_pretrained``.
            dtype: Data type of the trunk's weights; the head is in float32.

        Raises:
            TextEnvError: It is not there or no reward model.
        """
        find_device(device)  # before anything is read
        found = resolve_model(folder, hub=False)
        path = bundled_reward_folder() if found == BUNDLED else Path(found)
        if not (path / _ABOUT_FILE).is_file():
            raise TextEnvError(
                f"model={str(folder)!r} is no reward model: it has no {_ABOUT_FILE}. Expected 'bundled', or a folder "
                "that textenv reward train wrote."
            )
        try:
            about = read_json(path / _ABOUT_FILE)
            tensors = safetensors.torch.load_file(path / _HEAD_FILE)
            numbers = {name: float(about[name]) for name in ("shift", "scale", "log_nu")}
            max_tokens = about["max_tokens"]
            if not all(map(math.isfinite, numbers.values())) or not numbers["scale"] > 0:
                raise ValueError(f"{numbers}: expected finite numbers, and a scale above 0")
            if max_tokens is not None and not isinstance(max_tokens, int):
                raise TypeError(f"max_tokens is {max_tokens!r}: expected a whole number, or null")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise TextEnvError(
                f"model={str(folder)!r} cannot be read as a reward model ({type(error).__name__}: "
                f"{' '.join(str(error).split())}). Expected 'bundled', or a folder that textenv reward train wrote."
            ) from error
        trunk = CausalLM(*load_pretrained(path, device=device, dtype=dtype, reward_model=True))
        model = cls(trunk, max_tokens=max_tokens)
        given, wanted = ({k: tuple(t.shape) for k, t in each.items()} for each in (tensors, model.head.state_dict()))
        if given != wanted:
            raise TextEnvError(f"{path / _HEAD_FILE} holds {given}, expected {wanted}.")
        model.head.load_state_dict(tensors)
        model.shift, model.scale = numbers["shift"], numbers["scale"]
        model.log_nu.data.fill_(numbers["log_nu"])
        model.about = {name: value for name, value in about.items() if name not in {*numbers, "max_tokens"}}
        return model

    @validated
    def save(self, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Save trunk and tokenizer in Hugging Face format, the head as safetensors and the rest as JSON beside them.

        Args:
            folder: Where; made if it is missing.
            dtype: Data type of the saved trunk; None for its own.

        Raises:
            TextEnvError: There can be no such folder.
        """
        make_folder(folder)
        model: Any = self.model
        cast: dict[int, torch.Tensor] = {}  # by address, so that tied weights stay one
        state = {
            name: cast.setdefault(tensor.data_ptr(), tensor.to("cpu", dtype or tensor.dtype))
            for name, tensor in model.state_dict().items()
        }
        before = model.config.dtype
        model.config.dtype = dtype or before
        with quiet():
            model.save_pretrained(folder, state_dict=state)
            self.lm.tokenizer.save_pretrained(folder)
        model.config.dtype = before
        head = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        write_atomically(folder / _HEAD_FILE, safetensors.torch.save(head))
        settings = {"shift": self.shift, "scale": self.scale, "log_nu": float(self.log_nu.detach())}
        # Last: without this file the folder is no reward model.
        write_json(folder / _ABOUT_FILE, {**settings, "max_tokens": self.max_tokens, **self.about})

    def train(self, mode: bool = True) -> RewardModel:
        """Do nothing: dropout stays off, so that a score is one number."""
        return self

    def encode(self, prompts: Sequence[str | Conversation], completions: Sequence[Any]) -> list[tuple[int, ...]]:
        """Return the token ids of texts, the end included, cut at the beginning.

        Args:
            prompts: Texts or conversations.
            completions: A text, or a list of messages of the assistant, for each.

        Raises:
            TextEnvError: There is not one completion for each prompt; or a conversation and no chat template, or it
                refuses one.
        """
        lists = all(isinstance(given, Sequence) and not isinstance(given, str) for given in (prompts, completions))
        if not lists or len(prompts) != len(completions):
            raise TextEnvError(
                f"prompts={short(prompts)}, completions={short(completions)}: expected two lists, a completion for "
                "each prompt."
            )
        found: list[tuple[int, ...]] = [()] * len(prompts)
        plain: dict[int, str] = {}
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if isinstance(prompt, str) and isinstance(completion, str):
                plain[row] = prompt + completion
            else:
                found[row] = self._conversation_ids(_messages(prompt, "user") + _messages(completion, "assistant"))
        for row, ids in zip(plain, self.lm.encode_many(list(plain.values())), strict=True):
            found[row] = (*ids, self.lm.eos_ids[0])
        return [ids[-self.max_tokens :] if self.max_tokens else ids for ids in found]

    def _conversation_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        *before, last = messages
        # Two messages of the assistant in a row: the completion continues the last message of the prompt.
        if before and before[-1]["role"] == last["role"] == "assistant":
            last = {**last, "content": before.pop()["content"] + last["content"]}
        return (*self.lm.encode_conversation((*before, last))[1], self.lm.eos_ids[-1])

    def forward(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the head's output for encoded texts, with gradients, before ``shift`` and ``scale``; ``(n,)``.

        Texts are read in groups of similar length, so that little of a forward is padding.
        """
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        outputs = [self._outputs([ids[row] for row in part]) for part in _parts(order, ids)]
        back = torch.tensor(np.argsort(order), device=self.lm.device)
        return torch.cat(outputs)[back] if outputs else torch.zeros(0, device=self.lm.device)

    def _outputs(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        rows, lengths = padded(ids, self.lm.pad_id, self.lm.device)
        ends = torch.arange(len(rows), device=lengths.device) * rows.shape[1] + lengths - 1
        last = self.lm.hidden_states(rows, lengths, ends)
        output: torch.Tensor = self.head(last.to(self.head.weight.dtype))[:, 0].float()
        return output

    def scores(self, prompts: Sequence[str | Conversation], completions: Sequence[Any]) -> NDArray[np.float32]:
        """Return the score of each completion, shape ``(n,)``; see ``encode`` for the arguments."""
        # In this order: leaving inference mode turns gradients on.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.lm.device.type, enabled=False):
            outputs = self(self.encode(prompts, completions))
        found: NDArray[np.float32] = ((outputs - self.shift) / self.scale).cpu().numpy()
        return found

    def normalize(self, prompts: Sequence[str | Conversation], completions: Sequence[Any]) -> None:
        """Set ``shift`` and ``scale`` so that the scores of these samples have mean 0 and (population) variance 1.

        Raises:
            TextEnvError: They all have the same score.
        """
        self.shift, self.scale = 0.0, 1.0
        outputs = self.scores(prompts, completions).astype(np.float64)
        if len(outputs) < 2 or not outputs.std() > 1e-6 * np.abs(outputs).max():  # equal but for rounding
            raise TextEnvError(f"{len(outputs)} reference samples: expected at least two of different scores.")
        self.shift, self.scale = float(outputs.mean()), float(outputs.std())


class Ensemble:
    """Several reward models as one.

    Attributes:
        members: The models.
        combine: ``"mean"``; ``"min"``, the lowest; or ``"variance"``, the mean less ``penalty`` times the variance
            over members (Coste et al. 2023: worst-case and uncertainty-weighted optimization).
        penalty: That factor.
    """

    @validated
    def __init__(
        self,
        members: Sequence[RewardModel],
        combine: Literal["mean", "min", "variance"] = "mean",
        penalty: NonNegative = 0.5,
    ) -> None:
        """Put models together.

        Raises:
            TextEnvError: There are none, or the way to combine them is unknown.
        """
        if not members or not all(isinstance(member, RewardModel) for member in members):
            raise TextEnvError(f"Ensemble(members={short(members)}): expected at least one RewardModel.")
        self.members, self.combine, self.penalty = list(members), combine, penalty

    def member_scores(self, prompts: Sequence[str | Conversation], completions: Sequence[Any]) -> NDArray[np.float32]:
        """Return the score that each member gives, shape ``(members, n)``."""
        return np.stack([member.scores(prompts, completions) for member in self.members])

    def scores(self, prompts: Sequence[str | Conversation], completions: Sequence[Any]) -> NDArray[np.float32]:
        """Return the combined score of each completion, shape ``(n,)``."""
        each = self.member_scores(prompts, completions)
        if self.combine == "min":
            lowest: NDArray[np.float32] = each.min(axis=0)
            return lowest
        mean: NDArray[np.float32] = each.mean(axis=0)
        return mean if self.combine == "mean" else mean - np.float32(self.penalty) * each.var(axis=0)


def padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids padded on the right, ``(batch, time)``, and their lengths, ``(batch,)``."""
    rows = torch.full((len(ids), max(map(len, ids))), pad)
    for row, tokens in enumerate(ids):
        rows[row, : len(tokens)] = torch.tensor(tokens)
    return rows.to(device), torch.tensor([len(tokens) for tokens in ids], device=device)


def _messages(said: str | Conversation | Sequence[Message], role: str) -> tuple[Message, ...]:
    return ({"role": role, "content": said},) if isinstance(said, str) else as_conversation(said, role)


def _parts(order: Sequence[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut rows in order of length into groups whose padded size is bounded and whose padding is small."""
    parts: list[list[int]] = []
    for row in order:
        longest = len(ids[row])  # of its group so far, since they come in order
        part = parts[-1] if parts else []
        fits = (len(part) + 1) * longest <= _TOKENS_AT_ONCE
        if part and fits and longest <= 1.5 * len(ids[part[0]]) + 4:
            part.append(row)
        else:
            parts.append([row])
    return parts
