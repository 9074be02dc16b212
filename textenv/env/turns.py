"""Turns as tokens: what a world says, encoded to stand before or between what the agent writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.models.causal_lm import CausalLM
from textenv.models.chat import with_tools
from textenv.types import Conversation, Prompt, TextEnvError, as_conversation, as_text, short

__all__ = ["TurnEncoder", "as_observation", "context_of", "joined"]

_CONTEXT = 32  # tokens before a turn that are decoded with it


class TurnEncoder:
    """Encodes what a world says. The agent's own tokens are never decoded and encoded again."""

    def __init__(self, model: CausalLM, *, chat: bool) -> None:
        """Take the model whose tokenizer and chat template write the turns.

        Args:
            model: Encodes.
            chat: Whether a text is one message of a user.
        """
        self._model, self._chat = model, chat

    def first(
        self,
        observation: str | Conversation,
        columns: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Return the prompt that the first observation of an episode makes.

        Args:
            observation: A text or messages.
            columns: Of the prompt that the world was given, if it was given one.
            tools: JSON schemas of the functions that the agent may call.

        Raises:
            TextEnvError: There is no chat template for messages, or it refuses them.
        """
        if isinstance(observation, str) and not self._chat and not tools:
            return Prompt(observation, self._model.encode(observation), columns)
        messages, tools = with_tools(self._model.tokenizer, _as_messages(observation), tools)
        text, ids = self._model.encode_conversation(messages, tools)
        return Prompt(text, ids, columns, given=messages)

    def answer(self, prompt: Prompt, answer: str | Conversation, last_id: int) -> tuple[int, ...]:
        """Return the tokens that stand between a turn of the agent and its next one.

        Args:
            prompt: What the episode began with.
            answer: A text or messages.
            last_id: The last token of the turn before.

        Raises:
            TextEnvError: As ``first``; or the answer is messages where the episode began with a text.
        """
        if prompt.given is not None:
            return self._model.encode_answer(_as_messages(answer), last_id)
        if not isinstance(answer, str):
            raise TextEnvError(
                f"The world began with a text, {prompt.text[:80]!r}, and answered with messages, {short(answer)}; "
                "expected texts or messages throughout."
            )
        return self._model.encode_behind(answer)


def context_of(model: CausalLM, ids: Sequence[int]) -> Prompt:
    """Return the end of what precedes a turn, ``ids``, as the prompt with which the turn is decoded."""
    return model.prompt(ids[-_CONTEXT:])


def joined(said: str | Conversation) -> str:
    """Return what a world said as one text: of messages, their contents."""
    return said if isinstance(said, str) else "\n".join(str(message["content"]) for message in said)


def as_observation(value: object, world: str, when: str) -> str | Conversation:
    """Return what a world said, checked.

    Args:
        value: A text, or a list of messages.
        world: Its name, for the error.
        when: When it said so, for the error: ``"reset"``, or ``"turn 3"``.

    Raises:
        TextEnvError: It is neither.
    """
    name = f"What the world {world} said in {when}"
    return as_text(value, name) if isinstance(value, str) else as_conversation(value, name)


def _as_messages(said: str | Conversation) -> Conversation:
    return ({"role": "user", "content": said},) if isinstance(said, str) else said
