"""``textenv browse``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.webs import QUESTIONS, small_web
from textenv.commands.cli import main
from textenv.data.offline_web import open_web
from textenv.training.texts import read_examples


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    capsys.readouterr()
    assert main(["browse", *arguments]) == status
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_a_folder_is_indexed_with_questions(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pages").mkdir()
    Path("pages/heron.html").write_text("<title>Heron</title>A <a href=bird.txt>bird</a>.")
    Path("pages/bird.txt").write_text("It flies.")
    Path("q.jsonl").write_text('{"question": "What is a heron?", "answers": ["a bird"]}\n')
    told = run(["index", "pages", "--out", "web.sqlite", "--questions", "q.jsonl"], capsys)
    assert told == "web.sqlite: 2 pages, 1 links between them, 1 questions."
    assert open_web(Path("web.sqlite")).page(2).title == "Heron"
    before = Path("web.sqlite").read_bytes()
    Path("q.jsonl").write_text('{"question": "What is a heron?"}\n')
    told = run(["index", "pages", "--out", "web.sqlite", "--questions", "q.jsonl"], capsys, 1)
    assert "q.jsonl, line 1: answers is None; expected a list of texts" in told
    assert Path("web.sqlite").read_bytes() == before
    assert "none: no such file or folder" in run(["index", "none", "--out", "web.sqlite"], capsys, 1)
    assert "expected a file that can be written" in run(["index", "pages", "--out", "no/web.sqlite"], capsys, 1)


def test_demonstrations_are_what_sft_reads(capsys: pytest.CaptureFixture[str]) -> None:
    web = str(small_web(Path(), questions=QUESTIONS[:2]))
    told = run(["demonstrate", "--web", web, "--out", "d.jsonl", "--questions", "3", "--split", "all"], capsys)
    assert told == "d.jsonl: 3 of 3 (100.0%) questions were answered, in 4.0 actions on average."
    examples = [example for _, example in read_examples(Path("d.jsonl"))]
    assert len(examples) == 15
    rows = [json.loads(line) for line in Path("d.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"].startswith("♦Question\nWhat ")
    assert rows[0]["completion"] in {"Search heron eat", "Search feathers"}, "without the words that merely ask"


def test_demonstrations_that_there_are_none_of(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demonstrate", "--out", "d.jsonl", "--split", "all", "--web"]
    web = str(small_web(Path(), questions=QUESTIONS[2:]))
    assert "None of 5 questions was answered" in run([*arguments, web, "--questions", "5"], capsys, 1)
    assert "cannot be read as an offline web" in run([*arguments, "none"], capsys, 1)
    assert "has no questions" in run([*arguments, str(small_web(Path(), questions=()))], capsys, 1)
    assert "its kind is '.txt'" in run(["demonstrate", "--out", "d.txt", "--web", web], capsys, 1)
    assert not Path("d.jsonl").exists()
