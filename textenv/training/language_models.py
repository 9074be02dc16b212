"""Phase 1 of RLHF: pre-train a small causal language model on text files, then fine-tune it on prompts and answers.

Both write a folder in Hugging Face format (safetensors, tokenizer) and can be killed at any moment: started again with
the same settings they go on from their last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from textenv.data.files import locked, to_json, write_json
from textenv.data.records import ROW_KINDS, kind_of, read_records, read_text
from textenv.data.values import as_text, short
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import quiet
from textenv.rollouts.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from textenv.types import IntArray, TextEnvError

__all__ = ["PretrainConfig", "SftConfig", "pretrain", "read_pairs", "read_texts", "sft", "train_tokenizer"]

END, PAD = "<|endoftext|>", "<|pad|>"
_IGNORE = -100  # the label that cross_entropy leaves out
_SETTINGS_FILE = "training.json"

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Input ids, attention mask and next-token labels, each ``(batch, time)``."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Settings of ``textenv pretrain``.

    Attributes:
        files: Text to learn: .txt (documents between blank lines), or .jsonl, .json, .csv or .parquet (``text``, or
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
        learning_rate: Peak; linear warm-up, then linear decay to zero.
        warmup: Share of the steps spent warming up.
        weight_decay: Of the matrices, decoupled (AdamW).
        precision: ``"bfloat16"`` runs the forward pass in it; ``"auto"`` where the device multiplies it natively.
        save_dtype: Data type of the saved weights.
        checkpoint_every: Steps between checkpoints.
        seed: Seeds the weights and the order of the text.
        device: Where to train.
    """

    files: tuple[Path, ...]
    out: Path
    tokenizer_files: tuple[Path, ...] = ()
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 640
    layers: int = 4
    heads: int = 4
    context: int = 128
    max_position: int = 512
    batch_size: int = 16
    epochs: float = 2.0
    learning_rate: float = 2e-3
    warmup: float = 0.02
    weight_decay: float = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    checkpoint_every: int = 500
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self, "hidden_size", "intermediate_size", "layers", "heads", "context", "max_position")
        if self.hidden_size % (2 * self.heads):
            raise TextEnvError(
                f"hidden_size={self.hidden_size}, heads={self.heads}: expected heads of one even width each."
            )
        if self.context > self.max_position:
            raise TextEnvError(f"context={self.context} exceeds max_position={self.max_position}.")


@dataclass(frozen=True, slots=True)
class SftConfig:
    """Settings of ``textenv sft``: supervised fine-tuning, with the loss on the completion only.

    Attributes:
        model: ``"bundled"``, a folder or a Hugging Face id to start from.
        files: Files with ``prompt`` and ``completion``: .jsonl, .json, .csv or .parquet.
        out: Folder of the fine-tuned model.
        validation: Such a file to measure the loss on after each epoch.
        epochs: Passes over the pairs.
        batch_size: Pairs a step.
        learning_rate: Peak; linear warm-up, then linear decay to zero.
        warmup: Share of the steps spent warming up.
        weight_decay: Of the matrices, decoupled (AdamW).
        max_tokens: Pairs are cut after so many tokens, or as many as the model takes.
        precision: ``"bfloat16"`` runs the forward pass in it; ``"auto"`` where the device multiplies it natively.
        save_dtype: Data type of the saved weights.
        checkpoint_every: Steps between checkpoints.
        seed: Seeds the order of the pairs.
        device: Where to train.
    """

    model: str
    files: tuple[Path, ...]
    out: Path
    validation: Path | None = None
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup: float = 0.03
    weight_decay: float = 0.1
    max_tokens: int = 256
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    checkpoint_every: int = 200
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self, "max_tokens")


