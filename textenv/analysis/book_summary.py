"""Summarizing a whole book with a language model, node by node of its tree (Wu et al. 2021, arXiv:2109.10862).

Every summary is kept as soon as it is made, so that a run that was killed goes on, and writes to the last bit what it
would have written.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textenv.data.book_tree import BETWEEN, Node, TreeSettings, cut_leaves, plan_tree, recent
from textenv.data.files import parse_json, to_json, write_atomically
from textenv.env.endings import Endings
from textenv.models.causal_lm import CausalLM
from textenv.types import Prompt, TextEnvError
from textenv.validation import build

__all__ = ["BookTask", "Reader", "Summary", "summarize_book"]

_LINE = "\n====\n"
_AT_ONCE = 10_000  # texts that the tokenizer is given
_SLACK = 8  # tokens by which a text may be longer than its words


@dataclass(frozen=True, slots=True)
class Summary:
    """A node of the tree and what was written for it.

    Attributes:
        height: As in ``Node``, like ``index``, ``first`` and ``end``.
        index: See there.
        first: See there.
        end: See there.
        context: How many earlier summaries of its height the model has read before its text.
        summary: What it wrote, in one line; it may be empty.
    """

    height: int
    index: int
    first: int
    end: int
    context: int
    summary: str

    @property
    def node(self) -> Node:
        """Its place in the tree."""
        return Node(self.height, self.index, self.first, self.end)


@dataclass(frozen=True, slots=True)
class BookTask:
    """What a model is asked: a text, and what it is given to know of what came before.

    Attributes:
        earlier: Summaries of its height, the earliest first.
        text: Text to summarize.
    """

    earlier: Sequence[str]
    text: str

    def prompt(self) -> str:
        """Return the prompt of a model that goes on with texts, as in the paper."""
        return f"{self._before()}{self.text}\n\nTL;DR:"

    def message(self) -> str:
        """Return what a chat model is asked."""
        before = f"What came before in a book:\n{self._before()}" if self.earlier else ""
        which = "only what stands below the line" if self.earlier else "this part of a book"
        return f"{before}{self.text}\n\nSummarize {which} in a few sentences."

    def _before(self) -> str:
        return f"{BETWEEN.join(self.earlier)}{_LINE}" if self.earlier else ""


class Reader:
    """A language model that writes summaries.

    Attributes:
        lm: The model.
        chat: Whether it is asked in messages, by its chat template.
    """

    def __init__(self, lm: CausalLM, *, chat: bool, temperature: float = 0.0, seed: int = 0) -> None:
        """Take a model.

        Args:
            lm: The model.
            chat: See above.
            temperature: Divides the logits; 0 takes the likeliest token.
            seed: Seeds what is drawn, for every task by itself.

        Raises:
            TextEnvError: It has no chat template and is to be asked in messages.
        """
        self.lm, self.chat = lm, chat
        self._temperature, self._seed = temperature, seed
        self.frame = len(self.encode(BookTask(["."], ".")).ids) + _SLACK

    def encode(self, task: BookTask) -> Prompt:
        """Return a task as the model reads it."""
        if not self.chat:
            return Prompt(task.prompt(), self.lm.encode(task.prompt()))
        return Prompt(*self.lm.encode_conversation(({"role": "user", "content": task.message()},)))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has."""
        sizes: list[int] = []
        for begin in range(0, len(texts), _AT_ONCE):
            part = list(texts[begin : begin + _AT_ONCE])
            sizes += map(len, self.lm.tokenizer(part, add_special_tokens=False)["input_ids"])
        return sizes

    def write(self, prompt: Prompt, limit: int, name: str) -> str:
        """Return a summary in one line.

        Args:
            prompt: The task.
            limit: Tokens, at most.
            name: Of the task; what is drawn depends on it and on the seed alone.
        """
        endings = Endings(self.lm, stop=(BETWEEN.rstrip(), _LINE.rstrip()), max_new_tokens=limit)
        generator = torch.Generator().manual_seed(_number(f"{self._seed}/{name}"))
        ids = np.zeros((1, len(prompt.ids) + limit), dtype=np.int64)
        ids[0, : len(prompt.ids)] = prompt.ids
        written: list[int] = []
        self.lm.forget()  # what was read before would change last bits
        while True:
            length = len(prompt.ids) + len(written)
            token = self._draw(self.lm.next_token_logits(ids, np.array([length]))[0], generator)
            written.append(token)
            text, stopped = endings.completion_text(prompt, written)
            if endings.ends(np.array([token]), np.array([len(written)]), functools.partial(list, [stopped])):
                return self._fitting(text.split(), limit)
            ids[0, length] = token

    def _fitting(self, words: list[str], limit: int) -> str:
        """Return words as a line, without the last ones where the tokenizer makes more tokens of it than may be."""
        while words and self.count([" ".join(words)])[0] > limit:
            words = words[:-1]
        return " ".join(words)

    def _draw(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        if not self._temperature:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.cpu() / self._temperature, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=generator))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])


