"""The tasks of a book's tree in their order: what is asked for each node, given the summaries so far, and its limits.

One place for all who write summaries of books: ``textenv summarize``, and the world ``book``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from textenv.data.book_tree import BETWEEN, Node, TreeSettings, recent
from textenv.types import TextEnvError

__all__ = ["STOP", "BookTask", "BookTasks", "TokenCounter", "as_summary"]

_LINE = "\n====\n"

STOP = (BETWEEN.rstrip(), _LINE.rstrip())
"""What ends a summary where a model writes it: it goes on with the next text of a task."""


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


class TokenCounter(Protocol):
    """Counts tokens as a model reads them (``textenv.models.task_tokens.TaskTokens``).

    Attributes:
        frame: Tokens around the texts of a task, at most.
    """

    frame: int

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has."""
        ...

    def length(self, task: BookTask) -> int:
        """Return how many tokens a task has."""
        ...


class BookTasks:
    """The tasks of a book, and the summaries so far.

    Summaries are added in the order of the tree's plan; what is asked for a node depends on those that precede it.
    """

    def __init__(self, book: str, sizes: TreeSettings, tokens: TokenCounter) -> None:
        """Begin without summaries.

        Args:
            book: The text.
            sizes: Sizes of its tree.
            tokens: Counts tokens.
        """
        self._book, self._sizes, self._tokens = book, sizes, tokens
        self._levels: dict[int, list[tuple[str, int]]] = {}  # summaries with their tokens, by height

    def add(self, node: Node, summary: str) -> None:
        """Add the summary of a node, the next one of its height."""
        self._levels.setdefault(node.height, []).append((summary, self._tokens.count([summary])[0]))

    def task(self, node: Node) -> BookTask:
        """Return what is asked for a node.

        Its text is the passage of a leaf, or the summaries of a node's children. Earlier summaries of its height are
        cut from the front, so that they, the text and a summary fit in the window.

        Raises:
            TextEnvError: They do not fit without earlier summaries either.
        """
        sizes = self._sizes
        if node.height:
            text = BETWEEN.join(summary for summary, _ in self._levels[node.height - 1][node.first : node.end])
        else:
            text = self._book[node.first : node.end].strip()
        limit = sizes.limit(node.height)
        room = sizes.window - limit
        earlier = recent(self._levels.get(node.height, []), room - self._tokens.frame - self._tokens.count([text])[0])
        task = BookTask(earlier, text)
        while (length := self._tokens.length(task)) > room:
            if not task.earlier:
                raise TextEnvError(
                    f"Task {node.index + 1} of height {node.height} takes {length} tokens, which leaves no room for a "
                    f"summary of {limit} in {sizes.window}; lower leaf_tokens, or raise window if the model reads more."
                )
            task = BookTask(task.earlier[1:], text)
        return task


def as_summary(written: str, limit: int, tokens: TokenCounter) -> str:
    """Return what was written as a summary: one line, without the last words where it has too many tokens.

    Args:
        written: Any text.
        limit: Tokens, at most.
        tokens: Counts tokens.
    """
    words = written.split()
    while words and tokens.count([" ".join(words)])[0] > limit:
        words = words[:-1]
    return " ".join(words)
