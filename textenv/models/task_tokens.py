"""Tokens of the tasks of a book's tree (``textenv.data.book_tasks``), counted with a model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.data.book_tasks import BookTask
from textenv.models.chat import render_conversation

__all__ = ["TaskTokens"]

_AT_ONCE = 10_000  # texts that the tokenizer is given
_SLACK = 8  # tokens by which a text may be longer than its words


class TaskTokens:
    """Says what a model is asked, and how many tokens that has.

    Attributes:
        frame: Tokens around the texts of a task, at most.
        chat: Whether the model is asked in messages, by its chat template.
    """

    def __init__(self, tokenizer: Any, *, chat: bool) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: A tokenizer of transformers.
            chat: See above.

        Raises:
            TextEnvError: It has no chat template and the model is to be asked in messages.
        """
        self._tokenizer, self.chat = tokenizer, chat
        self.frame = self.length(BookTask(["."], ".")) + _SLACK

    def said(self, task: BookTask) -> str:
        """Return what the model is asked: a prompt to go on with, or the content of a message."""
        return task.message() if self.chat else task.prompt()

    def length(self, task: BookTask) -> int:
        """Return how many tokens a task has, as the model reads it."""
        if self.chat:
            return len(render_conversation(self._tokenizer, ({"role": "user", "content": task.message()},))[1])
        return len(self._tokenizer(task.prompt())["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without those that the tokenizer puts around it."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, without those that the tokenizer puts around it."""
        sizes: list[int] = []
        for begin in range(0, len(texts), _AT_ONCE):
            part = list(texts[begin : begin + _AT_ONCE])
            sizes += map(len, self._tokenizer(part, add_special_tokens=False)["input_ids"])
        return sizes
