"""Comparisons of two answers with their quotes: where they are from, and what is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.complaints import one_line
from tests.webs import QUESTIONS, small_web
from textenv.commands.cli import main
from textenv.data.records import write_records
from textenv.feedback import browse_comparisons
from textenv.feedback.browse_comparisons import Answers, add_comparisons, pair_answers, read_answers, sample_answers
from textenv.feedback.store import FeedbackStore
from textenv.rollouts import collect
from textenv.training.browsing import demonstrate
from textenv.worlds.browser import Browser, Quote, answering_prompt, quoted_answer, read_quoted_answer

QUOTES = (Quote("Heron", "birds.example", "It eats fish."), Quote("Fish", "fish.example", "A fish lives in water"))
FISH = ("What does a heron eat?■", "[1] Heron (birds.example)\n\nIt eats fish.■fish")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "store.sqlite") as store:
        yield store


def test_an_answer_with_its_quotes_is_a_prompt_and_a_completion() -> None:
    read = answering_prompt("Why ■ so?", QUOTES)
    prompt, completion = quoted_answer(read, "Since [1] ■ and [2].\n\nSo.")
    assert prompt + completion == read + "Since [1] ■ and [2].\n\nSo."
    assert prompt == "Why \\u25a0 so?■"
    found = read_quoted_answer(completion)
    assert found is not None
    assert found.references == (
        ("[1] Heron (birds.example)", "It eats fish."),
        ("[2] Fish (fish.example)", "A fish lives in water"),
    )
    assert found.answer == "Since [1] ■ and [2].\n\nSo."
    for read in ("", "Why?", "Why?■", "■■■", "♦Question\nWhy?\n", "Why?■[1] a (b)\n\nc■ "):
        with one_line("expected question■references■"):
            quoted_answer(read, "x")


@pytest.mark.parametrize(
    "text",
    ["", "fish", "a ■ b", "■fish", "[1] a■fish", "[2] a\n\nb■fish", "[1] a\n\nb\n\n[1] c\n\nd■fish", "[1] a\n\nb"],
)
def test_another_text_is_no_answer_with_quotes(text: str) -> None:
    assert read_quoted_answer(text) is None


def test_answers_are_read_out_of_turns(tmp_path: Path) -> None:
    world = Browser(small_web(tmp_path, questions=QUESTIONS[:1]))
    turns = demonstrate(world, seed=0).records("ann")
    write_records(tmp_path / "d.jsonl", turns)
    assert read_answers(tmp_path / "d.jsonl") == [FISH]
    write_records(tmp_path / "d.jsonl", [*turns, {"prompt": "The film", "completion": " is good."}])
    with one_line("d.jsonl, line 6: 'The film' asks for no answer with quotes"):
        read_answers(tmp_path / "d.jsonl")
    write_records(tmp_path / "d.jsonl", [*turns, {"prompt": "a"}])
    with one_line("d.jsonl, line 6: completion is None"):
        read_answers(tmp_path / "d.jsonl")


def test_two_different_answers_of_two_are_compared(store: FeedbackStore) -> None:
    found = [
        Answers("a", "runs/a", [("q1■", "x"), ("q1■", "x"), ("q2■", "x"), ("q2■", "y"), ("q3■", "x"), ("q4■", "x")]),
        Answers("b", "b.jsonl", [("q1■", "y"), ("q1■", "x"), ("q3■", "x")]),
    ]
    pairs = pair_answers(found)
    assert pairs == {"q1■": (("a", "x"), ("b", "y")), "q2■": (("a", "x"), ("a", "y"))}, "of one where one has answered"
    assert add_comparisons(store, found, pairs, judgements=2) == 2
    swapped = {prompt: (second, first) for prompt, (first, second) in pairs.items()}
    assert add_comparisons(store, found, swapped) == 0, "they are asked for already"
    names = {policy.id: policy.name for policy in store.policies()}
    items = {item.id: item for item in store.completions()}
    prompts = store.prompts()
    compared = [[items[each] for each in task.items] for task in store.tasks()]
    assert [
        [(prompts[each.prompt or 0], names[each.policy or 0], each.text) for each in pair] for pair in compared
    ] == [
        [("q1■", "a", "x"), ("q1■", "b", "y")],
        [("q2■", "a", "x"), ("q2■", "a", "y")],
    ]
    assert {policy.name: policy.folder for policy in store.policies()} == {"a": "runs/a", "b": "b.jsonl"}
    assert {task.judgements for task in store.tasks()} == {2}
    with one_line("No question has two different answers, of 2 that a, b answered"):
        pair_answers([Answers("a", "", [("q1■", "x"), ("q2■", "x")]), Answers("b", "", [("q1■", "x")])])
    with one_line("b (b.jsonl) has not answered any question"):
        pair_answers([found[0], Answers("b", "b.jsonl", [])])
    many = [Answers("a", "", [(f"q{number}■", text) for number in range(30) for text in "xyz"])]
    assert pair_answers(many, 1) == pair_answers(many, 1) != pair_answers(many, 2)


def test_a_policy_that_does_not_answer(tmp_path: Path) -> None:
    web = small_web(tmp_path, questions=QUESTIONS)
    browser = {"max_actions": 1, "window": 20}
    assert sample_answers("bundled", questions=2, web=web, split="all", browser=browser, max_new_tokens=2) == []


def test_what_policies_answer_is_asked_of_all_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def sample(envs: Any, policy: Any, generator: Any, seeds: list[int]) -> list[Any]:
        asked.append((seeds, envs.num_envs))
        quotes = [QUOTES[0]._asdict()]
        told = [{"question": f"Why {seed}?", "quotes": quotes, "answer": "fish" if seed else None} for seed in seeds]
        return [SimpleNamespace(start=SimpleNamespace(columns=each)) for each in told]

    monkeypatch.setattr(collect, "sample_episodes", sample)
    web = small_web(tmp_path, questions=QUESTIONS)
    found = sample_answers("bundled", questions=2, samples=2, web=web, split="all", temperature=0.5)
    assert found == [("Why 1?■", FISH[1])] * 2
    assert asked == [([0, 0, 1, 1], 4)]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    web = str(small_web(Path(), questions=QUESTIONS[:1]))
    script = demonstrate(Browser(web), seed=0).records()
    write_records(Path("script.jsonl"), script)
    write_records(Path("ann.jsonl"), [*script[:-1], {**script[-1], "completion": "Fish [1]."}])
    answers = ["--answers", "script=script.jsonl", "ann=ann.jsonl"]

    def run(*flags: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["browse", "compare", "f.sqlite", *flags]) == status
        (line,) = capsys.readouterr().out.splitlines()
        return line

    assert run(*answers) == "f.sqlite: 1 comparisons added, of 1 questions that were answered."
    told = "f.sqlite: 0 comparisons added, of 1 questions that were answered. 1 were there already."
    assert run(*answers, "--seed", "3") == told
    with FeedbackStore("f.sqlite") as store:
        assert list(store.prompts().values()) == [FISH[0]]
        assert [item.text for item in store.completions()] == [FISH[1], FISH[1].replace("■fish", "■Fish [1].")]
    monkeypatch.setattr(
        browse_comparisons, "sample_answers", lambda folder, **settings: [FISH] if settings["samples"] == 3 else []
    )
    policies = ["--policies", "bundled=bundled", "--web", web, "--samples", "3"]
    assert run(*answers[:1], answers[2], *policies) == told, "the policy answers what the script does"
    before = Path("f.sqlite").read_bytes()
    for flags, told in (
        ((), "Name files of answers (--answers NAME=FILE), or policies"),
        (("--answers", "script.jsonl"), "--answers script.jsonl: expected NAME=FILE"),
        (("--answers", "a=script.jsonl", "a=ann.jsonl"), "names that differ"),
        (("--answers", "a=none.jsonl"), "none.jsonl: no such file"),
        (("--answers", "a=script.jsonl", "--policies", "a=bundled"), "'a' names both answers and a policy"),
        (("--policies", "bundled"), "expected NAME=FOLDER"),
        (("--policies", "a=bundled"), "a (bundled) has not answered any question"),
        (("--policies", "a=bundled", "--browser", "{"), "--browser is no JSON"),
    ):
        assert told in run(*flags, status=1), flags
    assert Path("f.sqlite").read_bytes() == before
    assert main(["feedback", "annotate", "f.sqlite", "--reward", json.dumps({"name": "length", "target": 9})]) == 0
    assert main(["feedback", "export", "f.sqlite", "rankings.jsonl"]) == 0
    ranked = json.loads(Path("rankings.jsonl").read_text().splitlines()[0])
    assert ranked["prompt"] == FISH[0]
    assert FISH[1] in ranked["completions"]
