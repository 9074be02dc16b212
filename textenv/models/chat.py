"""Conversations and tools as a tokenizer's chat template writes them, and the token that ends a turn in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from textenv.types import Conversation, Message, TextEnvError

__all__ = [
    "PLAIN_TEMPLATE",
    "end_of_turn",
    "render_answer",
    "render_conversation",
    "render_written",
    "with_tools",
]

PLAIN_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] "
    "+ eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""A chat template for a tokenizer that has none: it needs no tokens but the one that ends a text."""

_ANSWER = "xyzzy"  # stands for a message of the assistant, where what the template puts after it is looked for


def render_conversation(
    tokenizer: Any, messages: Conversation, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, list[int]]:
    """Return the text and token ids of a conversation, up to where the assistant writes next.

    If the last message is not the assistant's, the template's opening of an assistant turn follows it; if it is, its
    turn is left open, to be continued. All special tokens come from the template: the tokenizer adds none.

    Args:
        tokenizer: The tokenizer.
        messages: The messages, at least one.
        tools: JSON schemas of the functions that the assistant may call, for a template that takes them.

    Returns:
        The text, and the token ids of it.

    Raises:
        TextEnvError: There is no chat template, or it refuses the conversation.
    """
    ends: dict[str, Any] = {
        "continue_final_message" if messages[-1]["role"] == "assistant" else "add_generation_prompt": True
    }
    if tools:
        ends["tools"] = [dict(tool) for tool in tools]
    text = _apply(tokenizer, messages, tokenize=False, **ends)
    return text, list(_apply(tokenizer, messages, tokenize=True, return_dict=True, **ends)["input_ids"])


def with_tools(
    tokenizer: Any, messages: Conversation, tools: Sequence[Mapping[str, Any]]
) -> tuple[Conversation, Sequence[Mapping[str, Any]]]:
    """Return what to render so that the assistant knows of tools: messages, and tools for the template.

    A template that writes ``tools`` is given them. With any other a system message says which there are and how they
    are called, in the form of Qwen 2.5.

    Args:
        tokenizer: The tokenizer.
        messages: The conversation.
        tools: JSON schemas of functions, as in ``render_conversation``.

    Raises:
        TextEnvError: As ``render_conversation``.
    """
    if not tools or render_conversation(tokenizer, messages, tools) != render_conversation(tokenizer, messages):
        return messages, tools
    given = f"{messages[0]['content']}\n\n" if messages[0]["role"] == "system" else ""
    rest = messages[1:] if given else messages
    lines = "\n".join(json.dumps(tool, allow_nan=False) for tool in tools)
    system = {"role": "system", "content": f"{given}{_TOOLS_BEFORE}{lines}{_TOOLS_BEHIND}"}
    return (system, *rest), ()


_TOOLS_BEFORE = "You can call functions. These are their signatures, inside <tools></tools>:\n<tools>\n"
_TOOLS_BEHIND = (
    "\n</tools>\n\nFor each call, write a JSON object with the function's name and its arguments, inside "
    '<tool_call></tool_call>:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
)


def render_answer(tokenizer: Any, messages: Conversation) -> str:
    """Return what the template puts after the text of an assistant's message: its end, ``messages``, the next opening.

    The template sees a short conversation in the place of the real one, of which nothing is rendered again.

    Args:
        tokenizer: The tokenizer.
        messages: What others have answered.

    Raises:
        TextEnvError: There is no chat template, or it refuses the messages or hides the assistant's.
    """
    before = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER})
    text = _apply(tokenizer, (*before, *messages), tokenize=False, add_generation_prompt=True)
    _, found, rest = text.partition(_ANSWER)
    if not found:
        raise TextEnvError(
            f"The chat template of the tokenizer ({tokenizer.name_or_path!r}) leaves out what the assistant has said "
            f"before {_short(messages)}, so that no turn can follow; give a template that writes every message."
        )
    return str(rest)


def render_written(tokenizer: Any, message: Message) -> str:
    """Return what the template makes of a message of the assistant, from behind its opening to before its end.

    Args:
        tokenizer: The tokenizer.
        message: The message.

    Raises:
        TextEnvError: There is no chat template, it refuses the message, or it changes what stands before it.
    """
    if not message["content"]:
        return ""
    before = ({"role": "user", "content": "Hello"},)
    opened, whole = render_conversation(tokenizer, before)[0], render_conversation(tokenizer, (*before, message))[0]
    if not whole.startswith(opened):
        raise TextEnvError(
            f"The chat template of the tokenizer ({tokenizer.name_or_path!r}) opens an answer with other text than it "
            f"writes before {_short((message,))}; expected one that begins both alike."
        )
    return whole.removeprefix(opened)


def _apply(tokenizer: Any, messages: Conversation, **how: Any) -> Any:
    if not getattr(tokenizer, "chat_template", None):
        raise TextEnvError(
            f"The prompt {_short(messages)} is a conversation, but the tokenizer ({tokenizer.name_or_path!r}) has no "
            "chat template. Give texts, a model that was tuned to chat, or set tokenizer.chat_template."
        )
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **how)
    except Exception as error:  # a template is a program, which can raise anything
        raise TextEnvError(
            f"The chat template of the tokenizer ({tokenizer.name_or_path!r}) refuses the prompt {_short(messages)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the id of the token that the chat template puts after a message of the assistant, or None.

    The tokenizer and the generation config do not always name it: a base model's end-of-sequence token may be another,
    and a model may have been tuned with a template that they do not know. It is None if there is no template, or if the
    template ends a turn with plain text or refuses a short conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # render_conversation reports it, once a prompt is a conversation
        return None
    _, found, rest = text.rpartition(_ANSWER)
    tokens = {
        *tokenizer.all_special_tokens,
        *tokenizer.get_added_vocab(),
    }  # some that end turns are not marked as special
    ends = [token for token in tokens if token.strip() and rest.lstrip().startswith(token)]
    return int(tokenizer.convert_tokens_to_ids(max(ends, key=len))) if found and ends else None


def _short(messages: Conversation) -> str:
    text = repr([dict(message) for message in messages])
    return text if len(text) <= 160 else f"{text[:157]}..."
