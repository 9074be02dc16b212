"""The world of a book's tree: its turns are the tree's tasks in order, and each is paid by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families import make_family
from tests.worlds.checks import passes_both_checkers
from textenv import CausalLM, TextEnvError
from textenv.data.book_tree import plan_tree
from textenv.testing import WorldContract
from textenv.worlds.book import Book

TEXT = " ".join(f"On day {day} the ship sailed to port {day}." for day in range(40))
WINDOW: dict[str, Any] = {"window": 160, "leaf_tokens": 24}


def book_file(tmp_path: Path, **columns: Any) -> str:
    path = tmp_path / "books.jsonl"
    path.write_text(json.dumps({"text": TEXT, **columns}) + "\n")
    return str(path)


def by_length(*, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


class TestBook(WorldContract):
    texts = ("A ship sailed.", "", "\n\n", "port " * 50, "日本の猫 😀")
    most_turns = 60

    def make_world(self) -> Book:
        return Book(reward=by_length)


def begun(world: Book) -> Book:
    world.reset(seed=0)
    return world


def played(world: Book) -> tuple[list[str], list[float]]:
    """Summarize the n-th node as "Node n."; return the tasks and what was paid."""
    said, _ = world.reset(seed=0)
    tasks, paid, over = [said], list[float](), False
    while not over:
        said, reward, over, truncated, _ = world.step(f"Node {len(paid)}.")
        assert not truncated
        tasks.append(said)
        paid.append(reward)
    return tasks[:-1], paid


def passage(task: str) -> str:
    """Return the text that a task asks to summarize."""
    return task.removesuffix("\n\nTL;DR:").rpartition("\n====\n")[2]


def test_turns_are_the_tasks_of_the_tree_in_its_order(tmp_path: Path) -> None:
    world = Book(books=book_file(tmp_path), reward=by_length, **WINDOW)
    tasks, _ = played(world)
    nodes = world._library.trees[0].nodes
    assert list(nodes) == plan_tree([(n.first, n.end) for n in nodes if n.height == 0], world._library.sizes)
    leaves = [node for node in nodes if not node.height]
    assert max(node.height for node in nodes) >= 2
    assert len(tasks) == len(nodes) == world.most_turns
    # Every passage is in exactly one turn of a leaf, and together they are the book.
    assert "".join(TEXT[node.first : node.end] for node in leaves) == TEXT
    assert [passage(task) for task in tasks[: len(leaves)]] == [TEXT[n.first : n.end].strip() for n in leaves]
    # Above, the text of a task is the summaries of its children.
    first_of = {
        height: next(i for i, n in enumerate(nodes) if n.height == height) for height in range(nodes[-1].height + 1)
    }
    for task, node in zip(tasks[len(leaves) :], nodes[len(leaves) :], strict=True):
        below = first_of[node.height - 1]
        assert passage(task).split("\n----\n") == [f"Node {below + i}." for i in range(node.first, node.end)]
    # What precedes it are the last summaries of its own height.
    for place, (task, node) in enumerate(zip(tasks, nodes, strict=True)):
        before = task.rpartition("\n====\n")[0].split("\n----\n")
        earlier = [f"Node {i}." for i in range(first_of[node.height], place)] or [""]
        assert before == earlier[-len(before) :]
        assert world._library.tokens.count([task])[0] + world._library.sizes.limit(node.height) <= WINDOW["window"]


def test_the_curriculum_goes_from_leaves_to_the_tree(tmp_path: Path) -> None:
    nodes = {}
    for curriculum in ("first leaves", "first subtree", "full tree"):
        world = Book(books=book_file(tmp_path), reward=by_length, curriculum=curriculum, **WINDOW)
        nodes[curriculum] = [(node.height, node.index) for node in world._library.trees[0].nodes]
        assert len(played(world)[0]) == len(nodes[curriculum])
    leaves = nodes["first leaves"]
    assert leaves == [(0, index) for index in range(len(leaves))]
    assert nodes["first subtree"] == [*leaves, (1, 0)]
    tree = Book(books=book_file(tmp_path), reward=by_length, **WINDOW)._library.trees[0].nodes
    above = next(node for node in tree if (node.height, node.index) == (1, 0))
    assert above.end == len(leaves)
    assert set(nodes["first subtree"]) < set(nodes["full tree"])


def test_a_text_of_one_passage_is_one_turn(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A ship sailed.")
    for curriculum in ("first leaves", "first subtree", "full tree"):
        tasks, _ = played(Book(books=tmp_path / "short.txt", reward=by_length, curriculum=curriculum))
        assert tasks == ["A ship sailed.\n\nTL;DR:"]


def test_a_node_is_paid_for_its_summary_alone(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        asked.append(given)
        return by_length(**given)

    world = Book(books=book_file(tmp_path, reference="Ships.", year=1811), reward=reward, **WINDOW)
    tasks, paid = played(world)
    assert paid == [2.0] * len(tasks)
    assert [given["prompts"] for given in asked] == [[task] for task in tasks]
    assert [given["completions"] for given in asked] == [[f" Node {place}."] for place in range(len(tasks))]
    assert [given["text"] for given in asked] == [[passage(task)] for task in tasks]
    assert [given["height"][0] for given in asked] == [node.height for node in world._library.trees[0].nodes]
    assert {(given["reference"][0], given["year"][0]) for given in asked} == {("Ships.", 1811)}


def test_a_summary_is_a_line_within_the_limit_of_its_height(tmp_path: Path) -> None:
    world = Book(books=book_file(tmp_path), reward=by_length, **WINDOW)
    limit = world._library.sizes.limit(0)
    world.reset(seed=0)
    said, paid, *_ = world.step("\n port\n\nship " * 100)
    line = said.split("\n====\n")[0]
    assert line == " ".join(["port", "ship"] * 100)[: len(line)]
    assert world._library.tokens.count([line])[0] <= limit < world._library.tokens.count([f"{line} port ship"])[0]
    assert paid == len(line.split())


def test_rouge_of_the_default_reward(tmp_path: Path) -> None:
    world = Book(books=book_file(tmp_path), **WINDOW)
    said, _ = world.reset(seed=0)
    words = passage(said).split()
    few = words[: len(words) // 4]
    found = [world.step(text)[1] for text in (" ".join(few), "zebra")]
    assert found == [pytest.approx(2 * len(few) / (len(few) + len(words))), 0.0]  # precision 1, recall their share


def test_a_chat_model_is_asked_in_messages(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        asked.append(given)
        return by_length(**given)

    world = Book(
        books=book_file(tmp_path), reward=reward, tokenizer=make_family("qwen2").tokenizer, chat=True, window=400
    )
    said, _ = world.reset(seed=0)
    assert said.endswith("\n\nSummarize this part of a book in a few sentences.")
    world.step("A ship.")
    assert (asked[0]["prompts"], asked[0]["completions"]) == ([said], ["A ship."])


def test_in_an_environment(tiny_lm: CausalLM, tmp_path: Path) -> None:
    world = {"name": "book", "books": book_file(tmp_path), "reward": {"name": "length", "target": 4}, "window": 128}
    world |= {"tokenizer": tiny_lm.tokenizer, "leaf_tokens": 24, "curriculum": "first subtree"}
    passes_both_checkers(tiny_lm, world, context="fresh", turn_discount=0.0, max_tokens=128, max_new_tokens=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curriculum": "leaves"}, "curriculum='leaves'"),
        ({"books": "none.jsonl"}, "none.jsonl: no such file"),
        ({"books": "book.doc"}, "book.doc: its kind is '.doc'; expected a file of kind .txt"),
        ({"books": ()}, "expected one at least"),
        ({"window": 64, "leaf_tokens": 60}, "lower leaf_tokens"),
        ({"reward": "rogue"}, "Did you mean 'rouge'"),
        ({"reward": {"name": "normalize", "reward": "vader"}}, "keeps statistics"),
        ({"reward": {"name": "rouge", "column": "abstract"}}, "'abstract'"),
        ({"chat": True}, "no chat template"),
        ({"tokenizer": "no/such/model"}, "no/such/model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message) as caught:
        begun(Book(**settings)).step("x")
    assert "\n" not in str(caught.value)


def test_prompts_are_not_taken_for_books() -> None:
    with pytest.raises(TextEnvError, match="Name the texts as books="):
        Book().reset(options={"prompt": "x"})


def test_it_is_over_after_the_root() -> None:
    world = Book(reward=by_length)
    with pytest.raises(TextEnvError, match="call reset first"):
        world.step("x")
    played(world)
    with pytest.raises(TextEnvError, match="call reset first"):
        world.step("x")
