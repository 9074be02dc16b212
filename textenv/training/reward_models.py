"""Phase 2 of RLHF: train a reward model on rankings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from textenv.data.files import locked, to_json
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import BUNDLED
from textenv.models.reward_model import RewardModel
from textenv.training.language_models import check, compare_settings, optimise, permutation, seeded, settings_of
from textenv.training.preferences import center_loss, pair_loss, plackett_luce_loss, rank_tensor, ranking_loss
from textenv.types import Conversation, Ranking, TextEnvError

__all__ = ["RewardModelConfig", "RewardModelReport", "fit_scores", "pair_accuracy", "train_reward_model"]

Text: TypeAlias = tuple[str | Conversation, str]
"""A prompt and a completion."""

_REFERENCES = 1000  # texts of the rankings to normalise scores on, where no others are given


@dataclass(frozen=True, slots=True)
class RewardModelConfig:
    """Settings of the training of a reward model.

    Attributes:
        model: ``"bundled"``, a folder or a Hugging Face id of a causal language model to start from; or the folder of
            a reward model, which learns on.
        loss: ``"pairs"``: all pairs of each ranking (Bradley-Terry). ``"plackett_luce"``: each ranking as choices of
            the best of what is left, which of a best-of-k is the choice. ``"regression"``: Bradley-Terry scores are
            fitted to the texts first, and the model learns these.
        ties: How ``"pairs"`` takes ties: ``"davidson"`` as an outcome whose readiness is learnt, ``"half"`` as half a
            comparison for either side.
        error_rate: Share of judgements taken as made at random, in ``"pairs"``.
        center_rewards_coefficient: Factor of the mean squared sum of a pair's scores, which keeps scores around 0.
        layers: Blocks of the trunk to keep, from the bottom; None for all.
        max_tokens: Tokens read of a text; None for as many as the model takes.
        token_dropout: Share of a text's tokens, its first and last aside, that are left out at random while training.
        epochs: Passes over the rankings.
        batch_size: Texts a step. The rankings of the same texts share a step; those of many texts may exceed it.
        learning_rate: Peak; linear warm-up, then linear decay to zero.
        warmup: Share of the steps spent warming up.
        weight_decay: Of the matrices, decoupled (AdamW).
        precision: ``"bfloat16"`` runs the forward pass in it; ``"auto"`` where the device multiplies it natively.
        save_dtype: Data type of the saved weights.
        checkpoint_every: Steps between checkpoints.
        seed: Seeds the head and the order of the rankings.
        device: Where to train.
    """

    model: str = BUNDLED
    loss: Literal["pairs", "plackett_luce", "regression"] = "pairs"
    ties: Literal["davidson", "half"] = "davidson"
    error_rate: float = 0.0
    center_rewards_coefficient: float = 0.01
    layers: int | None = None
    max_tokens: int | None = None
    token_dropout: float = 0.0
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)
        for name, choices in (("loss", ("pairs", "plackett_luce", "regression")), ("ties", ("davidson", "half"))):
            if getattr(self, name) not in choices:
                raise TextEnvError(f"{name}={getattr(self, name)!r}: expected one of {list(choices)}.")
        for name in ("error_rate", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a share from 0 to below 1.")
        if not 0 <= self.center_rewards_coefficient < math.inf:
            raise TextEnvError(
                f"center_rewards_coefficient={self.center_rewards_coefficient}: expected a finite number of at least 0."
            )


@dataclass(frozen=True, slots=True)
class RewardModelReport:
    """What a training did; also in ``reward.json`` of its folder.

    Attributes:
        rankings: Rankings learnt from.
        comparisons: Pairs in them whose order is known, ties included.
        texts: Different texts in them.
        steps: Optimizer steps.
        seconds: Time that the last call took.
        loss: Training loss, the mean of the last hundred steps.
        accuracy: Share of the validation's pairs without ties that the model orders as they were; None without any.
    """

    rankings: int
    comparisons: int
    texts: int
    steps: int
    seconds: float
    loss: float
    accuracy: float | None


def train_reward_model(
    config: RewardModelConfig,
    rankings: Sequence[Ranking],
    *,
    validation: Sequence[Ranking] = (),
    reference: Sequence[Text] = (),
    out: Path,
) -> RewardModelReport:
    """Train a reward model on rankings and save it, its tokenizer and its report in one folder.

    Each text is read once an epoch, all rankings of the same texts together (Ouyang et al. 2022, section 3.5). After
    the training, scores are normalised to mean 0 and variance 1 on the reference samples. Started again, a run that was
    killed goes on; one that is done returns its report.

    Args:
        config: The settings.
        rankings: What to learn.
        validation: Rankings to measure the accuracy on after each epoch.
        reference: Prompts and completions that the scores are normalised on, samples of the policy to be trained, say;
            without any, on up to 1,000 texts of ``rankings``.
        out: Folder of the reward model; checkpoints go into its ``checkpoints``.

    Returns:
        What was done.

    Raises:
        TextEnvError: There are no rankings, the model cannot be loaded, or the folder holds a run of other settings or
            rankings.
    """
    if not rankings:
        raise TextEnvError("There are no rankings to train a reward model on.")
    data = hashlib.sha256(repr([dataclasses.astuple(ranking) for ranking in rankings]).encode()).hexdigest()
    about = {"command": "reward", "rankings_sha256": data}
    path = out / "reward.json"
    with locked(out):
        if path.exists():
            found = json.loads(path.read_text("utf-8"))
            compare_settings(out, {**settings_of(config), **about}, found["settings"])
            return RewardModelReport(**found["report"])
        with seeded(config):
            return _train(config, rankings, list(validation), list(reference), out=out, about=about)


def _train(
    config: RewardModelConfig,
    rankings: Sequence[Ranking],
    validation: Sequence[Ranking],
    reference: Sequence[Text],
    *,
    out: Path,
    about: Mapping[str, Any],
) -> RewardModelReport:
    started = time.perf_counter()
    model = _start(config)
    groups = _groups(rankings)
    texts = {text_key(text): text for group in groups for text in texts_of(group[0])}
    ids = dict(zip(texts, model.encode(*_columns(list(texts.values()))), strict=True))
    steps = _steps(config, [len(group[0].completions) for group in groups])
    pairs = [len(ranking.pairs()) for ranking in rankings]
    ties = sum(tied for ranking in rankings for _, _, tied in ranking.pairs()) / sum(pairs)
    davidson = config.loss == "pairs" and config.ties == "davidson" and 0 < ties < 1
    if davidson and not (Path(config.model) / "reward.json").is_file():
        model.log_nu.data.fill_(math.log(2 * ties / (1 - ties)))  # what it would be, were all scores equal
    model.log_nu.requires_grad_(davidson)
    fitted = fit_scores(rankings) if config.loss == "regression" else {}

    def loss(step: int) -> tuple[torch.Tensor, int]:
        chosen = [groups[index] for index in steps[step][1]]
        keys = list(dict.fromkeys(text_key(text) for group in chosen for text in texts_of(group[0])))
        outputs = model([_thinned(ids[key], config.token_dropout) for key in keys])
        tokens = sum(len(ids[key]) for key in keys)
        if fitted:
            targets = torch.tensor([fitted[key] for key in keys], device=outputs.device)
            return ((outputs - targets) ** 2).mean(), tokens
        judged = [ranking for group in chosen for ranking in group]
        ranks = rank_tensor(judged).to(outputs.device)
        rows = {key: row for row, key in enumerate(keys)}
        where = torch.zeros(ranks.shape, dtype=torch.int64)
        for row, ranking in enumerate(judged):
            where[row, : len(ranking.ranks)] = torch.tensor([rows[text_key(text)] for text in texts_of(ranking)])
        scores = outputs[where.to(outputs.device)]
        if config.loss == "plackett_luce":
            losses = plackett_luce_loss(scores, ranks)
        else:
            margins = torch.tensor([ranking.margin or 0.0 for ranking in judged], device=outputs.device)
            log_nu = model.log_nu if davidson else None
            losses = ranking_loss(scores, ranks, margins=margins, log_nu=log_nu, error_rate=config.error_rate)
        if config.center_rewards_coefficient:
            losses = losses + config.center_rewards_coefficient * center_loss(scores, ranks)
        return losses.mean(), tokens

    def after(step: int) -> str:
        if not validation or (step < len(steps) and steps[step][0] == steps[step - 1][0]):
            return ""
        accuracy = pair_accuracy(model, validation)
        return f"validation accuracy {'-' if accuracy is None else f'{accuracy:.4f}'}"

    done = optimise(model, loss, len(steps), config, out, name="reward", about=about, after=after)
    drawn = permutation(config.seed, config.epochs, len(texts))[:_REFERENCES]
    model.normalise(*_columns(reference or [list(texts.values())[index] for index in drawn]))
    report = RewardModelReport(
        rankings=len(rankings),
        comparisons=sum(pairs),
        texts=len(texts),
        steps=len(steps),
        seconds=round(time.perf_counter() - started, 1),
        loss=done,
        accuracy=pair_accuracy(model, validation) if validation else None,
    )
    model.about = {"settings": {**settings_of(config), **about}, "report": dataclasses.asdict(report)}
    model.save(out, dtype=getattr(torch, config.save_dtype))
    return report


def _start(config: RewardModelConfig) -> RewardModel:
    if (Path(config.model) / "reward.json").is_file():
        model = RewardModel.load(config.model, device=config.device)
        with torch.no_grad():
            model.head.bias.sub_(model.shift)  # what the head puts out stays a log-odds, so it keeps its scale
        model.shift, model.scale = 0.0, 1.0
        model.max_tokens = config.max_tokens or model.max_tokens
    else:
        model = RewardModel(CausalLM.from_pretrained(config.model, device=config.device), max_tokens=config.max_tokens)
    if config.layers is not None:
        trunk: Any = model.model.base_model
        blocks = getattr(trunk, "layers", None)
        if blocks is None or not 1 <= config.layers <= len(blocks):
            raise TextEnvError(
                f"layers={config.layers}: expected a whole number from 1 to {len(blocks or ())}, the blocks of "
                f"{type(model.model).__name__} that textenv can leave out."
            )
        trunk.layers = blocks[: config.layers]
        model.model.config.num_hidden_layers = config.layers
    return model


def pair_accuracy(model: RewardModel, rankings: Sequence[Ranking]) -> float | None:
    """Return the share of the rankings' pairs without ties that a model orders as they were; equal scores count 1/2.

    None if all pairs are ties.
    """
    texts = {text_key(text): text for ranking in rankings for text in texts_of(ranking)}
    scores = dict(zip(texts, model.scores(*_columns(list(texts.values()))).tolist(), strict=True))
    right: list[float] = []
    for ranking in rankings:
        each = [scores[text_key(text)] for text in texts_of(ranking)]
        right += [
            0.5 + 0.5 * float(np.sign(each[better] - each[worse]))
            for better, worse, tied in ranking.pairs()
            if not tied
        ]
    return float(np.mean(right)) if right else None


def fit_scores(rankings: Sequence[Ranking], *, prior: float = 0.1) -> dict[str, float]:
    """Return the Bradley-Terry score of each text, by its key: the first of two stages, the next being regression.

    Ties are half a comparison for either side. The prior, normal with mean 0 and precision ``prior``, keeps the score
    of a text that always won finite, and sets the origin of texts that were never compared with each other.
    """
    keys = {key: row for row, key in enumerate({text_key(t): None for ranking in rankings for t in texts_of(ranking)})}
    counts: dict[tuple[int, int, bool], int] = defaultdict(int)
    for ranking in rankings:
        rows = [keys[text_key(text)] for text in texts_of(ranking)]
        for better, worse, tied in ranking.pairs():
            counts[rows[better], rows[worse], tied] += 1
    winners, losers = (torch.tensor([pair[side] for pair in counts]) for side in (0, 1))
    ties = torch.tensor([pair[2] for pair in counts])
    weights = torch.tensor(list(counts.values()), dtype=torch.float64)
    scores = torch.zeros(len(keys), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weights * pair_loss(scores[winners], scores[losers], ties)).sum() + prior / 2 * (scores**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted: list[float] = scores.tolist()
    return dict(zip(keys, fitted, strict=True))


def _groups(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """Put together the rankings of the same completions of a prompt, which are read once for all of them."""
    groups: dict[tuple[str, ...], list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        groups[tuple(sorted(text_key(text) for text in texts_of(ranking)))].append(ranking)
    return list(groups.values())


def _steps(config: RewardModelConfig, sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return the epoch and the groups of each step: as many as have ``batch_size`` texts, at least one."""
    steps: list[tuple[int, list[int]]] = []
    for epoch in range(config.epochs):
        room = 0
        for index in permutation(config.seed, epoch, len(sizes)).tolist():
            if sizes[index] > room:
                steps.append((epoch, []))
                room = max(config.batch_size, sizes[index])
            steps[-1][1].append(index)
            room -= sizes[index]
    return steps


def _thinned(ids: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Leave out a share of the tokens between the first and the last, drawn from torch's global generator."""
    if not share:
        return ids
    kept = (torch.rand(len(ids)) >= share).tolist()
    return tuple(token for place, token in enumerate(ids) if kept[place] or place in (0, len(ids) - 1))


def texts_of(ranking: Ranking) -> list[Text]:
    """Return the texts that a ranking ranks."""
    return [(ranking.prompt, completion) for completion in ranking.completions]


def text_key(text: Text) -> str:
    """Return what tells texts apart; a conversation is not hashable."""
    prompt, completion = text
    return to_json([prompt if isinstance(prompt, str) else [dict(message) for message in prompt], completion])


def _columns(texts: Sequence[Text]) -> tuple[list[str | Conversation], list[str]]:
    return [prompt for prompt, _ in texts], [completion for _, completion in texts]