def check(config: Config, *more: str) -> None:
    for name in ("batch_size", "checkpoint_every", *more):
        if getattr(config, name) < 1:
            raise TextEnvError(f"{name}={getattr(config, name)}: expected a whole number of at least 1.")
    for name in ("epochs", "learning_rate"):
        if not 0 < getattr(config, name) < math.inf:
            raise TextEnvError(f"{name}={getattr(config, name)}: expected a finite number above 0.")
    if not 0 <= config.warmup <= 1 or not 0 <= config.weight_decay < math.inf or config.seed < 0:
        raise TextEnvError(
            f"warmup={config.warmup}, weight_decay={config.weight_decay}, seed={config.seed}: expected a share from 0 "
            "to 1, a finite number and a whole number, none of them negative."
        )
    for name in ("precision", "save_dtype"):
        choices = ("auto", "float32", "bfloat16") if name == "precision" else ("float32", "float16", "bfloat16")
        if getattr(config, name) not in choices:
            raise TextEnvError(f"{name}={getattr(config, name)!r}: expected one of {list(choices)}.")


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """Yield the documents of ``.txt`` files (between blank lines) and of files of records (``text``, or a pair).

    Raises:
        TextEnvError: A file cannot be read, is of another kind, holds nothing, or has a record without these keys.
    """
    for path in files:
        if kind_of(path, ROW_KINDS) == ".txt":
            documents = [part.strip() for part in read_text(path).split("\n\n") if part.strip()]
            if not documents:
                raise TextEnvError(f"{path}: no text in it; expected at least one document.")
            yield from documents
        else:
            yield from (prompt + completion for prompt, completion in _pairs(path))


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return prompt and completion of each record of a file; a record with ``text`` has an empty prompt.

    Raises:
        TextEnvError: As ``read_texts``.
    """
    return list(_pairs(path))


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for where, row in read_records(path):
        try:
            if row.get("text") is not None:
                yield "", as_text(row["text"], "text")
            elif row.get("prompt") is not None and row.get("completion") is not None:
                yield as_text(row["prompt"], "prompt"), as_text(row["completion"], "completion")
            else:
                raise TextEnvError(f"{short(row)}; expected the text 'text', or the texts 'prompt' and 'completion'.")
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error


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


def pretrain(config: PretrainConfig) -> Path:
    """Train a Llama-shaped model from nothing by next-token prediction, and save it with its tokenizer.

    Documents are joined with the end-of-sequence token between them and cut into sequences of ``context`` tokens.

    Returns:
        The model's folder, ``config.out``.

    Raises:
        TextEnvError: The files hold too little text for one batch, or cannot be read, or the folder holds a run with
            other settings.
    """
    with locked(config.out):
        begun = _begun(config, "pretrain")
        with seeded(config):
            return _pretrain(config, begun)


def _pretrain(config: PretrainConfig, begun: bool) -> Path:
    if begun:
        tokenizer: Any = AutoTokenizer.from_pretrained(config.out, trust_remote_code=False)
    else:
        tokenizer = train_tokenizer(read_texts(config.tokenizer_files or config.files), config.vocab_size)
    model = LlamaForCausalLM(
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
    stream = _token_stream(tokenizer, read_texts(config.files))
    width = config.context + 1
    per_epoch = len(stream) // width
    if per_epoch < config.batch_size:
        raise TextEnvError(
            f"The files hold {len(stream):,} tokens, too few for one batch of {config.batch_size} x {width}. "
            "Give more text, or lower batch_size or context."
        )
    steps = int(config.epochs * per_epoch) // config.batch_size
    if not steps:
        raise TextEnvError(f"epochs={config.epochs} of {per_epoch} sequences are less than one batch; give more.")

    def batch(step: int) -> Batch:
        picks = range(step * config.batch_size, (step + 1) * config.batch_size)
        rows = []
        for pick in picks:
            epoch, index = divmod(pick, per_epoch)
            rng = np.random.default_rng((config.seed, epoch))
            offset = int(rng.integers(0, len(stream) - per_epoch * width + 1))
            start = offset + int(permutation(config.seed, epoch, per_epoch)[index]) * width
            rows.append(stream[start : start + width])
        window = torch.from_numpy(np.stack(rows).astype(np.int64))
        return window[:, :-1], torch.ones_like(window[:, :-1]), window[:, 1:]

    if not begun:
        _publish(config.out, tokenizer)
    optimise(model, _on_batches(model, batch), steps, config, config.out, name="pretrain")
    return _save(model, tokenizer, config)


def sft(config: SftConfig) -> Path:
    """Fine-tune a causal language model on prompt/completion pairs, with the loss on the completion only.

    The completion is followed by the end-of-sequence token, which is learnt too. It is encoded as a policy writes it:
    as tokens that continue those of its prompt, of which none spans the two.

    Returns:
        The model's folder, ``config.out``.

    Raises:
        TextEnvError: The model cannot be loaded, a file cannot be read or holds no pairs, a prompt leaves no room for
            its completion, or the folder holds a run with other settings.
    """
    with locked(config.out):
        _begun(config, "sft")
        with seeded(config):
            return _sft(config)


def _sft(config: SftConfig) -> Path:
    lm = CausalLM.from_pretrained(config.model)
    model, pad = lm.model, lm.pad_id
    limit = config.max_tokens if lm.max_positions is None else min(config.max_tokens, lm.max_positions)
    pairs = _encode_pairs(lm, config.files, limit)
    held_out = _encode_pairs(lm, (config.validation,), limit) if config.validation else []
    if not pairs:
        raise TextEnvError(f"files={[str(path) for path in config.files]}: they hold no prompt/completion pairs.")
    per_epoch = math.ceil(len(pairs) / config.batch_size)

    def batch(step: int) -> Batch:
        epoch, index = divmod(step, per_epoch)
        order = permutation(config.seed, epoch, len(pairs))
        return _collate([pairs[i] for i in order[index * config.batch_size : (index + 1) * config.batch_size]], pad)

    def after(step: int) -> str:
        if not held_out or step % per_epoch:
            return ""
        size = config.batch_size  # which fits in memory
        batches = [_collate(held_out[i : i + size], pad) for i in range(0, len(held_out), size)]
        return f"validation {_mean_loss(model, batches):.4f}"

    loss = _on_batches(model, batch)
    optimise(model, loss, per_epoch * config.epochs, config, config.out, name="sft", after=after)
    return _save(model, lm.tokenizer, config)


class Config(Protocol):
    """What the settings of every training have."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def precision(self) -> Literal["auto", "float32", "bfloat16"]: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...


