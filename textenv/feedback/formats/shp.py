"""The Stanford Human Preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.data.values import as_number, as_text, short
from textenv.feedback.formats.shared import Format, Row, cannot_hold, extras, text_prompt, untied_pairs, without_empty
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


def read(row: Row) -> list[Ranking]:
    """Read the Stanford Human Preferences, https://huggingface.co/datasets/stanfordnlp/SHP.

    ``history`` is the prompt; ``labels`` is 1 if ``human_ref_A`` is preferred to ``human_ref_B`` and 0 if not. The
    margin is the difference of ``score_A`` and ``score_B``, in votes, if they are there.
    """
    label, margin = row["labels"], None
    if not isinstance(label, int) or isinstance(label, bool) or label not in (0, 1):
        raise TextEnvError(f"labels={short(label)}; expected 1 (A is preferred) or 0 (B is).")
    if row.get("score_A") is not None or row.get("score_B") is not None:
        margin = as_number(row.get("score_A"), "score_A") - as_number(row.get("score_B"), "score_B")
        margin = margin if label == 1 else -margin
        if margin < 0:
            raise TextEnvError(f"labels={label} prefers the one with the lower score; which is better?")
    texts = as_text(row["human_ref_A"], "human_ref_A"), as_text(row["human_ref_B"], "human_ref_B")
    ranks = (0, 1) if label == 1 else (1, 0)
    return [Ranking(as_text(row["history"], "history"), texts, ranks, extras(row)["annotator"], margin)]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write pairs; ``score_A`` and ``score_B`` differ by the margin, the rejected having 0."""
    rows = []
    for pair in untied_pairs(rankings, "shp"):
        if pair.margin is not None and pair.margin < 0:
            raise cannot_hold(pair, "shp", f"its margin is {pair.margin}; expected one of 0 or more", "Drop 'margins'.")
        label = int(pair.ranks[0] == 0)
        rows.append(
            {
                "history": text_prompt(pair, "shp"),
                "human_ref_A": pair.completions[0],
                "human_ref_B": pair.completions[1],
                "labels": label,
                "score_A": None if pair.margin is None else pair.margin * label,
                "score_B": None if pair.margin is None else pair.margin * (1 - label),
                "annotator": pair.annotator,
            }
        )
    return without_empty(rows)


FORMAT = Format(("history", "human_ref_A", "human_ref_B", "labels"), read, write, ("labels", "score_A", "score_B"))
