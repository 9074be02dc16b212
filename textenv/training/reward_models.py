"""Phase 2 of RLHF: train a reward model on rankings."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textenv.data.files import locked, read_json
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import resolve_model
from textenv.models.reward_model import RewardModel
from textenv.training.configs import RewardModelConfig
from textenv.training.loop import compare_settings, minimize, permutation, seeded, settings_of
from textenv.training.preferences import center_loss, plackett_luce_loss, rank_tensor, ranking_loss
from textenv.training.ranked_texts import Text, columns, fit_scores, group_by_texts, text_key, texts_of
from textenv.types import Ranking, TextEnvError
from textenv.validation import build

__all__ = ["RewardModelReport", "pair_accuracy", "train_reward_model"]

_REFERENCES = 1000  # texts of the rankings to normalize scores on, where no others are given


@dataclass(frozen=True, slots=True)
class RewardModelReport:
    """What a training did; it is also in ``reward.json`` of its folder.

    Attributes:
        rankings: Rankings learned from.
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
    the training, scores are normalized to mean 0 and variance 1 on the reference samples. Started again, a run that was
    killed goes on; one that is done returns its report.

    Args:
        config: The settings.
        rankings: What to learn.
        validation: Rankings to measure the accuracy on after each epoch.
        reference: Prompts and completions that the scores are normalized on, samples of the policy to be trained, say;
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
    config = dataclasses.replace(config, model=resolve_model(config.model))
    digest = hashlib.sha256(repr([dataclasses.astuple(ranking) for ranking in rankings]).encode()).hexdigest()
    data = {"command": "reward", "rankings_sha256": digest}
    path = out / "reward.json"
    with locked(out):
        if path.exists():
            found = read_json(path, "settings", "report")
            compare_settings(out, {**settings_of(config), **data}, found["settings"])
            return build(RewardModelReport, found["report"], what=f"The report in {path} has")
        with seeded(config):
            return _train(config, rankings, list(validation), list(reference), out=out, data=data)


def _train(
    config: RewardModelConfig,
    rankings: Sequence[Ranking],
    validation: Sequence[Ranking],
    reference: Sequence[Text],
    *,
    out: Path,
    data: Mapping[str, Any],
) -> RewardModelReport:
    started = time.perf_counter()
    model = _load_model(config)
    objective = _Objective(config, model, rankings)
    steps = objective.steps

    def validate(steps_done: int) -> str:
        if not validation or (steps_done < len(steps) and steps[steps_done][0] == steps[steps_done - 1][0]):
            return ""
        accuracy = pair_accuracy(model, validation)
        return f"validation accuracy {'-' if accuracy is None else f'{accuracy:.4f}'}"

    loss = minimize(model, objective.loss_at, len(steps), config, out, name="reward", data=data, after_step=validate)
    texts = list(objective.texts.values())
    drawn = permutation(config.seed, config.epochs, len(texts))[:_REFERENCES]
    model.normalize(*columns(reference or [texts[index] for index in drawn]))
    report = RewardModelReport(
        rankings=len(rankings),
        comparisons=sum(len(ranking.pairs()) for ranking in rankings),
        texts=len(texts),
        steps=len(steps),
        seconds=round(time.perf_counter() - started, 1),
        loss=loss,
        accuracy=pair_accuracy(model, validation) if validation else None,
    )
    model.about = {"settings": {**settings_of(config), **data}, "report": dataclasses.asdict(report)}
    model.save(out, dtype=getattr(torch, config.save_dtype))
    return report


def _load_model(config: RewardModelConfig) -> RewardModel:
    if _is_reward_model(config.model):
        model = RewardModel.load(config.model, device=config.device)
        with torch.no_grad():
            model.head.bias.sub_(model.shift)  # the head's output stays a log-odds, so it keeps its scale
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


