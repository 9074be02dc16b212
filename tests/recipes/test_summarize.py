"""The recipe of learning to summarize, on the few descriptions that come with textenv."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textenv.commands.cli import main
from textenv.data import summaries
from textenv.data.records import read_records
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.recipes.summarize import Summarize


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("--quick fetches nothing")

    monkeypatch.setattr(summaries, "load_descriptions", refuse)


def test_its_data_have_no_source_in_common(tmp_path: Path) -> None:
    data = Summarize().prepare(tmp_path, quick=True, seed=0)
    assert data.prompts is not None
    assert data.eval_prompts is not None
    demonstrations, prompts, held_out = (
        [row for _, row in read_records(path)] for path in (data.sft[0], data.prompts, data.eval_prompts)
    )
    assert {row["prompt"] for row in demonstrations} == {row["prompt"] for row in prompts}
    assert not {row["prompt"] for row in prompts} & {row["prompt"] for row in held_out}
    assert all(row["completion"] == f" {row['reference']}" for row in held_out)
    judged = {row["text"] for row in summaries.SummaryData(data="few", split="judge").rows()}
    assert not judged & {row["text"] for row in [*prompts, *held_out]}
    before = data.prompts.read_bytes()
    Summarize().prepare(tmp_path, quick=True, seed=0)
    assert data.prompts.read_bytes() == before


def test_its_measures(tmp_path: Path) -> None:
    data = Summarize().prepare(tmp_path, quick=True, seed=0)
    policy = TextPolicy(CausalLM.from_pretrained())
    found = Summarize().measure(policy, data, seed=0)
    assert {name: len(values) for name, values in found.items()} == {"ROUGE-L": 4, "copied": 4, "words": 4}
    assert found == Summarize().measure(policy, data, seed=1)  # at temperature 0 nothing is drawn


@pytest.mark.slow
def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["rlhf", "--recipe", "summarize", "--quick", "--out", str(out)]) == 0
    assert "ROUGE-L" in capsys.readouterr().out
    wins = json.loads((out / "wins.json").read_text())
    assert set(wins["elo"]) == {"start", "round 1", "demonstrations"}
