"""Summarizing a whole book with a language model, node by node of its tree (Wu et al. 2021, arXiv:2109.10862).

Every summary is kept as soon as it is made, so that a run that was killed goes on, and writes to the last bit what it
would have written.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textenv.data.book_tasks import STOP, BookTask, BookTasks, as_summary
from textenv.data.book_tree import Node, TreeSettings, cut_leaves, plan_tree
from textenv.data.files import parse_json, to_json, write_atomically
from textenv.env.endings import Endings
from textenv.models.causal_lm import CausalLM
from textenv.models.task_tokens import TaskTokens
from textenv.types import Prompt, TextEnvError
from textenv.validation import build

__all__ = ["Reader", "Summary", "root_summaries", "summarize_book"]


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


class Reader:
    """A language model that writes summaries.

    Attributes:
        lm: The model.
        tokens: Counts its tokens, and says what it is asked.
    """

    def __init__(self, lm: CausalLM, *, chat: bool, temperature: float = 0.0, seed: int = 0) -> None:
        """Take a model.

        Args:
            lm: The model.
            chat: Whether it is asked in messages, by its chat template.
            temperature: Divides the logits; 0 takes the likeliest token.
            seed: Seeds what is drawn, for every task by itself.

        Raises:
            TextEnvError: It has no chat template and is to be asked in messages.
        """
        self.lm, self.tokens = lm, TaskTokens(lm.tokenizer, chat=chat)
        self._temperature, self._seed = temperature, seed

    def encode(self, task: BookTask) -> Prompt:
        """Return a task as the model reads it."""
        said = self.tokens.said(task)
        if not self.tokens.chat:
            return Prompt(said, self.lm.encode(said))
        return Prompt(*self.lm.encode_conversation(({"role": "user", "content": said},)))

    def write(self, prompt: Prompt, limit: int, name: str) -> str:
        """Return a summary in one line.

        Args:
            prompt: The task.
            limit: Tokens, at most.
            name: Of the task; what is drawn depends on it and on the seed alone.
        """
        endings = Endings(self.lm, stop=STOP, max_new_tokens=limit)
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
                return as_summary(text, limit, self.tokens)
            ids[0, length] = token

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
    plan = plan_tree(cut_leaves(text, reader.tokens.count, sizes.leaf_tokens), sizes)
    tasks = BookTasks(text, sizes, reader.tokens)
    done = list(_resume(path, plan))
    for each in done:
        tasks.add(each.node, each.summary)
    progress(len(done), len(plan))
    with path.open("ab") as file:
        for node in plan[len(done) :]:
            made = _summarized(node, tasks.task(node), reader, sizes)
            file.write((to_json(asdict(made), ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            done.append(made)
            tasks.add(node, made.summary)
            progress(len(done), len(plan))
    return done


def root_summaries(texts: Sequence[str], reader: Reader, sizes: TreeSettings) -> list[str]:
    """Return the summary of each of some texts as a whole; nothing is kept, and no progress is shown.

    Args:
        texts: The texts.
        reader: What writes.
        sizes: Sizes of the trees.

    Raises:
        TextEnvError: A task does not fit in what the model reads.
    """
    roots = list[str]()
    for text in texts:
        with tempfile.TemporaryDirectory() as folder:
            nodes = summarize_book(text, reader, sizes, Path(folder, "tree.jsonl"), progress=lambda done, total: None)
        roots.append(nodes[-1].summary)
    return roots


def _summarized(node: Node, task: BookTask, reader: Reader, sizes: TreeSettings) -> Summary:
    """Return a node with its summary."""
    summary = reader.write(reader.encode(task), sizes.limit(node.height), f"{node.height}/{node.index}")
    return Summary(node.height, node.index, node.first, node.end, len(task.earlier), summary)


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
