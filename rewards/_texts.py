"""Completions as texts, for rewards that score text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.types import TextEnvError, short


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """Return the text of each completion: itself, or what the assistant said if it is a list of messages.

    Raises:
        TextEnvError: One is neither.
    """
    return [completion if isinstance(completion, str) else _said(completion) for completion in completions]


def is_conversation(prompt: Any, completion: Any) -> bool:
    """Tell whether a prompt and its completion are lists of messages, and not texts.

    Raises:
        TextEnvError: One is a text and the other is not.
    """
    if isinstance(prompt, str) is not isinstance(completion, str):
        raise TextEnvError(
            f"The prompt is {short(prompt)} and the completion {short(completion)}; expected two texts, or two lists "
            "of messages."
        )
    return not isinstance(prompt, str)


def _said(completion: Any) -> str:
    try:
        texts = [message["content"] for message in completion]
        return "".join(texts)
    except (TypeError, KeyError, IndexError) as error:
        raise TextEnvError(
            f"The completion {short(completion)} is neither a text nor a list of messages with a text as 'content'."
        ) from error
