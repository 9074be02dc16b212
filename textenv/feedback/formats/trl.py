"""TRL's preference type, with texts or messages, and an explicit or implicit prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from textenv.data.values import as_conversation, as_prompt, short
from textenv.feedback.formats.shared import (
    Format,
    Row,
    assistant_text,
    common_messages,
    extras,
    plain_prompt,
    untied_pairs,
    without_empty,
)
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT", "chosen_rejected", "read_trl"]


def read_trl(row: Row) -> list[Ranking]:
    """Read TRL's preference type, https://huggingface.co/docs/trl/dataset_formats.

    ``chosen`` and ``rejected`` are texts (standard) or lists of messages (conversational), and answer ``prompt``. With
    an implicit prompt they begin with it instead: it is the messages that both begin with, or the text, cut at the last
    turn of Anthropic's hh-rlhf ("Assistant:") or else where a word ends. As in TRL, a ``prompt`` that is a text beside
    lists of messages only repeats what they begin with. ``margin`` is what ``RewardTrainer`` takes off the difference
    of the rewards; ``annotator`` is our own column, which TRL ignores.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    for name in ("chosen", "rejected"):
        as_prompt(row[name], name)
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise TextEnvError(
            f"chosen is {short(chosen)} and rejected is {short(rejected)}; expected two texts, or two lists of "
            "messages."
        )
    if isinstance(chosen, str):
        if prompt is None:
            cut = _common_text(chosen, rejected)
            return [Ranking(chosen[:cut], (chosen[cut:], rejected[cut:]), (0, 1), **extras(row))]
        return [Ranking(as_prompt(prompt), (chosen, rejected), (0, 1), **extras(row))]
    best, worst = as_conversation(chosen, "chosen"), as_conversation(rejected, "rejected")
    if prompt is not None and not isinstance(prompt, str):
        shared = as_conversation(prompt, "prompt")
    else:
        shared, best, worst = common_messages(best, worst)
        if prompt is not None and all(message["content"] != prompt for message in shared):
            raise TextEnvError(f"the messages do not begin with the prompt {short(prompt)}.")
    return [Ranking(shared, (assistant_text(best), assistant_text(worst)), (0, 1), **extras(row))]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write chosen and rejected with an explicit prompt, in the form of the prompts, and margins if all have one.

    ``RewardTrainer`` reads the column ``margin`` of every row if there is one, and cannot read null.
    """
    pairs = list(untied_pairs(rankings, "trl"))
    if len({isinstance(pair.prompt, str) for pair in pairs}) > 1:
        raise TextEnvError("Some prompts are texts and some conversations: TRL reads one or the other; use two files.")
    if len({pair.margin is None for pair in pairs}) > 1:
        raise TextEnvError("Some rankings have a margin and some have not: TRL needs all or none; drop 'margins'.")
    return without_empty([chosen_rejected(pair) for pair in pairs])


def chosen_rejected(pair: Ranking) -> dict[str, Any]:
    """Return the record of a comparison of two, in the form of its prompt: texts, or lists of messages."""
    best, worst = pair.completions if pair.ranks[0] == 0 else pair.completions[::-1]
    wrapped = not isinstance(pair.prompt, str)
    return {
        "prompt": plain_prompt(pair.prompt),
        "chosen": [{"role": "assistant", "content": best}] if wrapped else best,
        "rejected": [{"role": "assistant", "content": worst}] if wrapped else worst,
        "margin": pair.margin,
        "annotator": pair.annotator,
    }


def _common_text(one: str, other: str) -> int:
    """Return the length of the text that both begin with, up to the last turn of hh-rlhf or the end of a word."""
    longest = min(len(one), len(other))
    cut = next((place for place in range(longest) if one[place] != other[place]), longest)
    turn = one.rfind("\n\nAssistant:", 0, cut)
    if turn >= 0:
        return turn + len("\n\nAssistant:")
    return max((found.start() for found in re.finditer(r"\s+", one[:cut])), default=0)


FORMAT = Format(("chosen", "rejected"), read_trl, write, ("margin",))
