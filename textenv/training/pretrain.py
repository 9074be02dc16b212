"""Phase 1 of RLHF, first half: pretrain a small causal language model on text files.

The result is a folder in Hugging Face format (safetensors, tokenizer). A run can be killed at any moment: started again
with the same settings it goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from textenv.data.files import locked
from textenv.models.loading import load_tokenizer, save_pretrained
from textenv.training.configs import PretrainConfig
from textenv.training.loop import has_begun, minimize, permutation, seeded
from textenv.training.next_token import TokenBatch, step_losses
from textenv.training.texts import read_texts
from textenv.training.tokenizer import train_tokenizer
from textenv.types import IntArray, TextEnvError

__all__ = ["pretrain"]

_TEXTS_PER_CALL = 1000  # of the tokenizer


def pretrain(config: PretrainConfig) -> Path:
    """Train a Llama-shaped model from scratch by next-token prediction, and save it with its tokenizer.

    Documents are joined with the end-of-sequence token between them and cut into sequences of ``context`` tokens.

    Returns:
        The model's folder, ``config.out``.

    Raises:
        TextEnvError: The files hold too little text for one batch, or cannot be read, or the folder holds a run with
            other settings.
    """
    with locked(config.out):
        begun = has_begun(config.out, config, "pretrain")
        with seeded(config):
            return _pretrain(config, begun)


def _pretrain(config: PretrainConfig, begun: bool) -> Path:
    if begun:
        tokenizer: Any = load_tokenizer(config.out)
    else:
        tokenizer = train_tokenizer(read_texts(config.tokenizer_files or config.files), config.vocab_size)
    model = _new_model(config, tokenizer)
    sequences = _Sequences(config, _token_stream(tokenizer, read_texts(config.files)))
    steps = int(config.epochs * sequences.per_epoch) // config.batch_size
    if not steps:
        raise TextEnvError(
            f"epochs={config.epochs} of {sequences.per_epoch} sequences are less than one batch; give more."
        )
    if not begun:
        save_pretrained(config.out, tokenizer)
    minimize(model, step_losses(model, sequences.batch), steps, config, config.out, name="pretrain")
    save_pretrained(config.out, model.eval().to("cpu", getattr(torch, config.save_dtype)), tokenizer)
    return config.out


def _new_model(config: PretrainConfig, tokenizer: Any) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_position,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class _Sequences:
    """A stream of tokens, cut into training sequences at an offset and in an order that differ from epoch to epoch.

    Attributes:
        per_epoch: Number of sequences in an epoch.
    """

    def __init__(self, config: PretrainConfig, stream: IntArray) -> None:
        self._config, self._stream = config, stream
        self._width = config.context + 1  # with the label of the last token
        self.per_epoch = len(stream) // self._width
        if self.per_epoch < config.batch_size:
            raise TextEnvError(
                f"The files hold {len(stream):,} tokens, too few for one batch of {config.batch_size} x {self._width}. "
                "Give more text, or lower batch_size or context."
            )

    def batch(self, step: int) -> TokenBatch:
        """Return the sequences of a step."""
        config = self._config
        rows = [self._sequence(index) for index in range(step * config.batch_size, (step + 1) * config.batch_size)]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        return TokenBatch(tokens[:, :-1], torch.ones_like(tokens[:, :-1]), tokens[:, 1:])

    def _sequence(self, index: int) -> IntArray:
        """Return a sequence by its number since the first epoch, ``(context + 1,)``."""
        epoch, place = divmod(index, self.per_epoch)
        rng = np.random.default_rng((self._config.seed, epoch))
        offset = int(rng.integers(0, len(self._stream) - self.per_epoch * self._width + 1))
        start = offset + int(permutation(self._config.seed, epoch, self.per_epoch)[place]) * self._width
        return self._stream[start : start + self._width]


def _token_stream(tokenizer: Any, texts: Iterator[str]) -> IntArray:
    """Return the token ids of all texts one after the other, ``(tokens,)``."""
    parts: list[IntArray] = []
    chunk: list[str] = []

    def encode_chunk() -> None:  # the tokenizer puts the end-of-sequence token before each document
        parts.extend(np.asarray(ids, dtype=np.int64) for ids in tokenizer(chunk)["input_ids"])
        chunk.clear()

    for text in texts:
        chunk.append(text)
        if len(chunk) == _TEXTS_PER_CALL:
            encode_chunk()
    if chunk:
        encode_chunk()
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
