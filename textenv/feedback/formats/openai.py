"""Comparisons of summaries by Stiennon et al. (2020) at OpenAI."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from textenv.data.values import as_annotator, as_mapping, as_mappings, as_margin, as_text, as_whole_number
from textenv.feedback.formats.shared import Format, Row, text_prompt, untied_pairs
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


_TLDR = re.compile(r"SUBREDDIT: r/(.*?)\n\nTITLE: (.*?)\n\nPOST: (.*)\n\nTL;DR:", re.DOTALL)


def read(row: Row) -> list[Ranking]:
    """Read a comparison of Stiennon et al. (2020), https://github.com/openai/summarize-from-feedback.

    ``info`` becomes the prompt that they trained with: of Reddit's ``subreddit``, ``title`` and ``post``, or of a news
    ``article``; a ``post`` alone is the prompt itself. ``choice`` is the number of the better one of two ``summaries``,
    whose texts go on from the prompt. ``worker`` is the annotator. ``extra`` may have a ``margin``, which is ours;
    their ``confidence`` is no difference of scores and is left alone.
    """
    info, extra = as_mapping(row["info"], "info"), as_mapping(row.get("extra"), "extra")
    summaries = as_mappings(row["summaries"], "summaries")
    if len(summaries) != 2:
        raise TextEnvError(f"summaries has {len(summaries)} objects; expected two.")
    choice = as_whole_number(row["choice"], "choice", 2)
    if info.get("article") is not None:
        prompt = f"Article:\n\n{as_text(info['article'], 'article')}\n\nTL;DR:"
    elif info.get("title") is not None and info.get("subreddit") is not None:
        parts = {key: as_text(info.get(key), key) for key in ("subreddit", "title", "post")}
        prompt = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:".format(**parts)
    else:
        prompt = as_text(info.get("post"), "post")
    texts = tuple(as_text(summary.get("text"), "text") for summary in summaries)
    return [
        Ranking(prompt, texts, (choice, 1 - choice), as_annotator(row.get("worker")), as_margin(extra.get("margin")))
    ]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write pairs; a prompt in the form of Reddit's posts becomes their fields, any other is a ``post``."""
    rows = []
    for pair in untied_pairs(rankings, "openai"):
        prompt = text_prompt(pair, "openai")
        found = _TLDR.fullmatch(prompt)
        info: dict[str, str] = {"post": prompt}
        if found:
            info = dict(zip(("subreddit", "title", "post"), found.groups(), strict=True))
        rows.append(
            {
                "info": {"id": hashlib.sha256(prompt.encode()).hexdigest()[:16], **info},
                "summaries": [{"text": text, "policy": None, "note": None} for text in pair.completions],
                "choice": 0 if pair.ranks[0] == 0 else 1,
                "worker": pair.annotator,
                "batch": "textenv",
                "split": "train",
                "extra": {"margin": pair.margin},
            }
        )
    return rows


FORMAT = Format(("info", "summaries", "choice"), read, write)
