"""The recipe of summarizing books, on the few stories that come with textenv."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textenv.commands.cli import main
from textenv.data import book_texts
from textenv.data.book_texts import load_books
from textenv.data.records import read_records
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.recipes.books import Books


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise AssertionError("--quick fetches nothing")

    monkeypatch.setattr(book_texts, "load_papers", refuse)


def test_its_data_have_no_text_in_common(tmp_path: Path) -> None:
    data = Books().prepare(tmp_path, quick=True, seed=0)
    assert data.prompts is not None
    assert data.eval_prompts is not None
    demonstrations, prompts, held_out = (
        [row for _, row in read_records(path)] for path in (data.sft[0], data.prompts, data.eval_prompts)
    )
    for rows, split in ((prompts, "train"), (held_out, "heldout")):
        books = load_books(["few"], split)  # type: ignore[arg-type]
        assert all(any(row["text"] in book.text for book in books) for row in rows)  # passages, and no other nodes
        assert {row["reference"] for row in rows} == {book.columns["reference"] for book in books}
    assert {row["prompt"] for row in prompts} < {row["prompt"] for row in demonstrations}
    assert any("\n----\n" in row["text"] for row in demonstrations)  # nodes above the passages
    assert not any("completion" in row for row in prompts)
    assert all(row["completion"].strip() for row in held_out)
    before = data.sft[0].read_bytes()
    Books().prepare(tmp_path, quick=True, seed=0)
    assert data.sft[0].read_bytes() == before


@pytest.mark.slow
def test_its_measures(tmp_path: Path) -> None:
    data = Books().prepare(tmp_path, quick=True, seed=0)
    found = Books().measure(TextPolicy(CausalLM.from_pretrained()), data, seed=0)
    assert {name: len(values) for name, values in found.items()} == {
        "root ROUGE-1": 2, "root ROUGE-2": 2, "root ROUGE-L": 2
    }  # fmt: skip


@pytest.mark.slow
def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["rlhf", "--recipe", "books", "--quick", "--out", str(out)]) == 0
    assert "root ROUGE-1" in capsys.readouterr().out
    wins = json.loads((out / "wins.json").read_text())
    assert set(wins["elo"]) == {"start", "round 1", "demonstrations"}
