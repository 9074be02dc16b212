"""The tree of a book: every character once, and no task too large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textenv import TextEnvError
from textenv.data.book_tree import Node, TreeSettings, cut_leaves, plan_tree, recent

SIZES = TreeSettings(leaf_tokens=20, limits=(4, 6, 12), children=(12, 8), window=100, frame=5)


def in_characters(texts: Sequence[str]) -> list[int]:
    """Count a token for every three characters that are not white space."""
    return [-(-len(text.strip()) // 3) for text in texts]


TEXTS = st.text(st.sampled_from("ab.é猫 \n\t\u2028"), max_size=400) | st.text(max_size=200)


@settings(deadline=None)
@given(text=TEXTS, most=st.integers(1, 40))
def test_every_character_is_in_one_leaf_in_order(text: str, most: int) -> None:
    leaves = cut_leaves(text, in_characters, most)
    assert "".join(text[begin:end] for begin, end in leaves) == text
    assert all(begin < end for begin, end in leaves)
    for begin, end in leaves:
        words = text[begin:end].split()
        assert sum(in_characters(words)) <= most
        inside = end < len(text) and not text[end].isspace()
        assert not inside or in_characters([text[begin:end].rsplit(maxsplit=1)[-1]])[0] <= most


def test_leaves_end_before_white_space_and_have_about_the_same_size() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve\n"
    leaves = cut_leaves(text, lambda texts: [1] * len(texts), 5)
    assert [text[begin:end] for begin, end in leaves] == [
        "one two three four five", " six seven eight nine ten", " eleven twelve\n",
    ]  # fmt: skip
    assert cut_leaves("", in_characters, 5) == []
    assert cut_leaves(" \n", in_characters, 5) == [(0, 2)]


def test_a_word_without_white_space_is_cut() -> None:
    leaves = cut_leaves("x" * 1000 + " y", in_characters, 20)
    assert max(end - begin for begin, end in leaves) <= 62
    assert leaves[-1][1] == 1002


@given(count=st.integers(1, 3000), most=st.tuples(st.integers(3, 14), st.integers(3, 9)))
def test_the_plan_shares_children_out_evenly(count: int, most: tuple[int, int]) -> None:
    sizes = TreeSettings(leaf_tokens=20, limits=(4, 6, 12), children=most, window=1000, frame=5)
    nodes = plan_tree([(place, place + 1) for place in range(count)], sizes)
    by_height: dict[int, list[Node]] = {}
    for node in nodes:
        by_height.setdefault(node.height, []).append(node)
    assert len(by_height[0]) == count
    assert len(by_height[max(by_height)]) == 1
    for height in range(1, max(by_height) + 1):
        children = [child for node in by_height[height] for child in range(node.first, node.end)]
        assert children == list(range(len(by_height[height - 1])))
        lengths = [node.end - node.first for node in by_height[height]]
        assert max(lengths) - min(lengths) <= 1
        assert 2 <= min(lengths) <= max(lengths) <= most[min(height, 2) - 1]
        assert [node.index for node in by_height[height]] == list(range(len(lengths)))


@given(window=st.integers(200, 9000), frame=st.integers(1, 40), leaf=st.none() | st.integers(30, 3000))
def test_no_task_is_larger_than_the_window(window: int, frame: int, leaf: int | None) -> None:
    try:
        sizes = TreeSettings.of_window(window, frame, leaf)
    except TextEnvError:
        assert leaf is not None
        return
    assert sizes.leaf_tokens + sizes.limit(0) + frame <= window
    for height in range(1, 6):
        text = sizes.most_children(height) * (sizes.limit(height - 1) + 6)
        assert text + sizes.limit(height) + frame <= window


def test_sizes_are_those_of_the_paper_where_there_is_room() -> None:
    assert TreeSettings.of_window(8192, 20) == TreeSettings(600, (128, 192, 384), (12, 8), 8192, 20)
    sizes = TreeSettings.of_window(2048, 20)
    assert (sizes.leaf_tokens, sizes.most_children(1), sizes.most_children(2)) == (512, 12, 8)


def test_earlier_summaries_are_cut_from_the_front() -> None:
    earlier = [("a", 10), ("b", 5), ("c", 1)]
    assert recent(earlier, 7 + 11 + 16) == ["a", "b", "c"]
    assert recent(earlier, 7 + 11 + 15) == ["b", "c"]
    assert recent(earlier, 6) == recent([], 6) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"leaf_tokens": 95},
            "A leaf of 95 tokens, its summary of 4 and 5 around them make 104, but the model reads 100",
        ),
        ({"leaf_tokens": 0}, "leaf_tokens=0: expected a whole number of at least 1"),
        ({"children": (2, 8)}, "At height 1 a node of the tree can have 2 children; expected 3 at least"),
        ({"limits": (4, 6, 40)}, "At height 3 a node of the tree can have 1 children"),
    ],
    ids=["leaf", "zero", "children", "limits"],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"leaf_tokens": 20, "limits": (4, 6, 12), "children": (12, 8), "window": 100, "frame": 5, **change}
    with pytest.raises(TextEnvError) as refused:
        TreeSettings(**given)
    assert message in str(refused.value)
