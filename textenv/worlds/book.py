"""A book that is summarized node by node of its tree (Wu et al. 2021, arXiv:2109.10862), each node a turn."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge

from textenv.data.book_tasks import BookTask, BookTasks, as_summary
from textenv.data.book_texts import FEW, BookSplit, BookText, load_books
from textenv.data.book_tree import Curriculum, Node, TreeSettings, cut_leaves, plan_tree, select_nodes
from textenv.data.files import to_json
from textenv.env.scoring import Scorer
from textenv.models.loading import BUNDLED, load_tokenizer
from textenv.models.task_tokens import TaskTokens
from textenv.types import Prompt, TextEnvError, short
from textenv.validation import Count, validate

__all__ = ["Book"]


@dataclass
class Book:
    """Asks for the summaries of a book's tree one after the other, and pays each by itself.

    The nodes come in the order of the heights, and in that of the text: passages first, then groups of their summaries,
    up to the root. Each observation is a whole task, as ``textenv summarize`` asks it: the earlier summaries of the
    same height as far as there is room, and the text to summarize. So ``context="fresh"`` suffices, and with
    ``turn_discount=0`` no reward crosses nodes. What is written counts as one line, and without its last words where it
    has more tokens than a summary of its height may have.

    A node is paid what ``reward`` says of its task and its summary, with the columns ``text`` (what is summarized),
    ``height`` (0 for a passage), and those of the book: ``reference``, a summary of the whole book, where there is one.
    The environment's own reward is given the book's columns and ``summary``, the last one.

    Attributes:
        books: A book's file (.txt, .md, .html, .epub), a file of records with ``text`` and further columns, ``"few"``
            for short stories that come with textenv, or a list of these; an episode draws one of their texts.
        split: ``"train"``, ``"heldout"``, or ``"all"`` of them, see ``textenv.data.book_texts.load_books``.
        curriculum: The nodes of an episode: ``"first leaves"`` the passages below the first node of height 1,
            ``"first subtree"`` these and that node, ``"full tree"`` all of them, where the paper draws a node and its
            children.
        reward: Pays a node: anything that is a ``reward`` of an environment, but one that keeps statistics. By default
            ROUGE-L against the text that is summarized, which needs no summaries by people and pays for copying.
        tokenizer: Counts tokens: the name or folder of the model that writes, or its tokenizer.
        chat: Ask as a message to a chat model; the environment's ``chat`` has to say the same.
        window: Tokens of a task with its summary, at most; no more than the environment has room for.
        leaf_tokens: Tokens of a passage; None for 600, or a quarter of the window. Summaries are in proportion.
    """

    books: str | Path | tuple[str | Path, ...] = FEW
    split: BookSplit = "all"
    curriculum: Curriculum = "full tree"
    reward: Any = field(default_factory=lambda: {"name": "rouge", "column": "text"})
    tokenizer: Any = BUNDLED
    chat: bool = False
    window: Annotated[int, Ge(64)] = 512
    leaf_tokens: Count | None = None

    def __post_init__(self) -> None:
        """Check the settings, and cut the books.

        Raises:
            TextEnvError: A setting is not what is expected, a book cannot be read, or the window is too small.
        """
        validate(self)
        sources = self.books if isinstance(self.books, tuple) else (self.books,)
        self._library = _cut(
            _Cut(
                tuple(map(str, sources)),
                tuple(map(_stamp, sources)),
                self.split,
                self.curriculum,
                str(self.tokenizer) if isinstance(self.tokenizer, Path) else self.tokenizer,
                self.chat,
                self.window,
                self.leaf_tokens,
            )
        )
        self._scorer = _scorer_of(self.reward)
        tree = self._library.trees[0]
        self._scorer.check_columns([_asked("", tree.book, BookTask([], ""), tree.nodes[0])])
        if self._scorer.keeps_state:
            raise TextEnvError(
                f"reward={short(self.reward)} keeps statistics of what it has scored, which the world book does not "
                "save; expected one without."
            )
        self._end()

    @property
    def most_turns(self) -> int:
        """The most turns of an episode."""
        return max(len(tree.nodes) for tree in self._library.trees)

    @property
    def most_summary_tokens(self) -> int:
        """The most tokens of a summary."""
        return max(self._library.sizes.limit(node.height) for tree in self._library.trees for node in tree.nodes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a book, and ask for its first summary.

        Raises:
            TextEnvError: The environment has prompts, which books are not.
        """
        if options and "prompt" in options:
            raise TextEnvError("The world book is given a prompt; expected none. Name the texts as books=... instead.")
        trees = self._library.trees
        self._tree = trees[int(np.random.default_rng(seed).integers(len(trees)))]
        self._place, self._summary = 0, ""
        self._tasks = BookTasks(self._tree.book.text, self._library.sizes, self._library.tokens)
        return self._ask(), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a summary, pay it, and ask for the next one.

        Raises:
            TextEnvError: The episode is over, or the reward fails.
        """
        return self.step_many([self], [action])[0]

    @classmethod
    def step_many(
        cls, worlds: Sequence[Book], texts: Sequence[str]
    ) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
        """Take a summary in each of some worlds of the same settings, whose reward is asked once.

        Raises:
            TextEnvError: As ``step``.
        """
        summaries = [world._taken(text) for world, text in zip(worlds, texts, strict=True)]
        written = [world._as_written(summary) for world, summary in zip(worlds, summaries, strict=True)]
        paid = worlds[0]._scorer.score(
            [world._prompt for world in worlds],
            written,
            [world._library.tokens.encode(text) for world, text in zip(worlds, written, strict=True)],
            unfinished=[False] * len(worlds),
        )
        return [
            world._went_on(summary, float(reward))
            for world, summary, reward in zip(worlds, summaries, paid, strict=True)
        ]

    def _end(self) -> None:
        self._tree, self._place, self._summary = self._library.trees[0], -1, ""

    def _ask(self) -> str:
        """Return what is asked for the present node."""
        task = self._tasks.task(self._node)
        said = self._library.tokens.said(task)
        self._prompt = _asked(said, self._tree.book, task, self._node)
        return said

    @property
    def _node(self) -> Node:
        return self._tree.nodes[self._place]

    def _taken(self, text: str) -> str:
        """Return what was written for the present node as a summary."""
        if self._place < 0:
            raise TextEnvError("The episode of this book is over; call reset first.")
        return as_summary(text, self._library.sizes.limit(self._node.height), self._library.tokens)

    def _as_written(self, summary: str) -> str:
        """Return a summary as it goes on from its task: a prompt ends without a space."""
        return f" {summary}" if summary and not self.chat else summary

    def _went_on(self, summary: str, reward: float) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._tasks.add(self._node, summary)
        self._place, self._summary = self._place + 1, summary
        info = self._info()
        if self._place == len(self._tree.nodes):
            self._end()
            return "", reward, True, False, info
        return self._ask(), reward, False, False, info

    def _info(self) -> dict[str, Any]:
        return {"columns": {**self._tree.book.columns, "summary": self._summary}}


class _Tree(NamedTuple):
    """A book and the nodes of an episode in it."""

    book: BookText
    nodes: Sequence[Node]


class _Library(NamedTuple):
    """Books that are cut, the sizes of their trees, and what counts their tokens."""

    trees: Sequence[_Tree]
    sizes: TreeSettings
    tokens: TaskTokens


def _asked(said: str, book: BookText, task: BookTask, node: Node) -> Prompt:
    """Return a task as the prompt that a reward is given."""
    return Prompt(said, (), {**book.columns, "text": task.text, "height": node.height})


def _stamp(source: str | Path) -> int:
    try:
        return Path(source).stat().st_mtime_ns
    except (OSError, ValueError):  # it is a name, or whoever reads it says so
        return 0


class _Cut(NamedTuple):
    """How books are cut: settings of ``Book``, and when the files were written."""

    sources: tuple[str, ...]
    stamps: tuple[int, ...]
    split: BookSplit
    curriculum: Curriculum
    tokenizer: Any
    chat: bool
    window: int
    leaf_tokens: int | None


@functools.lru_cache(maxsize=8)
def _cut(how: _Cut) -> _Library:
    """Return books with the nodes of an episode in each; those of one row serve all others."""
    books = load_books(how.sources, how.split)
    tokenizer = load_tokenizer(how.tokenizer) if isinstance(how.tokenizer, str) else how.tokenizer
    tokens = TaskTokens(tokenizer, chat=how.chat)
    sizes = TreeSettings.of_window(how.window, tokens.frame, how.leaf_tokens)
    trees = []
    for book in books:
        plan = plan_tree(cut_leaves(book.text, tokens.count, sizes.leaf_tokens), sizes)
        trees.append(_Tree(book, select_nodes(plan, how.curriculum)))
    return _Library(trees, sizes, tokens)


_scorers: weakref.WeakValueDictionary[str, Scorer] = weakref.WeakValueDictionary()


def _scorer_of(reward: Any) -> Scorer:
    """Return the scorer of a reward; worlds whose reward is named in the same way share it, and its model."""
    if not isinstance(reward, str | Mapping | list | tuple):
        return Scorer(reward)
    try:
        name = to_json(reward)
    except TypeError:  # an object among its arguments
        return Scorer(reward)
    scorer = _scorers.get(name)
    if scorer is None:
        scorer = _scorers[name] = Scorer(reward)
    return scorer
