"""Completions as texts, for rewards that score text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.types import TextEnvError


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """Return the text of each completion: itself, or what the assistant said if it is a list of messages.

    Raises:
        TextEnvError: One is neither.
    """
    return [completion if isinstance(completion, str) else _said(completion) for completion in completions]


def _said(completion: Any) -> str:
    try:
        texts = [message["content"] for message in completion]
        return "".join(texts)
    except (TypeError, KeyError) as error:
        raise TextEnvError(
            f"The completion {completion!r} is neither a text nor a list of messages with a text as 'content'."
        ) from error
