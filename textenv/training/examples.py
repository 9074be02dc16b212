"""Pairs and conversations as tokens to fine-tune on, each with which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from textenv.models.causal_lm import CausalLM
from textenv.models.chat import end_of_turn, render_written
from textenv.training.next_token import IGNORED_LABEL, TokenBatch
from textenv.training.texts import Pair, read_examples
from textenv.types import Conversation, Message, TextEnvError, short

__all__ = ["Example", "collate", "encode_conversation", "encode_examples"]


class Example(NamedTuple):
    """A text to learn from.

    Attributes:
        ids: Its token ids.
        learned: Of each whether it is a label; the first, which nothing predicts, is none.
    """

    ids: list[int]
    learned: list[bool]


def encode_examples(
    lm: CausalLM, files: Sequence[Path], max_tokens: int, *, train_on: Literal["assistant", "both"] = "assistant"
) -> list[Example]:
    """Return the pairs and conversations of files as tokens, at most ``max_tokens`` each.

    Args:
        lm: The model that learns.
        files: What to read.
        max_tokens: Longer texts are cut.
        train_on: What is learned: what the model writes, or all of it.

    Raises:
        TextEnvError: A file cannot be read, a conversation cannot be learned, or what precedes the first token to learn
            leaves no room for it.
    """
    encoded = list[Example]()
    for path in files:
        for where, example in _read_and_encode(lm, path):
            before = example.learned.index(True)
            if before >= max_tokens:
                raise TextEnvError(
                    f"{where}: the prompt {lm.decode(example.ids[:before])[:80]!r} takes {before} tokens, which leaves "
                    f"none of {max_tokens} for its completion; raise max_tokens (if the model takes more) or leave it "
                    "out."
                )
            learned = example.learned if train_on == "assistant" else [place > 0 for place in range(len(example.ids))]
            encoded.append(Example(example.ids[:max_tokens], learned[:max_tokens]))
    return encoded


def _read_and_encode(lm: CausalLM, path: Path) -> Iterator[tuple[str, Example]]:
    """Yield where each record of a file stands, and its tokens; pairs are encoded in one call of the tokenizer."""
    records = list(read_examples(path))
    pairs = iter(_encode_pairs(lm, [found for _, found in records if isinstance(found, Pair)]))
    for where, found in records:
        yield where, next(pairs) if isinstance(found, Pair) else encode_conversation(lm, found, where)


def _encode_pairs(lm: CausalLM, pairs: Sequence[Pair]) -> list[Example]:
    """Return pairs as a policy writes them: the completion and the end of the text are learned."""
    encoded = lm.encode_completions([pair.prompt for pair in pairs], [pair.completion for pair in pairs])
    end = lm.eos_ids[:1]
    return [
        Example([*start, *rest, *end], [False] * len(start) + [True] * (len(rest) + len(end)))
        for start, rest in encoded
    ]


def encode_conversation(lm: CausalLM, messages: Conversation, where: str) -> Example:
    """Return a conversation as the model reads and writes it in an episode: the assistant's messages are learned.

    What the template puts around messages is read, but for the token that ends each message of the assistant. Messages
    behind the assistant's last are left out.

    Args:
        lm: The model that learns, with its chat template.
        messages: The messages.
        where: Where they stand, for messages of errors.

    Raises:
        TextEnvError: The assistant says nothing, or speaks first; or there is no chat template, or it refuses them.
    """
    _check_turns(messages, where)
    end = end_of_turn(lm.tokenizer)
    ending = (end,) if end in lm.eos_ids else lm.eos_ids[:1]
    ids, learned, said = list[int](), list[bool](), list[Message]()
    try:
        for message in messages:
            if message["role"] != "assistant":
                said.append(message)
                continue
            read = lm.encode_answer(tuple(said), ids[-1]) if ids else lm.encode_conversation(tuple(said))[1]
            written = (*lm.encode_behind(render_written(lm.tokenizer, message)), *ending)
            ids += [*read, *written]
            learned += [False] * len(read) + [True] * len(written)
            said = []
    except TextEnvError as error:
        raise TextEnvError(f"{where}: {error}") from error
    return Example(ids, learned)


def _check_turns(messages: Conversation, where: str) -> None:
    """Refuse a conversation in which the assistant says nothing, or speaks before anybody but the system."""
    roles = [str(message["role"]) for message in messages]
    if "assistant" not in roles:
        raise TextEnvError(
            f"{where}: the messages are of {roles}, none of the assistant; expected one to learn from at least."
        )
    if not set(roles[: roles.index("assistant")]) - {"system"}:
        raise TextEnvError(f"{where}: the assistant speaks first, {short(messages)}; expected a user's message before.")


def collate(examples: Sequence[Example], pad: int) -> TokenBatch:
    """Return examples as a batch, padded on the right by ``pad``; labels are the tokens that are learned."""
    longest = max(len(example.ids) for example in examples)
    inputs = torch.full((len(examples), longest - 1), pad)
    mask = torch.zeros_like(inputs)
    labels = torch.full_like(inputs, IGNORED_LABEL)
    for row, (ids, learned) in enumerate(examples):
        length = len(ids) - 1
        following = torch.tensor(ids[1:])
        inputs[row, :length] = torch.tensor(ids[:-1])
        mask[row, :length] = 1
        labels[row, :length] = torch.where(torch.tensor(learned[1:]), following, IGNORED_LABEL)
    return TokenBatch(inputs, mask, labels)
