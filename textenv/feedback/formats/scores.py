"""TRL's preference type with scores, as UltraFeedback has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from textenv.data.values import as_number
from textenv.feedback.formats.shared import Format, Row, cannot_hold, known_pairs, without_empty
from textenv.feedback.formats.trl import chosen_rejected, read_trl
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


def read(row: Row) -> list[Ranking]:
    """Read TRL's preference type with scores, as UltraFeedback has it and as StackExchange's votes are often kept.

    Columns ``prompt``, ``chosen``, ``rejected``, ``score_chosen``, ``score_rejected``, as in
    https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized and trl-lib/ultrafeedback_binarized. The
    margin is the difference of the scores; equal scores are a tie.
    """
    margin = as_number(row["score_chosen"], "score_chosen") - as_number(row["score_rejected"], "score_rejected")
    if margin < 0:
        raise TextEnvError(
            f"score_chosen={row['score_chosen']} is below score_rejected={row['score_rejected']}: which is better?"
        )
    (ranking,) = read_trl({key: value for key, value in row.items() if key != "margin"})
    return [replace(ranking, ranks=(0, 0 if margin == 0 else 1), margin=margin)]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write the margin as the score of the chosen, the rejected having 0; a tie has 0 and 0."""
    rows = []
    for ranking in rankings:
        for pair in known_pairs(ranking):
            tied = pair.ranks[0] == pair.ranks[1]
            if (pair.margin not in (None, 0.0)) if tied else (pair.margin is None or pair.margin <= 0):
                expected = "a tie has none" if tied else "the scores differ by it, so expected one above 0"
                raise cannot_hold(pair, "scores", f"its margin is {pair.margin}; {expected}", "Use the format 'trl'.")
            row = chosen_rejected(pair)
            rows.append(row | {"score_chosen": row.pop("margin") or 0.0, "score_rejected": 0.0})
    return without_empty(rows)


FORMAT = Format(
    ("chosen", "rejected", "score_chosen", "score_rejected"), read, write, ("score_chosen", "score_rejected")
)
