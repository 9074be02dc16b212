"""Conversations as a tokenizer's chat template writes them, and the token that ends a turn in them."""

from __future__ import annotations

from typing import Any

from textenv.types import Conversation, TextEnvError

__all__ = ["end_of_turn", "render_conversation"]

_ANSWER = "xyzzy"  # what the assistant says in the conversation that end_of_turn looks at


def render_conversation(tokenizer: Any, messages: Conversation) -> tuple[str, list[int]]:
    """Return the text and token ids of a conversation, up to where the assistant goes on.

    After a message of the user the template's opening of a turn of the assistant follows. A last message of the
    assistant is left open, to be continued. Special tokens are the template's alone: none are added to its text.

    Args:
        tokenizer: The tokenizer.
        messages: At least one.

    Raises:
        TextEnvError: There is no chat template, or it refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TextEnvError(
            f"The prompt {_short(messages)} is a conversation, but the tokenizer ({tokenizer.name_or_path!r}) has no "
            "chat template. Give texts, a model that was tuned to chat, or set tokenizer.chat_template."
        )
    ends = {"continue_final_message" if messages[-1]["role"] == "assistant" else "add_generation_prompt": True}
    conversation = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, **ends)
        ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True, **ends)["input_ids"]
    except Exception as error:  # a template is a program of its own and raises what it likes
        raise TextEnvError(
            f"The chat template of the tokenizer ({tokenizer.name_or_path!r}) refuses the prompt {_short(messages)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return text, list(ids)


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the token that the chat template puts behind what the assistant says, or None.

    Tokenizers and generation configs do not always name it: those of a base model, whose end of sequence is another,
    or of a model that was tuned with a template of its own. It is None without a template, and where the template
    ends a turn with plain text or refuses to be asked.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a conversation that is given as a prompt will say what is wrong with the template
        return None
    _, found, rest = text.rpartition(_ANSWER)
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}  # not all that end turns are marked special
    ends = [token for token in tokens if token.strip() and rest.lstrip().startswith(token)]
    return int(tokenizer.convert_tokens_to_ids(max(ends, key=len))) if found and ends else None


def _short(messages: Conversation) -> str:
    text = repr([dict(message) for message in messages])
    return text if len(text) <= 160 else f"{text[:157]}..."
