"""Losses of preferences as pure functions of scores; each cites its source and has a numeric oracle in the tests.

A score is a number of any unit; only differences count. ``ranks`` are floats: 0 is the best, equal ranks are ties,
``inf`` is below all that have a rank (in no known order), and ``nan`` fills up rows: there is no such completion.

Ties are modeled as Davidson (1970) does, "On Extending the Bradley-Terry Model to Accommodate Ties": with the lead
``d = s_i - s_j``, the outcomes "i is better", "j is better" and "tied" have the logits ``d/2``, ``-d/2`` and
``log nu``. Given that there is no tie, i is better with probability ``sigmoid(d)``, as in the model of Bradley and
Terry, whatever ``nu`` is; at equal scores a tie has probability ``nu / (nu + 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from textenv.types import Ranking, TextEnvError

__all__ = ["center_loss", "pair_loss", "plackett_luce_loss", "rank_tensor", "ranking_loss"]


def pair_loss(
    better: torch.Tensor,
    worse: torch.Tensor,
    tied: torch.Tensor | None = None,
    *,
    margin: torch.Tensor | None = None,
    log_nu: torch.Tensor | None = None,
    error_rate: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood of comparisons (Bradley & Terry 1952; ties: Davidson 1970), in nats.

    Without ties it is ``-log sigmoid(better - worse - margin)``: equation 1 of Ouyang et al. 2022, and with a margin
    equation 2 of Touvron et al. 2023 (Llama 2).

    Args:
        better: Scores, any shape.
        worse: Scores of what was judged worse, the same shape.
        tied: Whether the two were judged equal, the same shape; None where none was.
        margin: By how much ``better`` should lead, the same shape; ties have none.
        log_nu: Logarithm of Davidson's ``nu``, one number, which may be learned. None has no outcome "tied": a tie is
            half a comparison for either side (Christiano et al. 2017, section 2.2.3).
        error_rate: Share of judgements made at random, all outcomes alike: their probabilities become
            ``(1 - error_rate) * p + error_rate / outcomes`` (Christiano et al. 2017, section 2.2.3, takes 10 %).

    Returns:
        Losses, the same shape.

    Raises:
        TextEnvError: The shapes do not agree, or ``error_rate`` is not a share below 1.
    """
    tied = torch.zeros_like(better, dtype=torch.bool) if tied is None else tied
    margin = torch.zeros_like(better) if margin is None else margin
    _same_shape(better=better, worse=worse, tied=tied, margin=margin)
    if not 0 <= error_rate < 1:
        raise TextEnvError(f"error_rate={error_rate}: expected a share from 0 to below 1.")
    lead = better - worse - torch.where(tied, 0.0, margin)
    outcomes = [lead / 2, -lead / 2] if log_nu is None else [lead / 2, -lead / 2, log_nu.expand_as(lead)]
    log_probs = torch.log_softmax(torch.stack(outcomes, dim=-1), dim=-1)
    if error_rate:
        noise = torch.full_like(log_probs, math.log(error_rate / len(outcomes)))
        log_probs = torch.logaddexp(log_probs + math.log1p(-error_rate), noise)
    at_tie = log_probs[..., :2].mean(dim=-1) if log_nu is None else log_probs[..., 2]
    return -torch.where(tied, at_tie, log_probs[..., 0])