def summarize_book(
    text: str, reader: Reader, sizes: TreeSettings, path: Path, *, progress: Callable[[int, int], None]
) -> list[Summary]:
    """Summarize a book, or go on with it.

    Args:
        text: The book.
        reader: Writes the summaries.
        sizes: Sizes of the tree.
        path: File of the summaries that are done, a JSON object a line.
        progress: Called with how many are done, and how many there are.

    Returns:
        All nodes, by height and then in the order of the text; the root is last.

    Raises:
        TextEnvError: The file holds something else, or a task does not fit in what the model reads.
    """
    plan = plan_tree(cut_leaves(text, reader.count, sizes.leaf_tokens), sizes)
    done = list(_resume(path, plan))
    levels: dict[int, list[tuple[str, int]]] = {}
    for each in done:
        levels.setdefault(each.height, []).append((each.summary, reader.count([each.summary])[0]))
    progress(len(done), len(plan))
    with path.open("ab") as file:
        for node in plan[len(done) :]:
            made = _summarized(node, text, reader, sizes, levels)
            file.write((to_json(asdict(made), ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            done.append(made)
            levels.setdefault(node.height, []).append((made.summary, reader.count([made.summary])[0]))
            progress(len(done), len(plan))
    return done


def _summarized(
    node: Node, book: str, reader: Reader, sizes: TreeSettings, levels: dict[int, list[tuple[str, int]]]
) -> Summary:
    """Return a node with its summary, given the summaries so far, with their tokens, by height."""
    if node.height:
        text = BETWEEN.join(summary for summary, _ in levels[node.height - 1][node.first : node.end])
    else:
        text = book[node.first : node.end].strip()
    limit = sizes.limit(node.height)
    room = sizes.window - limit
    earlier = recent(levels.get(node.height, []), room - reader.frame - reader.count([text])[0])
    prompt = reader.encode(BookTask(earlier, text))
    while earlier and len(prompt.ids) > room:
        earlier = earlier[1:]
        prompt = reader.encode(BookTask(earlier, text))
    if len(prompt.ids) > room:
        raise TextEnvError(
            f"Task {node.index + 1} of height {node.height} takes {len(prompt.ids)} tokens, which leaves no room for a "
            f"summary of {limit} in {sizes.window}; lower leaf_tokens, or raise window if the model reads more."
        )
    summary = reader.write(prompt, limit, f"{node.height}/{node.index}")
    return Summary(node.height, node.index, node.first, node.end, len(earlier), summary)


def _resume(path: Path, plan: Sequence[Node]) -> Iterator[Summary]:
    """Yield the summaries that are done, and leave out of their file a last line that was not written whole.

    Raises:
        TextEnvError: They are not those of the plan.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_atomically(path, whole)
    for number, line in enumerate(whole.splitlines(), start=1):
        where = f"{path}, line {number}"
        found: Any = parse_json(line, where)
        summary = build(Summary, found if isinstance(found, dict) else {"line": found}, what=f"{where}: a summary has")
        if number > len(plan) or summary.node != plan[number - 1]:
            raise TextEnvError(f"{where}: not the summary that comes here; begin again in another folder.")
        yield summary