def _begun(config: PretrainConfig | SftConfig, name: str) -> bool:
    """Tell whether the folder holds a run of these settings that got as far as to train; refuse one of others."""
    path = config.out / _SETTINGS_FILE
    if path.exists():
        compare_settings(config.out, {"command": name, **settings_of(config)}, json.loads(path.read_text("utf-8")))
    return path.exists() or latest_checkpoint(config.out / "checkpoints") is not None


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of a dataclass as JSON values."""
    settings: dict[str, Any] = json.loads(to_json(dataclasses.asdict(config), default=str))
    return settings


def compare_settings(folder: Path, settings: dict[str, Any], before: dict[str, Any]) -> None:
    if changed := sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key)):
        raise TextEnvError(
            f"{folder} holds a run with other settings ({', '.join(changed)} differ). Start it again with those it was "
            "started with, or give this one another folder."
        )


@contextlib.contextmanager
def seeded(config: Config) -> Iterator[None]:
    """Seed torch's global generators, and leave them to the caller as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        yield


def _token_stream(tokenizer: Any, texts: Iterator[str]) -> IntArray:
    parts: list[IntArray] = []
    chunk: list[str] = []

    def flush() -> None:  # the tokenizer puts the end-of-sequence token before each document
        parts.extend(np.asarray(ids, dtype=np.int64) for ids in tokenizer(chunk)["input_ids"])
        chunk.clear()

    for text in texts:
        chunk.append(text)
        if len(chunk) == 1000:
            flush()
    if chunk:
        flush()
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> IntArray:
    return np.random.default_rng((seed, epoch, size)).permutation(size)


def _encode_pairs(lm: CausalLM, files: Sequence[Path], max_tokens: int) -> list[tuple[list[int], int]]:
    """Return token ids of prompt, completion and end, and how many of them are the prompt's (labels start there)."""
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


def _collate(pairs: Sequence[tuple[list[int], int]], pad: int) -> Batch:
    longest = max(len(ids) for ids, _ in pairs)
    inputs = torch.full((len(pairs), longest - 1), pad)
    mask = torch.zeros_like(inputs)
    labels = torch.full_like(inputs, _IGNORE)
    for row, (ids, prompt_length) in enumerate(pairs):
        length = len(ids) - 1
        inputs[row, :length] = torch.tensor(ids[:-1])
        mask[row, :length] = 1
        labels[row, prompt_length - 1 : length] = torch.tensor(ids[prompt_length:])
    return inputs, mask, labels


