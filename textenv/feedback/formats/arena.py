"""Battles of the chatbot arena."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from textenv.data.files import to_json
from textenv.data.values import as_annotator, as_conversation, as_margin, short
from textenv.feedback.formats.shared import (
    Format,
    Row,
    assistant_text,
    cannot_hold,
    common_messages,
    known_pairs,
    plain_prompt,
    without_empty,
)
from textenv.types import Ranking, TextEnvError

__all__ = ["FORMAT"]


_WINNERS: Mapping[str, tuple[int, int]] = {
    "model_a": (0, 1),
    "model_b": (1, 0),
    "tie": (0, 0),
    "tie (bothbad)": (0, 0),
    "both_bad": (0, 0),  # in the releases of 2025
}


def read(row: Row) -> list[Ranking]:
    """Read a battle of https://huggingface.co/datasets/lmsys/chatbot_arena_conversations and its like.

    ``conversation_a`` and ``conversation_b`` are lists of messages, the same but for the last, an answer of the
    assistant; ``winner`` is ``model_a``, ``model_b``, ``tie`` or ``tie (bothbad)``; ``judge`` is the annotator. Both
    bad is read as a tie, since it does not order them. Battles whose conversations differ earlier are refused, because
    a ranking compares answers to one prompt. ``margin`` is our own column.
    """
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in _WINNERS:
        raise TextEnvError(f"winner={short(winner)}; expected one of {list(_WINNERS)}.")
    sides = [as_conversation(_joined_parts(row[f"conversation_{side}"]), f"conversation_{side}") for side in "ab"]
    shared, first, second = common_messages(*sides)
    return [
        Ranking(
            shared,
            (assistant_text(first), assistant_text(second)),
            _WINNERS[winner],
            as_annotator(row.get("judge")),
            as_margin(row.get("margin")),
        )
    ]


def write(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Write pairs of conversations, ties among them."""
    rows = []
    for ranking in rankings:
        for pair in known_pairs(ranking):
            if isinstance(pair.prompt, str):
                raise cannot_hold(pair, "arena", "its prompt is a text, and battles are conversations", "Use 'trl'.")
            prompt = plain_prompt(pair.prompt)
            sides = [[*prompt, {"role": "assistant", "content": text}] for text in pair.completions]
            identity = to_json(prompt, sort_keys=True).encode()
            rows.append(
                {
                    "question_id": hashlib.sha256(identity).hexdigest()[:32],
                    "model_a": None,
                    "model_b": None,
                    "winner": next(name for name, ranks in _WINNERS.items() if ranks == pair.ranks),
                    "judge": pair.annotator,
                    "conversation_a": sides[0],
                    "conversation_b": sides[1],
                    "turn": sum(message["role"] == "user" for message in prompt),
                    "margin": pair.margin,
                }
            )
    return without_empty(rows)


def _joined_parts(messages: Any) -> Any:
    """Return messages whose contents are lists of parts, as in the releases of 2025, with their texts joined."""
    if not isinstance(messages, list):
        return messages
    plain = []
    for message in messages:
        parts = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(parts, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in parts):
            plain.append({**message, "content": "".join(part["text"] for part in parts)})
        else:
            plain.append(message)
    return plain


FORMAT = Format(("conversation_a", "conversation_b", "winner"), read, write)
