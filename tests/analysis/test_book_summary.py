"""Summarizing a book: what the model is asked, and that a killed run writes what it would have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import make_family
from textenv import CausalLM, TextEnvError
from textenv.analysis.book_sources import Sources, sentences_of
from textenv.analysis.book_summary import Reader, Summary, summarize_book
from textenv.data.book_tasks import BookTask
from textenv.data.book_tree import TreeSettings

BOOK = "".join(f"The film of day {day} was a good plot. " for day in range(30))
SIZES = TreeSettings(leaf_tokens=24, limits=(4, 5, 6), children=(4, 3), window=120, frame=16)


class KilledError(Exception):
    """A process that ends in the middle."""


def quiet(done: int, total: int) -> None:
    pass


def killed_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KilledError

    return progress


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_run_goes_on_to_the_last_bit(temperature: float, tiny_lm: CausalLM, tmp_path: Path) -> None:
    def reader() -> Reader:
        return Reader(tiny_lm, chat=False, temperature=temperature, seed=3)

    whole = summarize_book(BOOK, reader(), SIZES, tmp_path / "whole", progress=quiet)
    for count in (1, 9, len(whole) - 1):
        path = tmp_path / f"killed-{count}"
        with pytest.raises(KilledError):
            summarize_book(BOOK, reader(), SIZES, path, progress=killed_after(count))
        with path.open("ab") as file:
            file.write(b'{"height": 0, "in')  # a line that was not written whole
        told: list[tuple[int, int]] = []
        assert summarize_book(BOOK, reader(), SIZES, path, progress=lambda *each, told=told: told.append(each)) == whole
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()
        assert told == [(done, len(whole)) for done in range(count, len(whole) + 1)]


def test_tasks_are_those_of_the_paper(tiny_lm: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[BookTask, int]] = []
    reader = Reader(tiny_lm, chat=False)
    plain = reader.encode

    def encode(task: BookTask) -> object:
        asked.append((task, len(plain(task).ids)))
        return plain(task)

    monkeypatch.setattr(reader, "encode", encode)
    monkeypatch.setattr(reader, "write", lambda prompt, limit, name: f"Part {name} of it.")
    nodes = summarize_book(BOOK, reader, SIZES, tmp_path / "nodes", progress=quiet)
    leaves = [node for node in nodes if node.height == 0]
    assert "".join(BOOK[node.first : node.end] for node in leaves) == BOOK
    assert asked[0][0] == BookTask([], BOOK[: leaves[0].end].strip())
    assert asked[1][0].earlier == ["Part 0/0 of it."]
    first = next(place for place, node in enumerate(nodes) if node.height == 1)
    assert asked[first][0].text.split("\n----\n") == [f"Part 0/{child} of it." for child in range(nodes[first].end)]
    assert asked[first][0].earlier == []  # those of its own height
    for (task, size), node in zip(asked, nodes, strict=True):
        assert size + SIZES.limit(node.height) <= SIZES.window
        before = [f"Part {node.height}/{place} of it." for place in range(node.index)]
        assert list(task.earlier) == before[len(before) - node.context :]  # cut from the front
    assert any(0 < node.context < node.index for node in nodes)


def test_prompts() -> None:
    assert BookTask([], "Text.").prompt() == "Text.\n\nTL;DR:"
    assert BookTask(["A.", "B."], "Text.").prompt() == "A.\n----\nB.\n====\nText.\n\nTL;DR:"
    assert BookTask([], "Text.").message() == "Text.\n\nSummarize this part of a book in a few sentences."
    assert (
        BookTask(["A."], "T.").message().startswith("What came before in a book:\nA.\n====\nT.\n\nSummarize only what")
    )


def test_a_chat_model_is_asked_by_its_template() -> None:
    lm = make_family("qwen2")
    reader = Reader(lm, chat=True)
    task = BookTask(["A."], "The film.")
    messages = [{"role": "user", "content": task.message()}]
    how = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    assert list(reader.encode(task).ids) == lm.tokenizer.apply_chat_template(messages, **how)["input_ids"]
    assert reader.write(reader.encode(task), 5, "0/0") == reader.write(reader.encode(task), 5, "0/0")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "nodes, line 1 is no JSON"),
        ("3", "line 1: a summary has 'line'"),
        ("{}", "needs height, index"),
        (
            json.dumps({"height": 0, "index": 0, "first": 0, "end": 3, "context": 0, "summary": ""}),
            "not the summary that",
        ),
    ],
    ids=["JSON", "number", "empty", "other"],
)
def test_what_is_no_file_of_this_book_is_refused(line: str, message: str, tiny_lm: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text(line + "\n")
    with pytest.raises(TextEnvError, match=message):
        summarize_book(BOOK, Reader(tiny_lm, chat=False), SIZES, tmp_path / "nodes", progress=quiet)


def test_a_summary_has_no_more_tokens_read_again_than_were_written(tiny_lm: CausalLM) -> None:
    reader = Reader(tiny_lm, chat=False, temperature=2.0)
    for seed in range(5):
        written = reader.write(tiny_lm.prompt(tiny_lm.encode("the film")), 6, str(seed))
        assert reader.tokens.count([written])[0] <= 6


def test_sentences_together_are_the_text() -> None:
    text = 'It rained. "Why?" she asked! He left…  At 3.5 miles\n\nhe slept'
    assert sentences_of(text) == ["It rained. ", '"Why?" ', "she asked! ", "He left…  ", "At 3.5 miles\n\n", "he slept"]
    assert sentences_of("") == []


def test_a_sentence_comes_from_where_its_rare_words_are() -> None:
    book = "The ship was red. The cook sang.The king was old. The queen left."
    nodes = [
        Summary(0, 0, 0, 32, 0, "A cook sang on a ship. Nobody knew."),
        Summary(0, 1, 32, len(book), 1, "The queen left. An old king."),
        Summary(1, 0, 0, 2, 0, "The queen and the king. Dragons!"),
    ]
    sources = Sources(book, nodes)
    first, nothing = sources.of(nodes[0])
    assert first is not None
    assert (first.child, first.sentence, nothing) == (0, 1, None)
    assert [found and (found.child, found.sentence) for found in sources.of(nodes[1])] == [(1, 1), (1, 0)]
    root, dragons = sources.of(nodes[2])
    assert root is not None
    assert (root.child, root.share < 1, dragons) == (1, True, None)
