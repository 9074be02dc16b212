"""The benchmark of browsing: how it ranks, chooses and counts, and that it runs from end to end on a small web."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import browse
from tests.webs import PAGES, small_web
from textenv import CausalLM
from textenv.data.web_pages import Question, WebPage
from textenv.feedback.agreement import Share
from textenv.models.loading import save_pretrained
from textenv.training.browsing import demonstrate
from textenv.worlds.browser import Browser


def episode(answer: str | None, *, extract: str | None = None, actions: int = 4, invalid: int = 0) -> dict[str, Any]:
    quotes = [] if extract is None else [{"title": "Heron", "domain": "birds.example", "extract": extract}]
    return {
        "question": "What does a heron eat?",
        "answers": ["fish"],
        "quotes": quotes,
        "answer": answer,
        "actions": actions,
        "invalid_actions": invalid,
    }


RIGHT, WRONG = episode("Fish.", extract="It eats fish."), episode("bird", extract="It eats fish.", invalid=1)
UNSUPPORTED, NONE = episode("fish", extract="a wading bird"), episode(None, actions=6, invalid=3)


def test_the_best_of_several_is_the_first_with_the_highest_score() -> None:
    episodes = [NONE, WRONG, RIGHT, UNSUPPORTED, WRONG, NONE, WRONG, WRONG]
    assert browse.best_of(episodes, 4, 1, browse.is_right) == [NONE, WRONG]
    assert browse.best_of(episodes, 4, 2, browse.is_right) == [NONE, WRONG]
    assert browse.best_of(episodes, 4, 4, browse.is_right) == [RIGHT, WRONG]


def test_a_line_counts_episodes_answers_and_actions() -> None:
    name, right, supported, invalid, actions = browse.row("x", [RIGHT, WRONG, UNSUPPORTED, NONE])
    assert (name, right) == ("x", browse.percent(Share(2, 4)))
    assert supported == browse.percent(Share(1, 3)), "of the answers"
    assert invalid == browse.percent(Share(4, 18)), "of the actions"
    assert actions == "4.5"
    assert browse.row("x", [RIGHT, WRONG], browsed=False)[1:] == (browse.percent(Share(1, 2)), "-", "-", "-")
    assert browse.percent(Share(1, 2)) == "50.0% [9.5, 90.5]"
    assert browse.percent(Share(0, 0)) == "-"


def test_a_ranking_has_the_different_answers_with_their_quotes() -> None:
    (ranking,) = browse.rankings([WRONG, RIGHT, NONE, RIGHT, WRONG, WRONG, NONE, NONE, RIGHT, RIGHT, NONE, NONE], 4)
    assert ranking.prompt == "What does a heron eat?■"
    assert ranking.completions == tuple(
        f"[1] Heron (birds.example)\n\nIt eats fish.■{answer}" for answer in ("bird", "Fish.")
    )
    assert ranking.ranks == (1, 0)


def test_what_is_to_be_copied_stands_in_what_is_read() -> None:
    lm, rng = CausalLM.from_pretrained("bundled"), random.Random(0)
    lines = [browse.copied(lm, rng) for _ in range(50)]
    for line in lines:
        words = re.sub("^(Search |Quote: Kind of: )", "", line["completion"])
        assert words in line["prompt"]
    assert {line["completion"].split()[0] for line in lines} >= {"Search", "Quote:"}


@pytest.mark.parametrize(
    ("read", "written", "expected"),
    [
        (
            "♦Text\nKind of: 【0†sense organ】\n♦Next action\n",
            "Quote: Kind of: sense organ",
            "Quote:\tKind of: 【0†sense organ】",
        ),
        ("♦Text\na 【0†wet bird†x】, b\n", "Quote: wet bird", "Quote: 【0†wet bird†x】"),
        ("♦Text\na 【0†wet bird】, b\n", "Quote: a wet", "Quote: a wet"),  # half a link would not be taken as one
        ("♦Text\nIt eats fish.\n", "Quote: eats fish.", "Quote: eats fish."),
        ("What?■[1] Heron (x)\n\nIt eats fish.■", "fish", " fish"),
        ("What?■[1] Heron (x)\n\nfish, a fish■", "Fish", "Fish"),
        ("What is fish?\n♦Text\n", "Search fish", "Search fish"),
    ],
)
def test_what_is_copied_is_written_as_it_is_read(read: str, written: str, expected: str) -> None:
    turn = browse.as_it_is_read({"prompt": read, "completion": written})
    assert turn == {"prompt": read, "completion": expected}


def test_a_browser_takes_it_as_it_takes_the_demonstration(tmp_path: Path) -> None:
    page = WebPage("heron", "Heron", "It eats\nthe fish of ponds.", ((12, 16, "fish"),), "x")
    web = small_web(tmp_path, (page, WebPage("fish", "Fish", "wet", (), "x")), (Question("heron?", ("fish",)),))
    found = demonstrate(Browser(web), seed=0)
    world = Browser(web)
    world.reset(seed=0)
    changed = [browse.as_it_is_read(turn)["completion"] for turn in found.records()]
    columns: dict[str, Any] = {}
    for written in changed:
        columns = world.step(written)[-1]["columns"]
    assert columns == found.columns
    assert changed[2:] == ["Quote:\tthe 【0†fish】 of ponds.", "End: Answer", " fish"]


@pytest.mark.slow
def test_it_runs_and_does_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [Question("What does a heron eat?", ("fish",), f"topic {number}") for number in range(40)]
    small = LlamaConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    save_pretrained(tmp_path / "model", LlamaForCausalLM(small), CausalLM.from_pretrained("bundled").tokenizer)
    config = browse.Config(
        tmp_path / "out", small_web(tmp_path, PAGES, tuple(questions)), str(tmp_path / "model"),
        copies=(64, 32), demonstrations=(4, 2), comparisons=2, samples=2, rl_steps=64, rows=8, questions=2,
        best_of=(1, 2),
    )  # fmt: skip
    browse.main(config)
    told = capsys.readouterr().out
    assert "RL, best of 2 by gold" in told
    assert "cloning, without a browser" in told
    assert "The script answers 100.0%" in told
    files = {path: path.stat().st_mtime_ns for path in config.out.rglob("*") if path.name != ".lock"}
    browse.main(config)
    assert {path: path.stat().st_mtime_ns for path in files} == files
