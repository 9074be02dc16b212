"""The texts that rankings compare: keys that tell them apart, and a Bradley-Terry score of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import torch

from textenv.data.files import to_json
from textenv.training.preferences import pair_loss
from textenv.types import Conversation, Ranking

__all__ = ["Text", "columns", "fit_scores", "group_by_texts", "text_key", "texts_of"]

Text: TypeAlias = tuple[str | Conversation, str]
"""A prompt and a completion."""


def texts_of(ranking: Ranking) -> list[Text]:
    """Return the texts that a ranking ranks."""
    return [(ranking.prompt, completion) for completion in ranking.completions]


def text_key(text: Text) -> str:
    """Return what tells texts apart; a conversation is not hashable."""
    prompt, completion = text
    return to_json([prompt if isinstance(prompt, str) else [dict(message) for message in prompt], completion])


def columns(texts: Sequence[Text]) -> tuple[list[str | Conversation], list[str]]:
    """Return the prompts and the completions of texts."""
    return [prompt for prompt, _ in texts], [completion for _, completion in texts]


def group_by_texts(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """Return the rankings in groups that rank the same completions of a prompt, so that each is read once for all."""
    groups: dict[tuple[str, ...], list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        groups[tuple(sorted(text_key(text) for text in texts_of(ranking)))].append(ranking)
    return list(groups.values())


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
