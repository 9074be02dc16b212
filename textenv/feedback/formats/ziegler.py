"""The best of K samples, as Ziegler et al. (2019) at OpenAI have published them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from textenv.data.values import as_text, as_whole_number, short
from textenv.feedback.formats.shared import Decoder, Format, Row, extras, text_prompt, untied_pairs, without_empty
from textenv.models.codec import shared_length
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


def read(row: Row) -> list[Ranking]:
    """Read a best-of-K of Ziegler et al. (2019), ``PickBest`` in https://github.com/openai/lm-human-preferences.

    ``best`` is the number of the best of ``sample0``, ``sample1``, ... (four in their labels), which go on from
    ``query``. The order of the others is not known: they have no rank, unless there are only two samples. Their files
    hold token ids. ``annotator`` and ``margin`` are our own columns.
    """
    names = list(itertools.takewhile(lambda name: name in row, (f"sample{place}" for place in itertools.count())))
    if any(isinstance(row[name], list) for name in ("query", *names)):
        raise TextEnvError(
            "query and samples are token ids, GPT-2's in the published labels. Name the tokenizer that made them: "
            "decode=... here, --tokenizer on the command line."
        )
    if len(names) < 2:
        raise TextEnvError(f"it has {names}; expected two samples or more.")
    best, last = as_whole_number(row["best"], "best", len(names)), 1 if len(names) == 2 else None
    texts = tuple(as_text(row[name], name) for name in names)
    ranks = tuple(0 if place == best else last for place in range(len(names)))
    return [Ranking(as_text(row["query"], "query"), texts, ranks, **extras(row))]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write rankings whole if all are a choice of the best of the same number of samples; else as all their pairs."""
    bests = all(sorted(r.ranks, key=str) == [0] + [None] * (len(r.ranks) - 1) for r in rankings)
    whole = bests and len({len(ranking.ranks) for ranking in rankings}) == 1
    rows = []
    for ranking in rankings if whole else untied_pairs(rankings, "ziegler"):
        samples = {f"sample{place}": text for place, text in enumerate(ranking.completions)}
        row = {"query": text_prompt(ranking, "ziegler"), **samples, "best": ranking.ranks.index(0)}
        rows.append(row | {"margin": ranking.margin, "annotator": ranking.annotator})
    return without_empty(rows)


def decode_row(row: Row, decode: Decoder) -> Row:
    """Return a record with texts in place of token ids; a sample's text is what it adds to the decoded query."""
    ids = {name: _token_ids(value, name) for name, value in row.items() if isinstance(value, list)}
    query = ids.pop("query", [])
    before = decode(query) if query else ""
    texts = {"query": before} if query else {}
    for name, value in ids.items():
        whole = decode([*query, *value])
        texts[name] = whole[shared_length(before, whole) :]
    return {**row, **texts}


def _token_ids(value: list[Any], name: str) -> list[int]:
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value):
        raise TextEnvError(f"{name} is {short(value)}; expected token ids, whole numbers from 0.")
    return value


FORMAT = Format(("query", "sample0", "sample1", "best"), read, write, ("best", "margin"), decode_row=decode_row)
