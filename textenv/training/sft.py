"""Phase 1 of RLHF, second half: supervised fine-tuning on prompts and completions, or on conversations.

The result is a folder in Hugging Face format (safetensors, tokenizer). A run can be killed at any moment: started again
with the same settings it goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textenv.data.files import locked
from textenv.models.causal_lm import CausalLM
from textenv.models.chat import PLAIN_TEMPLATE
from textenv.models.loading import resolve_model, save_pretrained
from textenv.training.configs import SftConfig
from textenv.training.examples import Example, collate, encode_examples
from textenv.training.loop import has_begun, minimize, permutation, seeded
from textenv.training.next_token import TokenBatch, mean_next_token_loss, step_losses
from textenv.training.texts import Pair, read_examples
from textenv.types import TextEnvError

__all__ = ["sft", "with_template"]

_SORTED_TOGETHER = 32  # steps whose examples are sorted by length


def sft(config: SftConfig) -> Path:
    """Fine-tune a causal language model on pairs or conversations, with the loss on what the model is to write.

    Of a pair that is the completion, of a conversation every message of the assistant. It is followed by the token that
    ends it, which is learned too, and is encoded as a policy writes it: as tokens that continue those of its prompt, of
    which none spans the two.

    Returns:
        The model's folder, ``config.out``.

    Raises:
        TextEnvError: The model cannot be loaded, a file cannot be read or holds nothing to learn, a prompt leaves no
            room for its completion, or the folder holds a run with other settings.
    """
    config = dataclasses.replace(config, model=resolve_model(config.model))
    with locked(config.out):
        has_begun(config.out, config, "sft")
        with seeded(config):
            return _sft(config)


def with_template(lm: CausalLM, files: Sequence[Path]) -> CausalLM:
    """Return a model as ``sft`` takes it: with a plain chat template if it has none and files hold conversations.

    Args:
        lm: The model; its tokenizer is given the template.
        files: What is to be learned.

    Raises:
        TextEnvError: A file cannot be read.
    """
    records = (found for path in files for _, found in read_examples(path))
    if lm.tokenizer.chat_template or all(isinstance(found, Pair) for found in records):
        return lm
    lm.tokenizer.chat_template = PLAIN_TEMPLATE
    return CausalLM(lm.model, lm.tokenizer)


def _sft(config: SftConfig) -> Path:
    lm = with_template(CausalLM.from_pretrained(config.model), config.files)
    model: Any = lm.model
    pad = lm.pad_id
    limit = config.max_tokens if lm.max_positions is None else min(config.max_tokens, lm.max_positions)
    examples = encode_examples(lm, config.files, limit, train_on=config.train_on)
    held_out: list[Example] = []
    if config.validation:
        held_out = encode_examples(lm, (config.validation,), limit, train_on=config.train_on)
    if not examples:
        raise TextEnvError(f"files={[str(path) for path in config.files]}: they hold no pairs and no conversations.")
    per_epoch = math.ceil(len(examples) / config.batch_size)
    lengths = tuple(len(example.ids) for example in examples)

    def batch(step: int) -> TokenBatch:
        epoch, index = divmod(step, per_epoch)
        return collate([examples[i] for i in _batches(config, epoch, lengths)[index]], pad)

    def validate(steps_done: int) -> str:
        if not held_out or steps_done % per_epoch:
            return ""
        size = config.batch_size  # which fits in memory
        batches = [collate(held_out[i : i + size], pad) for i in range(0, len(held_out), size)]
        return f"validation {mean_next_token_loss(model, batches):.4f}"

    steps = per_epoch * config.epochs
    minimize(model, step_losses(model, batch), steps, config, config.out, name="sft", after_step=validate)
    save_pretrained(config.out, model.eval().to("cpu", getattr(torch, config.save_dtype)), lm.tokenizer)
    return config.out


@functools.lru_cache(maxsize=1)
def _batches(config: SftConfig, epoch: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Return the places of the examples of each step of an epoch."""
    order, size = permutation(config.seed, epoch, len(lengths)).tolist(), config.batch_size
    if not config.group_by_length:
        return [order[at : at + size] for at in range(0, len(order), size)]
    several = _SORTED_TOGETHER * size
    parts = (order[at : at + several] for at in range(0, len(order), several))
    alike = [place for part in parts for place in sorted(part, key=lengths.__getitem__)]
    batches = [alike[at : at + size] for at in range(0, len(alike), size)]
    return [batches[place] for place in permutation(config.seed, epoch, len(batches))]
