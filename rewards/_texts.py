"""What a reward that scores text reads of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.types import TextEnvError


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """Return the texts of completions: themselves, or what the assistant said where they are lists of messages.

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