def ranking_loss(
    scores: torch.Tensor,
    ranks: torch.Tensor,
    *,
    margins: torch.Tensor | None = None,
    log_nu: torch.Tensor | None = None,
    error_rate: float = 0.0,
) -> torch.Tensor:
    """Mean ``pair_loss`` over all pairs of each ranking whose order is known (Ouyang et al. 2022, equation 1).

    All pairs of a ranking stand in one batch element, so that each completion is read once: as examples of their own
    they let the model overfit in an epoch (section 3.5 there).

    Args:
        scores: Shape ``(rankings, k)``.
        ranks: Shape ``(rankings, k)``, see the module.
        margins: How far the best should lead the worst, shape ``(rankings,)``; a pair gets its share by ranks.
        log_nu: See ``pair_loss``.
        error_rate: See ``pair_loss``.

    Returns:
        Losses, shape ``(rankings,)``.

    Raises:
        TextEnvError: The shapes do not agree, or a ranking says nothing of any pair.
    """
    _same_shape(scores=scores, ranks=ranks)
    row, first, second = torch.where(_known(ranks))
    counts = torch.bincount(row, minlength=len(ranks))
    if not counts.all():
        raise TextEnvError(f"ranks={ranks[counts == 0][0].tolist()}: expected the order of at least two completions.")
    flip = ranks[row, first] > ranks[row, second]
    better, worse = torch.where(flip, second, first), torch.where(flip, first, second)
    tied = ranks[row, first] == ranks[row, second]
    gap = None
    if margins is not None:
        top = ranks.masked_fill(~ranks.isfinite(), -1.0).amax(dim=1)
        full = ranks.clamp(max=top[:, None] + 1)  # those without a rank stand one below the last
        widest = full.nan_to_num(nan=0.0).amax(dim=1).clamp(min=1)
        gap = (margins / widest)[row] * (full[row, worse] - full[row, better])
    losses = pair_loss(scores[row, better], scores[row, worse], tied, margin=gap, log_nu=log_nu, error_rate=error_rate)
    return torch.zeros_like(counts, dtype=losses.dtype).index_add(0, row, losses) / counts


def plackett_luce_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of rankings as choices of the best of what is left (Plackett 1975), in nats.

    Those of equal rank are each chosen from all that rank no higher, as Breslow (1974) does with ties in the partial
    likelihood. A choice of the best of ``k`` (Ziegler et al. 2019,
    equation 1) is a ranking with one rank 0 and ``k - 1`` times ``inf``.

    Args:
        scores: Shape ``(rankings, k)``.
        ranks: Shape ``(rankings, k)``, see the module.

    Returns:
        Losses, shape ``(rankings,)``.

    Raises:
        TextEnvError: The shapes do not agree.
    """
    _same_shape(scores=scores, ranks=ranks)
    chosen = ranks.isfinite()
    left = ranks[:, None, :] >= ranks[:, :, None]  # (rankings, who is chosen, from whom); False at nan
    left = left | torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)  # no row of nothing but -inf
    normalizer = torch.logsumexp(scores[:, None, :].expand(left.shape).masked_fill(~left, -torch.inf), dim=-1)
    return torch.where(chosen, normalizer - scores, 0.0).sum(dim=-1)


def center_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs of a ranking of ``(s_i + s_j)^2``, which pulls scores to mean 0 (Eisenstein et al. 2023).

    Args:
        scores: Shape ``(rankings, k)``.
        ranks: Shape ``(rankings, k)``, see the module; only ``nan`` matters.

    Returns:
        Before its coefficient, shape ``(rankings,)``.

    Raises:
        TextEnvError: The shapes do not agree.
    """
    _same_shape(scores=scores, ranks=ranks)
    given = ~ranks.isnan()
    pairs = (given[:, :, None] & given[:, None, :]).triu(1)
    sums = torch.where(pairs, scores[:, :, None] + scores[:, None, :], 0.0)
    return (sums**2).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def rank_tensor(rankings: Sequence[Ranking]) -> torch.Tensor:
    """Return the ranks of rankings as the losses take them, shape ``(rankings, most completions)``, float32."""
    width = max((len(ranking.ranks) for ranking in rankings), default=0)
    ranks = torch.full((len(rankings), width), torch.nan)
    for row, ranking in enumerate(rankings):
        known = [torch.inf if rank is None else float(rank) for rank in ranking.ranks]
        ranks[row, : len(known)] = torch.tensor(known)
    return ranks


def _known(ranks: torch.Tensor) -> torch.Tensor:
    """Return of which pairs ``first < second`` the order is known, shape ``(rankings, k, k)``."""
    given, ranked = ~ranks.isnan(), ranks.isfinite()
    both = given[:, :, None] & given[:, None, :] & (ranked[:, :, None] | ranked[:, None, :])
    return both.triu(1)


def _same_shape(**tensors: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise TextEnvError(f"Shapes differ: {shapes}; expected one shape.")
