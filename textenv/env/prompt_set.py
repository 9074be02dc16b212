"""The prompts of an environment, encoded: those that episodes are drawn from, and those that ``reset`` is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from textenv.data.values import as_prompt, as_text, short
from textenv.env.prompts import PromptSource, read_prompts
from textenv.models.causal_lm import CausalLM
from textenv.types import Conversation, Prompt, TextEnvError

__all__ = ["PromptSet"]


class PromptSet:
    """Prompts as a model reads them.

    Attributes:
        prompts: Those that episodes are drawn from, at least one.
        max_tokens: The most tokens of a prompt.
    """

    def __init__(self, source: PromptSource, model: CausalLM, *, chat: bool, max_tokens: int | None) -> None:
        """Read and encode the prompts.

        Args:
            source: As in ``textenv.env.prompts.read_prompts``.
            model: Encodes texts and conversations.
            chat: Whether a text is one message of a user.
            max_tokens: Room for a prompt; None for that of the longest.

        Raises:
            TextEnvError: They cannot be read, or one is too long or no text of the model's.
        """
        self._model, self._chat = model, chat
        given, columns = read_prompts(source)
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        self.prompts = self._encode(given, rows or [{}] * len(given))
        longest = max(self.prompts, key=lambda prompt: len(prompt.ids))
        self.max_tokens = max_tokens or len(longest.ids)
        self._check(longest)
        self._by_ids: dict[tuple[int, ...], list[Prompt]] = {}

    def of_options(self, options: dict[str, Any], n: int) -> list[Prompt] | None:
        """Take the prompts of ``n`` rows out of the options of a ``reset``.

        Args:
            options: The entry that names prompts, ``prompt`` or ``prompt_index``, is removed.
            n: Number of rows.

        Returns:
            A prompt for each row; None where the options name none.

        Raises:
            TextEnvError: They are not what is expected.
        """
        if "prompt" in options:
            prompts = self._given(options.pop("prompt"), n)
        elif "prompt_index" in options:
            indices = _one_each(options.pop("prompt_index"), n, (int, np.integer), "prompt_index", "a number")
            if not all(0 <= index < len(self.prompts) for index in indices):
                raise TextEnvError(
                    f"prompt_index={short(indices)}: expected numbers from 0 to {len(self.prompts) - 1}."
                )
            prompts = [self.prompts[index] for index in indices]
        else:
            return None
        for prompt in prompts:
            self._check(prompt)
        return prompts

    def contains(self, ids: tuple[int, ...]) -> bool:
        """Tell whether one of the prompts has these token ids."""
        return ids in self._index()

    def find(self, ids: tuple[int, ...]) -> Prompt:
        """Return the prompt of some token ids, or a new one without columns if there is none.

        Raises:
            TextEnvError: Several prompts have these ids and other columns, so that it is not known which is meant.
        """
        found = self._index().get(ids, [])
        if any(not _same(prompt, found[0]) for prompt in found[1:]):
            raise TextEnvError(
                f"{len(found)} prompts of the environment are {found[0].text!r}, with other columns for the reward: an "
                "observation does not tell which is meant. Act on the environment's own observations, row by row, or "
                "give sample() the prompts."
            )
        return found[0] if found else self._model.prompt(ids)

    def _index(self) -> dict[tuple[int, ...], list[Prompt]]:
        if not self._by_ids:  # made when it is first asked for: most runs never do
            for prompt in self.prompts:
                self._by_ids.setdefault(prompt.ids, []).append(prompt)
        return self._by_ids

    def _encode(self, given: Sequence[str | Conversation], rows: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        """Return prompts of texts and conversations, ``rows`` being their other columns."""
        plain = [prompt for prompt in given if isinstance(prompt, str) and not self._chat]
        encoded = iter(self._model.encode_many(plain))  # in one call of the tokenizer
        prompts = []
        for prompt, row in zip(given, rows, strict=True):
            if isinstance(prompt, str) and not self._chat:
                prompts.append(Prompt(prompt, next(encoded), row))
                continue
            messages: Conversation = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
            text, ids = self._model.encode_conversation(messages)
            prompts.append(Prompt(text, ids, row, given=prompt))
        return prompts

    def _given(self, value: Any, n: int) -> list[Prompt]:
        """Return the prompts of ``options["prompt"]``, one a row."""
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):  # messages: one conversation
            value = [value] * n
        values = _one_each(value, n, (str, Sequence, Prompt), "prompt", "a text or a list of messages")
        return [item if isinstance(item, Prompt) else self._encode([as_prompt(item)], [{}])[0] for item in values]

    def _check(self, prompt: Prompt) -> None:
        vocab_size = self._model.vocab_size
        as_text(prompt.text, "the prompt's text")
        whole = all(isinstance(token, (int, np.integer)) for token in prompt.ids)
        if not prompt.ids or not whole or not 0 <= min(prompt.ids) <= max(prompt.ids) < vocab_size:
            raise TextEnvError(
                f"{short(prompt)}: expected token ids from 0 to {vocab_size - 1}, at least one. It was made for "
                "another model; give its text."
            )
        if len(prompt.ids) > self.max_tokens:
            raise TextEnvError(
                f"The prompt {prompt.text[:80]!r} takes {len(prompt.ids)} tokens, max_prompt_tokens is "
                f"{self.max_tokens}; raise it, or leave the prompt out."
            )


def _one_each(value: Any, n: int, kind: Any, name: str, what: str) -> list[Any]:
    one = isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable)
    values = [value] * n if one else list(value)
    if len(values) != n or not all(isinstance(item, kind) and not isinstance(item, bool | bytes) for item in values):
        raise TextEnvError(f"options[{name!r}]={short(value)}: expected {what}, or {n} of them.")
    return values


def _same(one: Prompt, other: Prompt) -> bool:
    try:
        return bool(one.columns == other.columns and one.given == other.given)
    except ValueError:  # columns that hold arrays, which do not compare to one truth value
        return False
