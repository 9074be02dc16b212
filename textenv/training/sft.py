"""Phase 1 of RLHF, second half: supervised fine-tuning on prompts and completions.

The result is a folder in Hugging Face format (safetensors, tokenizer). A run can be killed at any moment: started again
with the same settings it goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from textenv.data.files import locked
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import resolve_model, save_pretrained
from textenv.training.configs import SftConfig
from textenv.training.loop import has_begun, minimize, permutation, seeded
from textenv.training.next_token import IGNORED_LABEL, TokenBatch, mean_next_token_loss, step_losses
from textenv.training.texts import read_pairs
from textenv.types import TextEnvError

__all__ = ["collate_pairs", "encode_pairs", "sft"]

EncodedPair: TypeAlias = tuple[list[int], int]
"""Token ids of prompt, completion and end, and how many of them are the prompt's."""


def sft(config: SftConfig) -> Path:
    """Fine-tune a causal language model on prompt/completion pairs, with the loss on the completion only.

    The completion is followed by the end-of-sequence token, which is learned too. It is encoded as a policy writes it:
    as tokens that continue those of its prompt, of which none spans the two.

    Returns:
        The model's folder, ``config.out``.

    Raises:
        TextEnvError: The model cannot be loaded, a file cannot be read or holds no pairs, a prompt leaves no room for
            its completion, or the folder holds a run with other settings.
    """
    config = dataclasses.replace(config, model=resolve_model(config.model))
    with locked(config.out):
        has_begun(config.out, config, "sft")
        with seeded(config):
            return _sft(config)


def _sft(config: SftConfig) -> Path:
    lm = CausalLM.from_pretrained(config.model)
    model: Any = lm.model
    pad = lm.pad_id
    limit = config.max_tokens if lm.max_positions is None else min(config.max_tokens, lm.max_positions)
    pairs = encode_pairs(lm, config.files, limit)
    held_out = encode_pairs(lm, (config.validation,), limit) if config.validation else []
    if not pairs:
        raise TextEnvError(f"files={[str(path) for path in config.files]}: they hold no prompt/completion pairs.")
    per_epoch = math.ceil(len(pairs) / config.batch_size)

    def batch(step: int) -> TokenBatch:
        epoch, index = divmod(step, per_epoch)
        order = permutation(config.seed, epoch, len(pairs))
        return collate_pairs(
            [pairs[i] for i in order[index * config.batch_size : (index + 1) * config.batch_size]], pad
        )

    def validate(steps_done: int) -> str:
        if not held_out or steps_done % per_epoch:
            return ""
        size = config.batch_size  # which fits in memory
        batches = [collate_pairs(held_out[i : i + size], pad) for i in range(0, len(held_out), size)]
        return f"validation {mean_next_token_loss(model, batches):.4f}"

    steps = per_epoch * config.epochs
    minimize(model, step_losses(model, batch), steps, config, config.out, name="sft", after_step=validate)
    save_pretrained(config.out, model.eval().to("cpu", getattr(torch, config.save_dtype)), lm.tokenizer)
    return config.out


def encode_pairs(lm: CausalLM, files: Sequence[Path], max_tokens: int) -> list[EncodedPair]:
    """Return the pairs of files as token ids, of at most ``max_tokens`` each.

    Raises:
        TextEnvError: A prompt leaves no room for its completion, or no tokens continue it.
    """
    encoded = []
    for path in files:
        pairs = read_pairs(path)
        prompts, completions = [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
        for prompt, (start, rest) in zip(prompts, lm.encode_completions(prompts, completions), strict=True):
            if len(start) >= max_tokens:
                raise TextEnvError(
                    f"{path}: the prompt {prompt[:80]!r} takes {len(start)} tokens, which leaves none of {max_tokens} "
                    "for its completion; raise max_tokens (if the model takes more) or leave the pair out."
                )
            encoded.append(([*start, *rest, *lm.eos_ids[:1]][:max_tokens], len(start)))
    return encoded


def collate_pairs(pairs: Sequence[EncodedPair], pad: int) -> TokenBatch:
    """Return pairs as a batch, padded on the right by ``pad``; labels are the completions and their ends."""
    longest = max(len(ids) for ids, _ in pairs)
    inputs = torch.full((len(pairs), longest - 1), pad)
    mask = torch.zeros_like(inputs)
    labels = torch.full_like(inputs, IGNORED_LABEL)
    for row, (ids, prompt_length) in enumerate(pairs):
        length = len(ids) - 1
        inputs[row, :length] = torch.tensor(ids[:-1])
        mask[row, :length] = 1
        labels[row, prompt_length - 1 : length] = torch.tensor(ids[prompt_length:])
    return TokenBatch(inputs, mask, labels)
