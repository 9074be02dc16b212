"""Answers about words: scores that were computed by hand, and what is no answer."""

from __future__ import annotations

from typing import Any

import pytest

from textenv.rewards.dictionary_answer import DictionaryAnswer
from textenv.testing import RewardContract
from textenv.types import Reward, TextEnvError

HERON: dict[str, Any] = {
    "word": "heron",
    "meaning": "a wading bird with long legs",
    "kinds": [["wading bird", "wader"], ["bird"], ["animal", "living creature"]],
}


class TestDictionaryAnswer(RewardContract):
    def make_reward(self) -> Reward:
        return DictionaryAnswer()

    def columns(self, n: int) -> dict[str, list[Any]]:
        questions = ["meaning", "kind", "sentence"]
        return {"question": [questions[row % 3] for row in range(n)], **{name: [HERON[name]] * n for name in HERON}}


def score(question: str, *answers: Any, **changed: Any) -> list[float]:
    columns = {name: [value] * len(answers) for name, value in {**HERON, "question": question, **changed}.items()}
    return DictionaryAnswer()(
        prompts=[""] * len(answers), completions=answers, completion_ids=[[]] * len(answers), **columns
    )


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("meaning", "A wading bird with long legs.", 1.0),
        ("meaning", "a flying thing with legs", 2 / 7),  # of three and four words that count, one is common
        ("meaning", "Bird, leg, long, wading, fish", 8 / 9),
        ("meaning", "a bird", 2 / 5),  # more than half of what "bird" is worth as the kind
        ("meaning", "the wader", 1 / 2),
        ("meaning", "animal of some sort or other, or so", 1 / 8),
        ("meaning", "a heron", 0.0),
        ("meaning", "the herons", 0.0),
        ("meaning", "", 0.0),
        ("kind", "A kind of wading bird.", 1.0),
        ("kind", "It's a type of wader", 1.0),
        ("kind", "it is an animal", 0.25),
        ("kind", "A kind of bird.", 2 / 3),  # "wading bird" without a word of it is nearer than "bird" is worth
        ("kind", "A kind of large bird.", 0.5),
        ("kind", "A kind of wading.", 0.0),
        ("kind", "bird heron", 0.0),
        ("kind", "a kind of", 0.0),
        ("kind", "", 0.0),
        ("sentence", "A heron stood in the pond.", 1.0),
        ("sentence", "Nobody saw the heron's long bill!", 1.0),
        ("sentence", "heron", 0.5 + 1 / 6),
        ("sentence", "heron heron heron heron", 0.5 + 1 / 6),
        ("sentence", "A stork stood in the pond.", 0.5),
        ("sentence", "", 0.0),
    ],
)  # fmt: skip
def test_scores_by_hand(question: str, answer: str, expected: float) -> None:
    said = [{"role": "assistant", "content": answer}]
    assert score(question, answer, said) == pytest.approx([expected] * 2)


def test_a_definition_of_common_words() -> None:
    assert score("meaning", "for you", "a stork", meaning="for you") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("question", "changed", "message"),
    [
        ("weight", {}, "Row 0 has question='weight', word='heron', .*; expected one of meaning, kind, sentence"),
        ("meaning", {"meaning": ""}, "meaning=''; expected one of"),
        ("meaning", {"word": None}, "word=None"),
        ("kind", {"kinds": []}, r"Row 0 has kinds=\[\]; expected lists of names, the nearest kind first"),
        ("kind", {"kinds": ["bird", []]}, "expected lists of names"),
        ("kind", {"kinds": 3}, "expected lists of names"),
    ],
)
def test_columns_that_say_nothing(question: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        score(question, "a bird", **changed)


def test_a_missing_column() -> None:
    with pytest.raises(TextEnvError, match=r"needs the columns question, word, meaning, kinds .* no 'meaning'; expect"):
        DictionaryAnswer()(prompts=[""], completions=[""], completion_ids=[[]], question=["kind"], word=["a"])
