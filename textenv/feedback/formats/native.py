"""Our own format: the fields of ``Ranking`` as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.feedback.formats.shared import Format, Row, extras, plain_prompt
from textenv.types import Ranking

__all__ = ["FORMAT"]


def read(row: Row) -> list[Ranking]:
    """Read the fields of ``Ranking``: prompt, completions, ranks, annotator, margin; the last two may be missing."""
    return [Ranking(row["prompt"], row["completions"], row["ranks"], **extras(row))]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write all five fields of each ranking."""
    return [
        {
            "prompt": plain_prompt(ranking.prompt),
            "completions": list(ranking.completions),
            "ranks": list(ranking.ranks),
            "annotator": ranking.annotator,
            "margin": ranking.margin,
        }
        for ranking in rankings
    ]


FORMAT = Format(("prompt", "completions", "ranks"), read, write, ("completions", "ranks", "margin"))
