"""Conversations as texts, for servers that are sent texts alone: written by the chat template of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from textenv.rewards._texts import is_conversation
from textenv.types import TextEnvError


def check_tokenizer(name: str) -> None:
    """Load a tokenizer, which then stays loaded.

    Raises:
        TextEnvError: It cannot be loaded, or has no chat template.
    """
    _load(name)


def as_texts(tokenizer: str | None, prompt: Any, completion: Any) -> tuple[str, str]:
    """Return the text of a prompt, and that of the prompt with its completion.

    Args:
        tokenizer: Name of the tokenizer whose chat template writes conversations; None where there is none.
        prompt: A text, or a list of messages.
        completion: The same.

    Raises:
        TextEnvError: They are a conversation, and there is no tokenizer, or its template refuses it.
    """
    if not is_conversation(prompt, completion):
        return prompt, prompt + completion
    if tokenizer is None:
        raise TextEnvError(
            "Http(protocol='openrlhf') sends texts and was given a conversation. Name the model whose chat template "
            "writes it, tokenizer='...', or use protocol='textenv', which sends the messages."
        )
    return _rendered(tokenizer, prompt), _rendered(tokenizer, [*prompt, *completion])


def _rendered(tokenizer: str, messages: Sequence[Any]) -> str:
    from textenv.models.chat import render_conversation  # noqa: PLC0415 (not needed for texts)

    return render_conversation(_load(tokenizer), tuple(messages))[0]


@cache
def _load(name: str) -> Any:
    from textenv.models.loading import load_tokenizer  # noqa: PLC0415 (transformers take seconds to import)

    tokenizer = load_tokenizer(name)
    if not getattr(tokenizer, "chat_template", None):
        raise TextEnvError(f"Http(tokenizer={name!r}): it has no chat template; name a model that was tuned to chat.")
    return tokenizer
