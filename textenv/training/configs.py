"""Settings of pretraining, supervised fine-tuning and reward-model training; importing them imports no torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from annotated_types import Interval

from textenv.data.outputs import OutputFolder
from textenv.types import TextEnvError
from textenv.validation import Count, LearningRate, NonNegative, Positive, Probability, Seed, validate

__all__ = ["PretrainConfig", "RewardModelConfig", "SftConfig", "TrainingConfig"]

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
SaveDtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of every training by gradient descent on data.

    Attributes:
        learning_rate: Peak; linear warm-up, then linear decay to zero.
        warmup: Share of the steps spent warming up.
        weight_decay: Of the matrices, decoupled (AdamW).
        precision: ``"bfloat16"`` runs the forward pass in it; ``"auto"`` where the device multiplies it natively.
        save_dtype: Data type of the saved weights.
        checkpoint_every: Steps between checkpoints.
        seed: Seeds weights that begin at random, and the order of the data.
        device: Where to train.
    """

    learning_rate: LearningRate = 5e-4
    warmup: Probability = 0.03
    weight_decay: NonNegative = 0.1
    precision: Precision = "auto"
    save_dtype: SaveDtype = "float32"
    checkpoint_every: Count = 200
    seed: Seed = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the settings, those of a derived class too."""
        validate(self)


@dataclass(frozen=True, slots=True)
class PretrainConfig(TrainingConfig):
    """Train a small causal language model from scratch on text files.

    Attributes:
        files: Text to learn from: .txt (documents between blank lines), .jsonl, .json, .csv or .parquet (``text``, or
            ``prompt`` and ``completion``). A file named twice counts twice.
        out: Folder of the model; checkpoints go into its ``checkpoints``.
        tokenizer_files: Text that the tokenizer is trained on; the same files if empty.
        vocab_size: Entries of the byte-level BPE vocabulary, special tokens included.
        hidden_size: Width of the model.
        intermediate_size: Width inside its feed-forward layers.
        layers: Number of blocks.
        heads: Attention heads a block.
        context: Tokens a training sequence.
        max_position: Longest sequence that the model's configuration allows.
        batch_size: Sequences a step.
        epochs: Passes over the text.
    """

    files: tuple[Path, ...]
    out: OutputFolder
    tokenizer_files: tuple[Path, ...] = ()
    vocab_size: Count = 4096
    hidden_size: Count = 256
    intermediate_size: Count = 640
    layers: Count = 4
    heads: Count = 4
    context: Count = 128
    max_position: Count = 512
    batch_size: Count = 16
    epochs: Positive = 2.0
    _: KW_ONLY
    learning_rate: LearningRate = 2e-3
    warmup: Probability = 0.02
    checkpoint_every: Count = 500

    def __post_init__(self) -> None:
        """Check the settings."""
        TrainingConfig.__post_init__(self)  # slots: a new class, which super() does not know
        if self.hidden_size % (2 * self.heads):
            raise TextEnvError(
                f"hidden_size={self.hidden_size}, heads={self.heads}: expected heads of one even width each."
            )
        if self.context > self.max_position:
            raise TextEnvError(f"context={self.context} exceeds max_position={self.max_position}.")


@dataclass(frozen=True, slots=True)
class SftConfig(TrainingConfig):
    """Fine-tune a causal language model on prompts and completions or conversations, with the loss on what it writes.

    Attributes:
        model: ``"bundled"``, ``"smollm2"``, a folder or a Hugging Face id to start from.
        files: Files of records with ``prompt`` and ``completion``, or with ``messages``: .jsonl, .json, .csv or
            .parquet; for ``textenv sft`` also feedback stores (.db) with demonstrations. Messages go through the
            tokenizer's chat template; one that has none gets a plain one, which is saved with it.
        out: Folder of the fine-tuned model.
        validation: A file of the same form to measure the loss on after each epoch.
        epochs: Passes over the pairs.
        batch_size: Pairs a step.
        max_tokens: Longer pairs and conversations are cut after so many tokens, or as many as the model takes.
        train_on: ``"assistant"`` learns completions and the assistant's messages, with the token that ends each;
            ``"both"`` prompts and everybody's messages too.
        group_by_length: Make steps of pairs of similar length, which leaves less padding to compute where lengths
            differ much.
    """

    model: str
    files: tuple[Path, ...]
    out: OutputFolder
    validation: Path | None = None
    epochs: Count = 3
    batch_size: Count = 32
    max_tokens: Count = 256
    train_on: Literal["assistant", "both"] = "assistant"
    group_by_length: bool = False


@dataclass(frozen=True, slots=True)
class RewardModelConfig(TrainingConfig):
    """How a reward model is trained on rankings.

    Attributes:
        model: ``"bundled"``, ``"smollm2"``, a folder or a Hugging Face id of a causal language model to start
            from; or the folder of a reward model, which learns on.
        loss: ``"pairs"``: all pairs of each ranking (Bradley-Terry). ``"plackett_luce"``: each ranking as choices of
            the best of what is left, which of a best-of-k is the choice. ``"regression"``: Bradley-Terry scores are
            fitted to the texts first, and the model learns these.
        ties: How ``"pairs"`` takes ties: ``"davidson"`` as an outcome whose frequency is learned, ``"half"`` as half a
            comparison for either side.
        error_rate: Share of judgements taken as made at random, in ``"pairs"``.
        center_rewards_coefficient: Factor of the mean squared sum of a pair's scores, which keeps scores around 0.
        layers: Blocks of the trunk to keep, from the bottom; None for all.
        max_tokens: Tokens read of a text; None for as many as the model takes.
        token_dropout: Share of a text's tokens, its first and last aside, that are left out at random while training.
        epochs: Passes over the rankings.
        batch_size: Texts a step. The rankings of the same texts share a step; those of many texts may exceed it.
    """

    model: str = "bundled"
    loss: Literal["pairs", "plackett_luce", "regression"] = "pairs"
    ties: Literal["davidson", "half"] = "davidson"
    error_rate: ShareBelowOne = 0.0
    center_rewards_coefficient: NonNegative = 0.01
    layers: Count | None = None
    max_tokens: Count | None = None
    token_dropout: ShareBelowOne = 0.0
    epochs: Count = 1
    batch_size: Count = 64
    _: KW_ONLY
    learning_rate: LearningRate = 1e-4
    warmup: Probability = 0.05
    checkpoint_every: Count = 100
