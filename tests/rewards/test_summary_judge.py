"""The judge of summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data.summaries import SummaryData
from textenv.models.matcher import copied_share
from textenv.rewards import SummaryJudge, make
from textenv.testing import RewardContract
from textenv.types import Reward

ROWS = SummaryData(data="few", split="heldout").rows()
TEXTS = [row["text"] for row in ROWS]


def scores(judge: SummaryJudge, summaries: list[str]) -> list[float]:
    return judge(prompts=[""] * len(ROWS), completions=summaries, completion_ids=[[]] * len(ROWS), text=TEXTS)


class TestSummaryJudge(RewardContract):
    def make_reward(self) -> Reward:
        return make({"name": "summary_judge", "data": "few"})

    def columns(self, n: int) -> dict[str, list[Any]]:
        return {"text": ["a great success of a film", "b", "4", "日本の猫", "", "x"][:n]}


def test_the_score_is_that_of_the_matcher_less_what_is_copied() -> None:
    judge = SummaryJudge(data="few", copy_penalty=2)
    copies = [" ".join(text.split()[:8]) for text in TEXTS]
    expected = [
        score - 2 * copied_share(text, copy)
        for score, text, copy in zip(judge.matcher.scores(TEXTS, copies), TEXTS, copies, strict=True)
    ]
    assert scores(judge, copies) == pytest.approx(expected)
    assert sum(scores(judge, [row["reference"] for row in ROWS])) > sum(scores(judge, copies[1:] + copies[:1]))


def test_it_says_that_it_is_not_human() -> None:
    assert repr(SummaryJudge(data="few")) == "SummaryJudge(data='few'): a program, not a person"


def test_it_learns_from_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"long": f"Text {n} about topic{n} and more.", "short": f"topic{n}", "of": f"g{n // 3}"} for n in range(60)]
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    judge = SummaryJudge(data=str(path), text_column="long", reference_column="short", group_column="of")
    about, other = judge(
        prompts=["", ""], completions=["topic3", "topic4"], completion_ids=[[], []], text=[str(rows[3]["long"])] * 2
    )
    assert about > other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "none.jsonl"}, "no such file"),
        ({"copy_penalty": -1}, r"SummaryJudge\(copy_penalty=-1\): expected"),
        ({"data": "few", "max_characters": 1}, "none with a text of at most 1 characters"),
    ],
    ids=["file", "penalty", "limit"],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        SummaryJudge(**settings)