def _loss(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    inputs, mask, labels = (tensor.to(device) for tensor in batch)
    packed = None if bool(mask.all()) else mask  # without padding the causal kernel needs no mask
    logits = model(input_ids=inputs, attention_mask=packed, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORE)


@torch.no_grad()
def _mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the loss per token of all batches together, with dropout off."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    counts = [int((labels != _IGNORE).sum()) for _, _, labels in batches]
    total = sum(float(_loss(model, batch, device)) * count for batch, count in zip(batches, counts, strict=True))
    model.train(training)
    return total / sum(counts)


def _on_batches(model: nn.Module, batch: Callable[[int], Batch]) -> Callable[[int], tuple[torch.Tensor, int]]:
    """Return the next-token loss of each step's batch."""

    def loss(step: int) -> tuple[torch.Tensor, int]:
        current = batch(step)
        return _loss(model, current, next(model.parameters()).device), int(current[1].sum())

    return loss


def optimise(
    model: nn.Module,
    loss_of: Callable[[int], tuple[torch.Tensor, int]],
    steps: int,
    config: Config,
    out: Path,
    *,
    name: str,
    about: Mapping[str, Any] | None = None,
    after: Callable[[int], str] = lambda step: "",
) -> float:
    """Minimise a loss by AdamW, with a progress bar and checkpoints; a run that was killed goes on from its last.

    Args:
        model: What is trained.
        loss_of: Given the number of a step, returns its loss and how many tokens were read for it.
        steps: How many there are.
        config: The settings.
        out: Folder of the run.
        name: What is shown at the progress bar.
        about: JSON values that tell runs apart, beside the settings: a digest of the data, say.
        after: Given the number of steps done, returns what to tell about them.

    Returns:
        The mean loss of the last hundred steps, whether or not the run was stopped in between.

    Raises:
        TextEnvError: The loss is not finite, or the folder holds a run with other settings.
    """
    device = torch.device(config.device)
    model.to(device).train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
    )
    checkpoints = out / "checkpoints"
    settings = {**settings_of(config), **(about or {})}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _SETTINGS_FILE, {"command": name, **settings})
    done = 0
    losses: deque[float] = deque(maxlen=100)
    if path := latest_checkpoint(checkpoints):
        state = load_checkpoint(path, modules={"model": model}, optimizer=optimizer)
        compare_settings(out, settings, state["config"])
        done = state["step"]
        losses.extend(state["losses"])
    half = config.precision == "bfloat16" or (config.precision == "auto" and _multiplies_bfloat16(device))
    warmup = max(1, int(config.warmup * steps))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task(name, total=steps, completed=done, note="")
        tokens, started = 0, time.perf_counter()
        for step in range(done, steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
            torch.manual_seed(_mix(config.seed, step))  # dropout is the same in a run that was stopped on the way
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss, read = loss_of(step)
            if not torch.isfinite(loss):
                raise TextEnvError(
                    f"The loss is {float(loss.detach())} at step {step} with learning_rate={config.learning_rate}. "
                    "Lower it, and train into another folder."
                )
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            average = fmean(losses)
            tokens += read
            speed = tokens / (time.perf_counter() - started)
            note = after(step + 1)
            if note:
                progress.console.print(f"{name}: step {step + 1}, training loss {average:.4f}, {note}")
            progress.update(task, advance=1, note=f"loss {average:.3f}, {speed:,.0f} tokens/s")
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
                save_checkpoint(
                    checkpoints,
                    step + 1,
                    modules={"model": model},
                    optimizer=optimizer,
                    state={"config": settings, "losses": list(losses)},
                )
                if not progress.console.is_terminal:
                    progress.console.print(
                        f"{name}: step {step + 1}/{steps}, loss {average:.4f}, {speed:,.0f} tokens/s"
                    )
    return fmean(losses)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch >= 2.12
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def _save(model: Any, tokenizer: Any, config: PretrainConfig | SftConfig) -> Path:
    _publish(config.out, model.eval().to("cpu", getattr(torch, config.save_dtype)), tokenizer)
    return config.out


def _publish(folder: Path, *parts: Any) -> None:
    """Save a tokenizer or a model with it into a folder, every file whole or absent, ``tokenizer.json`` last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary, quiet():
        for part in parts:
            part.save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == "tokenizer.json"):
            os.replace(file, folder / file.name)
