"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from textenv.types import TextEnvError

__all__ = ["END", "PAD", "train_tokenizer"]

END, PAD = "<|endoftext|>", "<|pad|>"
"""The special tokens: the one between texts, and the one that fills up rows."""


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts the end-of-sequence token, also its BOS, before every text.

    Args:
        texts: What to learn the merges from.
        vocab_size: Entries, the 256 bytes and two special tokens included.

    Raises:
        TextEnvError: ``vocab_size`` has no room for the bytes.
    """
    if vocab_size < 258:
        raise TextEnvError(f"vocab_size={vocab_size}: a byte-level vocabulary needs at least 258 entries.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
