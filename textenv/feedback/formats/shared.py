"""Shared by the formats: the class ``Format``, and writing rankings that a format cannot hold as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from textenv.data.values import as_annotator, as_margin, short
from textenv.types import Conversation, Ranking, TextEnvError

__all__ = [
    "Decoder",
    "Format",
    "Row",
    "assistant_text",
    "cannot_hold",
    "common_messages",
    "describe_ranking",
    "extras",
    "known_pairs",
    "plain_prompt",
    "prompt_name",
    "refuse_margin",
    "same_completions",
    "text_prompt",
    "untied_pairs",
    "whole_or_pairs",
    "without_empty",
]

Row: TypeAlias = Mapping[str, Any]
Decoder: TypeAlias = Callable[[list[int]], str]
"""Turns token ids into a text."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files of rankings; a file ``my_format.py`` of this folder that has one as ``FORMAT`` is a format.

    Attributes:
        keys: Keys that every record has, by which a file is recognized.
        read: Takes a record; returns the rankings in it. Of several judgments, one that cannot be read is the error
            that says why, so that the others are kept where the caller leaves out what cannot be read.
        write: Takes all rankings; returns the records.
        cells: In CSV, the columns that hold JSON (numbers, lists); the others hold texts. None if CSV cannot hold it.
        table: Whether all records have the same columns, as parquet requires.
        decode_row: For formats whose texts may be lists of token ids: takes a record and a decoder, returns the record
            with texts.
    """

    keys: tuple[str, ...]
    read: Callable[[Row], Sequence[Ranking | TextEnvError]]
    write: Callable[[Sequence[Ranking]], list[dict[str, Any]]]
    cells: tuple[str, ...] | None = None
    table: bool = True
    decode_row: Callable[[Row, Decoder], Row] | None = None


def known_pairs(ranking: Ranking) -> list[Ranking]:
    """Return a comparison of two for each pair whose order is known: ranks 0 and 1, or 0 and 0 for a tie.

    Raises:
        TextEnvError: It has a margin and more than two completions: the margin is between the best and the worst.
    """
    if ranking.margin is not None and len(ranking.ranks) > 2:
        raise TextEnvError(
            f"{describe_ranking(ranking)} has a margin, between the best and the worst of {len(ranking.ranks)}, "
            "which its pairs cannot hold. Drop 'margins', or use the format 'native'."
        )
    found = []
    for better, worse, tied in ranking.pairs():
        places = (min(better, worse), max(better, worse))
        ranks = (0, 0) if tied else tuple(int(place == worse) for place in places)
        texts = tuple(ranking.completions[place] for place in places)
        found.append(replace(ranking, completions=texts, ranks=ranks))
    return found


def untied_pairs(rankings: Iterable[Ranking], format: str) -> Iterator[Ranking]:
    """Yield the pairs of ``known_pairs``, none of them a tie.

    Raises:
        TextEnvError: One of them is a tie.
    """
    for ranking in rankings:
        for pair in known_pairs(ranking):
            if pair.ranks[0] == pair.ranks[1]:
                raise cannot_hold(
                    ranking, format, "it has a tie", "Drop 'ties', or use the format 'native' or 'arena'."
                )
            yield pair


def whole_or_pairs(rankings: Iterable[Ranking], format: str) -> Iterator[Ranking]:
    """Yield the rankings that order all their completions as they are, and the others as ``untied_pairs``."""
    for ranking in rankings:
        whole = None not in ranking.ranks and len(set(ranking.ranks)) == len(ranking.ranks)
        yield from [ranking] if whole else untied_pairs([ranking], format)


def same_completions(rankings: Iterable[Ranking]) -> Iterator[list[Ranking]]:
    """Yield lists of consecutive rankings of the same completions."""
    for _, group in itertools.groupby(rankings, key=lambda ranking: (ranking.prompt, ranking.completions)):
        yield list(group)


def text_prompt(ranking: Ranking, format: str) -> str:
    """Return the prompt of a ranking, for formats whose prompts are texts.

    Raises:
        TextEnvError: It is a conversation.
    """
    if not isinstance(ranking.prompt, str):
        raise cannot_hold(ranking, format, "its prompt is a conversation, and the format has texts", "Use 'trl'.")
    return ranking.prompt


def refuse_margin(ranking: Ranking, format: str) -> None:
    """Check that a ranking has no margin, for formats that have no place for one.

    Raises:
        TextEnvError: It has one.
    """
    if ranking.margin is not None:
        raise cannot_hold(ranking, format, "it has a margin", "Drop 'margins', or use the format 'native' or 'trl'.")


def cannot_hold(ranking: Ranking, format: str, why: str, advice: str) -> TextEnvError:
    """Return the error that says why a format cannot hold a ranking, and what to do about it."""
    return TextEnvError(f"{describe_ranking(ranking)} cannot be written as {format!r}: {why}. {advice}")


def describe_ranking(ranking: Ranking) -> str:
    """Return how messages refer to a ranking."""
    return f"The ranking of {short(ranking.prompt)} by {ranking.annotator!r}"


def extras(row: Row) -> dict[str, Any]:
    """Return ``annotator`` and ``margin`` of a record, if it has them, as keywords of ``Ranking``."""
    return {"annotator": as_annotator(row.get("annotator")), "margin": as_margin(row.get("margin"))}


def prompt_name(fields: Row, others: Sequence[str]) -> str:
    """Return the name of the field with the prompt: ``prompt``, or the only field that is not among the others.

    Raises:
        TextEnvError: There is no such field, or more than one.
    """
    rest = [name for name in fields if name not in others]
    if "prompt" in rest:
        return "prompt"
    if len(rest) != 1:
        raise TextEnvError(f"which of {rest} is the prompt? Expected one that is called 'prompt', or only one.")
    return rest[0]


def plain_prompt(prompt: str | Conversation) -> Any:
    """Return a prompt as JSON holds it: a text, or a list of messages."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def assistant_text(messages: Conversation) -> str:
    """Return what the assistant says in the one message that follows a prompt.

    Raises:
        TextEnvError: There are more messages, or it is not the assistant's.
    """
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise TextEnvError(
            f"one side ends with {short([dict(message) for message in messages])}, which the other does not have. "
            "Expected one message of the assistant: a ranking compares answers to one prompt."
        )
    return str(messages[0]["content"])


def common_messages(one: Conversation, other: Conversation) -> tuple[Conversation, Conversation, Conversation]:
    """Return the messages that both begin with, and the rest of each: one message at least.

    Raises:
        TextEnvError: They begin with different messages.
    """
    longest = min(len(one), len(other)) - 1
    cut = next((place for place in range(longest) if one[place] != other[place]), longest)
    if not cut:
        raise TextEnvError("its two sides share no message; expected both to begin with the prompt.")
    return one[:cut], one[cut:], other[cut:]


def without_empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records without those of our own columns that are empty in all records."""
    empty = {
        name
        for name, nothing in (("annotator", ""), ("margin", None), ("score_A", None), ("score_B", None))
        if all(row.get(name, nothing) == nothing for row in rows)
    }
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]