class _Objective:
    """The loss of a reward model on rankings, step by step.

    Attributes:
        texts: The different texts of the rankings, by their keys.
        steps: The epoch of each step, and which groups of rankings it reads.
    """

    def __init__(self, config: RewardModelConfig, model: RewardModel, rankings: Sequence[Ranking]) -> None:
        self._config, self._model = config, model
        self._groups = group_by_texts(rankings)
        self.texts = {text_key(text): text for group in self._groups for text in texts_of(group[0])}
        self._ids = dict(zip(self.texts, model.encode(*columns(list(self.texts.values()))), strict=True))
        self.steps = _steps(config, [len(group[0].completions) for group in self._groups])
        self._models_ties = self._start_ties(rankings)
        self._fitted = fit_scores(rankings) if config.loss == "regression" else {}

    def _start_ties(self, rankings: Sequence[Ranking]) -> bool:
        """Tell whether ties are an outcome of their own, whose frequency ``log_nu`` is learned; set where it starts."""
        tied = [tied for ranking in rankings for _, _, tied in ranking.pairs()]
        share = sum(tied) / len(tied)
        learned = self._config.loss == "pairs" and self._config.ties == "davidson" and 0 < share < 1
        if learned and not _is_reward_model(self._config.model):
            self._model.log_nu.data.fill_(math.log(2 * share / (1 - share)))  # the share at equal scores
        self._model.log_nu.requires_grad_(learned)
        return learned

    def loss_at(self, step: int) -> tuple[torch.Tensor, int]:
        """Return the loss of a step, and how many tokens are read for it."""
        groups = [self._groups[index] for index in self.steps[step][1]]
        keys = list(dict.fromkeys(text_key(text) for group in groups for text in texts_of(group[0])))
        outputs = self._model([_drop_tokens(self._ids[key], self._config.token_dropout) for key in keys])
        if self._fitted:
            targets = torch.tensor([self._fitted[key] for key in keys], device=outputs.device)
            loss = ((outputs - targets) ** 2).mean()
        else:
            loss = self._ranking_loss([ranking for group in groups for ranking in group], keys, outputs)
        return loss, sum(len(self._ids[key]) for key in keys)

    def _ranking_loss(self, rankings: Sequence[Ranking], keys: Sequence[str], outputs: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of rankings.

        Args:
            rankings: The rankings.
            keys: Keys of the texts in them.
            outputs: The model's output for each text, shape ``(texts,)``.
        """
        config = self._config
        ranks = rank_tensor(rankings).to(outputs.device)
        index_of = {key: index for index, key in enumerate(keys)}
        indices = torch.zeros(ranks.shape, dtype=torch.int64)
        for row, ranking in enumerate(rankings):
            indices[row, : len(ranking.ranks)] = torch.tensor([index_of[text_key(text)] for text in texts_of(ranking)])
        scores = outputs[indices.to(outputs.device)]  # (rankings, k)
        if config.loss == "plackett_luce":
            losses = plackett_luce_loss(scores, ranks)
        else:
            margins = torch.tensor([ranking.margin or 0.0 for ranking in rankings], device=outputs.device)
            log_nu = self._model.log_nu if self._models_ties else None
            losses = ranking_loss(scores, ranks, margins=margins, log_nu=log_nu, error_rate=config.error_rate)
        if config.center_rewards_coefficient:
            losses = losses + config.center_rewards_coefficient * center_loss(scores, ranks)
        return losses.mean()


def _is_reward_model(model: str) -> bool:
    return (Path(model) / "reward.json").is_file()


def pair_accuracy(model: RewardModel, rankings: Sequence[Ranking]) -> float | None:
    """Return the share of the rankings' pairs without ties that a model orders as they were; equal scores count 1/2.

    None if all pairs are ties.
    """
    texts = {text_key(text): text for ranking in rankings for text in texts_of(ranking)}
    scores = dict(zip(texts, model.scores(*columns(list(texts.values()))).tolist(), strict=True))
    right: list[float] = []
    for ranking in rankings:
        each = [scores[text_key(text)] for text in texts_of(ranking)]
        right += [
            0.5 + 0.5 * float(np.sign(each[better] - each[worse]))
            for better, worse, tied in ranking.pairs()
            if not tied
        ]
    return float(np.mean(right)) if right else None


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


def _drop_tokens(ids: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Leave out a share of the tokens between the first and the last, drawn from torch's global generator."""
    if not share:
        return ids
    kept = (torch.rand(len(ids)) >= share).tolist()
    return tuple(token for place, token in enumerate(ids) if kept[place] or place in (0, len(ids) - 1))
