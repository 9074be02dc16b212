"""Exact match with known answers, and answers that quotes hold."""

from __future__ import annotations

from typing import Any

import pytest

from tests.complaints import one_line
from textenv.rewards import ExactMatch, Quoted
from textenv.testing import RewardContract
from textenv.types import Reward

QUOTE = {"title": "Heron", "domain": "birds", "extract": "The heron eats fish, and frogs."}


class TestExactMatch(RewardContract):
    def make_reward(self) -> Reward:
        return ExactMatch()

    def columns(self, n: int) -> dict[str, list[Any]]:
        return {"answers": [["great success", "4"]] * n}


class TestQuoted(RewardContract):
    def make_reward(self) -> Reward:
        return Quoted()

    def columns(self, n: int) -> dict[str, list[Any]]:
        return {"quotes": [[QUOTE], [], None] * (n // 3), "answer": ["fish", "fish", None] * (n // 3)}


def exact(answer: str | None, right: Any, **settings: Any) -> float:
    given: dict[str, Any] = {"prompts": [""], "completions": [""], "completion_ids": [[]]}
    (score,) = ExactMatch(said="answer", **settings)(**given, answer=[answer], answers=[right])
    return score


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("The San José!", ["san jose"], 1.0),
        ("St. John's", ["St Johns", "St. John's"], 1.0),
        ("  a\nheron ", "Heron", 1.0),
        ("herons", ["heron"], 0.0),
        ("it is a heron", ["heron"], 0.0),
        ("", [""], 0.0),
        ("the", ["a"], 0.0),
        (None, ["heron"], 0.0),
        ("heron", [], 0.0),
        ("heron", None, 0.0),
        ("Straße", ["STRASSE"], 1.0),
    ],
)
def test_answers_are_normalized(answer: str | None, right: Any, score: float) -> None:
    assert exact(answer, right) == score


def test_words_of_an_answer_may_stand_among_others() -> None:
    assert exact("It is the gray heron.", ["grey heron", "gray heron"], contained=True) == 1.0
    assert exact("It is a heronry.", ["heron"], contained=True) == 0.0
    assert exact("anything", ["the"], contained=True) == 0.0


def test_the_completion_is_the_answer_unless_a_column_is_named() -> None:
    texts = [" Paris. ", " It is Paris."]
    assert ExactMatch()(prompts=["", ""], completions=texts, completion_ids=[[], []], answers=["Paris"] * 2) == [
        1.0,
        0.0,
    ]
    columns: dict[str, Any] = {"answer": ["Paris", "Rome"]}
    assert ExactMatch("answer")(prompts=["", ""], completions=texts, completion_ids=[[], []], **columns) == [1.0, 0.0]
    said = [[{"role": "assistant", "content": "Paris"}]]
    assert ExactMatch("right")(prompts=[""], completions=said, completion_ids=[[]], right=["Paris"]) == [1.0]


def test_quotes_support_an_answer_or_hold_a_right_one() -> None:
    given: dict[str, Any] = {"prompts": [""] * 3, "completions": [""] * 3, "completion_ids": [[]] * 3}
    columns: dict[str, Any] = {
        "quotes": [[QUOTE]] * 3,
        "answer": ["Fish", "birds", None],
        "answers": [["snakes"], ["a frogs"], []],
    }
    assert Quoted()(**given, **columns) == [1.0, 0.0, 0.0]
    assert Quoted("answers")(**given, **columns) == [0.0, 1.0, 0.0]


def test_columns_that_are_missing_or_other_are_refused() -> None:
    given: dict[str, Any] = {"prompts": [""], "completions": [""], "completion_ids": [[]]}
    with one_line("reads the column 'answers', and the columns are ['reference']"):
        ExactMatch()(**given, reference=["a"])
    with one_line("reads the column 'answer', and the columns are ['answers']"):
        ExactMatch(said="answer")(**given, answers=["a"])
    with one_line("The answers are [3]"):
        ExactMatch()(**given, answers=[[3]])
    with one_line("Quoted needs the columns ['answer', 'quotes']"):
        Quoted()(**given)
    with one_line("expected objects with the text 'extract'"):
        Quoted()(**given, quotes=[[{"title": "x"}]], answer=["a"])
