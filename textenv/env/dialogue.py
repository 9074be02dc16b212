"""A person's conversation with a model, message by message, outside of an episode: ``textenv chat`` holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from textenv.env.endings import Endings
from textenv.env.turns import TurnEncoder, context_of
from textenv.models.causal_lm import CausalLM
from textenv.types import Conversation, Prompt, TextEnvError, TurnEnd, short

__all__ = ["Dialogue"]


class Dialogue:
    """Messages of a person and answers of a model, each of which goes on from all before it.

    The history is kept as the tokens that the model has read and written. Of a new message only what the chat template
    puts behind the last answer is encoded, so that answers stay the tokens that were drawn, and a model that caches
    prefixes reads the new tokens alone.

    Attributes:
        messages: The conversation so far, the system message included.
        ids: Its token ids; empty before the first message.
        end: Why the last answer has ended; None before the first, or while one is written.
    """

    def __init__(
        self,
        model: CausalLM,
        write: Callable[[Prompt], Iterator[int]],
        *,
        endings: Endings,
        max_tokens: int,
        system: str | None = None,
    ) -> None:
        """Begin a conversation.

        Args:
            model: Encodes and decodes, with its chat template.
            write: Yields the token ids that follow a prompt; they are asked for as long as the answer goes on.
            endings: Says when an answer has ended.
            max_tokens: Room for the conversation and the answer that is next, in tokens.
            system: A system message to begin with, now and after ``reset``.
        """
        self._model, self._write, self._endings = model, write, endings
        self._encoder = TurnEncoder(model, chat=True)
        self._max_tokens = max_tokens
        self._beginning: Conversation = () if system is None else ({"role": "system", "content": system},)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages: Conversation = self._beginning
        self.ids: tuple[int, ...] = ()
        self.end: TurnEnd | None = None
        self._first: Prompt | None = None
        self._read = 0  # tokens that precede the last answer

    def say(self, text: str) -> Iterator[str]:
        """Add a message of the person, and yield the answer to it, piece by piece.

        Where the message is refused, the conversation stays as it was.

        Args:
            text: The message.

        Raises:
            TextEnvError: There is no room for the message and a whole answer; or there is no chat template, or it
                refuses the message.
        """
        message: Conversation = ({"role": "user", "content": text},)
        first = self._first or self._encoder.first((*self._beginning, *message), {})
        ids = self._encoder.answer(first, message, self.ids[-1]) if self.ids else first.ids
        self._check_room(text, len(ids))
        self._first, self.ids, self.messages = first, (*self.ids, *ids), (*self.messages, *message)
        self.end = None
        return self._answer()

    def again(self) -> Iterator[str]:
        """Take the last answer back, and yield another, piece by piece.

        Raises:
            TextEnvError: There is none.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise TextEnvError("There is no answer yet; say something first.")
        self.messages, self.ids, self.end = self.messages[:-1], self.ids[: self._read], None
        return self._answer()

    def _answer(self) -> Iterator[str]:
        self._read = len(self.ids)
        before, written, shown = context_of(self._model, self.ids), list[int](), ""
        try:
            for token in self._write(self._model.prompt(self.ids)):
                written.append(token)
                self.ids = (*self.ids, token)
                text, stopped = self._endings.completion_text(before, written)
                ends = self._endings.ends(np.array([token]), np.array([len(written)]), [stopped].copy)
                self.end = ends.get(0)
                whole = text if self.end else text.rstrip("\ufffd")  # the rest of a character may follow
                piece, shown = whole.removeprefix(shown), whole
                yield piece
                if self.end:
                    break
        finally:  # whoever reads may leave in the middle: what was written stays said
            self.messages = (*self.messages, {"role": "assistant", "content": shown})

    def _check_room(self, text: str, size: int) -> None:
        room = self._max_tokens - self._endings.max_new_tokens - len(self.ids)
        if size > room:
            raise TextEnvError(
                f"The message {short(text)} takes {size} tokens, and there is room for {max(0, room)}: of "
                f"{self._max_tokens} tokens the conversation has {len(self.ids)}, and an answer may take "
                f"max_new_tokens={self._endings.max_new_tokens}. Shorten the message, or begin anew."
            )
