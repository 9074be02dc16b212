"""The tree of tasks that a book is summarized by (Wu et al. 2021, arXiv:2109.10862), apart from any model.

The book is cut into leaves. Height 0 summarizes each leaf, height 1 the summaries of several leaves, and so on up to
the root. A task reads, before its own text, the earlier summaries of its height.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from textenv.types import TextEnvError
from textenv.validation import Count, validate

__all__ = ["BETWEEN", "Curriculum", "Node", "TreeSettings", "cut_leaves", "plan_tree", "recent", "select_nodes"]

BETWEEN = "\n----\n"
"""What stands between summaries."""

Curriculum = Literal["first leaves", "first subtree", "full tree"]
"""Parts of a tree that a model is trained on, one after the other: the leaves below the first node of height 1, these
and that node, and all nodes."""

_PIECE = re.compile(r"\s*\S+")
_FEWEST = 3  # children of a node, at most, so that every node can have two

Counter = Callable[[Sequence[str]], Sequence[int]]
"""Returns how many tokens each of some texts has."""


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """Sizes of a tree.

    Attributes:
        leaf_tokens: Tokens of a leaf, at most.
        limits: Tokens of a summary at heights 0, 1 and above, at most.
        children: Children of a node at height 1 and above, at most.
        window: Tokens of a task: earlier summaries, its text and its summary.
        frame: Tokens among these that go into what stands around them, such as an instruction.
    """

    leaf_tokens: Count
    limits: tuple[Count, Count, Count]
    children: tuple[Count, Count]
    window: Count
    frame: Count

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextEnvError: A value is not what is expected, or a task can be larger than the window.
        """
        validate(self)
        if self.leaf_tokens + self.limit(0) + self.frame > self.window:
            raise TextEnvError(
                f"A leaf of {self.leaf_tokens} tokens, its summary of {self.limit(0)} and {self.frame} around them "
                f"make {self.leaf_tokens + self.limit(0) + self.frame}, but the model reads {self.window}; lower "
                "leaf_tokens."
            )
        for height in (1, 2, 3):  # above, the sizes are the same
            if self.most_children(height) < _FEWEST:
                raise TextEnvError(
                    f"At height {height} a node of the tree can have {self.most_children(height)} children; expected "
                    f"{_FEWEST} at least. Lower the lengths of summaries, {self.limits}, or raise window={self.window}."
                )

    @classmethod
    def of_window(cls, window: int, frame: int, leaf_tokens: int | None = None) -> TreeSettings:
        """Return sizes in the proportions of the paper, for leaves of 600 tokens or what a window has room for.

        Args:
            window: Tokens that a model reads.
            frame: Tokens around the texts of a task.
            leaf_tokens: Tokens of a leaf; None for 600, or a quarter of the window.
        """
        leaf = leaf_tokens or max(1, min(600, window // 4))
        zero, one, two = (max(8, round(tokens * leaf / 600)) for tokens in (128, 192, 384))
        return cls(leaf, (zero, one, two), (12, 8), window, frame)

    def limit(self, height: int) -> int:
        """Return the tokens of a summary at a height, at most."""
        return self.limits[min(height, 2)]

    def most_children(self, height: int) -> int:
        """Return how many children a node at a height from 1 has, at most: as many as are sure to fit in the window."""
        room = self.window - self.limit(height) - self.frame
        each = self.limit(height - 1) + _SEPARATOR
        return min(self.children[min(height, 2) - 1], room // each)


_SEPARATOR = 6  # tokens of BETWEEN, at most


@dataclass(frozen=True, slots=True)
class Node:
    """A task of the tree.

    Attributes:
        height: 0 for a leaf.
        index: Its place among those of its height, from 0.
        first: Index of its first child at the height below; of a leaf, where its text begins.
        end: One past the last.
    """

    height: int
    index: int
    first: int
    end: int


def cut_leaves(text: str, count: Counter, most: int) -> list[tuple[int, int]]:
    """Cut a text into leaves of about the same size.

    Args:
        text: Any.
        count: Counts tokens.
        most: Tokens of a leaf, at most, as the sum over its words with the white space before them.

    Returns:
        Where each leaf begins and ends: every character is in exactly one, in order. They end before white space but
        inside of a word that alone has more than ``most`` tokens, and white space at the end is in the last one.
    """
    pieces = list(_pieces(text, count, most))
    if not pieces:
        return [(0, len(text))] if text else []
    total = sum(tokens for _, tokens in pieces)
    aim = min(most, math.ceil(total / math.ceil(total / most)) + max(tokens for _, tokens in pieces))
    ends, size, last = [0], 0, 0
    for end, tokens in pieces:
        if size and size + tokens > aim:
            ends.append(last)
            size = 0
        size += tokens
        last = end
    return list(pairwise([*ends, len(text)]))


def _pieces(text: str, count: Counter, most: int) -> Iterator[tuple[int, int]]:
    """Yield where each word ends and how many tokens it has; a word of too many is cut."""
    spans = [found.span() for found in _PIECE.finditer(text)]
    for (begin, end), tokens in zip(spans, count([text[slice(*span)] for span in spans]), strict=True):
        if tokens <= most:
            yield end, tokens
        else:
            yield from _cut_word(text, begin, end, count, most)


def _cut_word(text: str, begin: int, end: int, count: Counter, most: int) -> Iterator[tuple[int, int]]:
    place = begin
    while place < end:
        size = end - place
        while size > 1 and count([text[place : place + size]])[0] > most:
            size //= 2
        yield place + size, min(most, count([text[place : place + size]])[0])
        place += size


def plan_tree(leaves: Sequence[tuple[int, int]], settings: TreeSettings) -> list[Node]:
    """Return all nodes of the tree over some leaves, by height and then in the order of the text; the root is last.

    Children of a height are shared out evenly: nodes differ by one child at most, and have two or more.

    Args:
        leaves: As ``cut_leaves`` returns them, at least one.
        settings: Sizes.
    """
    nodes = [Node(0, index, *span) for index, span in enumerate(leaves)]
    below, height = len(leaves), 0
    while below > 1:
        height += 1
        groups = math.ceil(below / settings.most_children(height))
        sizes = [(below + place) // groups for place in range(groups)]
        ends = [0, *accumulate(sizes)]
        nodes += [Node(height, index, *span) for index, span in enumerate(pairwise(ends))]
        below = groups
    return nodes


def select_nodes(plan: Sequence[Node], curriculum: Curriculum) -> list[Node]:
    """Return the nodes of a tree that a curriculum trains on, in the order of the plan.

    Args:
        plan: As ``plan_tree`` returns it. Where it is a single leaf, that is all there is.
        curriculum: Which part.
    """
    if curriculum == "full tree":
        return list(plan)
    above = next((node for node in plan if node.height == 1), None)
    leaves = list(plan[: 1 if above is None else above.end])
    return leaves if above is None or curriculum == "first leaves" else [*leaves, above]


def recent(earlier: Sequence[tuple[str, int]], room: int) -> list[str]:
    """Return as many of the last texts as fit.

    Args:
        earlier: Texts with their tokens.
        room: Tokens for them and for what stands behind each.
    """
    kept = 0
    for _, tokens in reversed(earlier):
        room -= tokens + _SEPARATOR
        if room < 0:
            break
        kept += 1
    return [text for text, _ in earlier[len(earlier) - kept :]]
