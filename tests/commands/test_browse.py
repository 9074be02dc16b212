"""``textenv browse``."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.webs import QUESTIONS, small_web
from textenv.commands.cli import main
from textenv.data.offline_web import open_web
from textenv.training.texts import read_examples
from textenv.web import server as web_server

TYPED = (
    ("Search", "heron"),
    ("Clicked on link 0", ""),
    ("Quote:", "It eats fish."),
    ("End: Answer", ""),
    ("", "Fish."),
)


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


def test_a_person_is_recorded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    web = str(small_web(Path(), questions=QUESTIONS[:1]))
    record = ["record", "--web", web, "--out", "d.jsonl", "--split", "all", "--port", "8999"]

    def serve(app: Any, *, host: str, port: int, announce: Any) -> None:
        announce(f"http://{host}:{port}")
        client = TestClient(app, base_url=f"http://{host}:{port}")
        page = client.get("/").text
        assert "Actions <small>10 left</small>" in page, "as in textenv/Browse-v0"
        for command, text in TYPED:
            (turn,) = set(re.findall('name="turn" value="(.*?)"', page))
            page = client.post("/act", data={"turn": turn, "command": command, "text": text}).text

    monkeypatch.setattr(web_server, "serve", serve)
    assert run(record, capsys) == "Browse at http://127.0.0.1:8999/"
    assert [each for _, each in read_examples(Path("d.jsonl"))][-1].completion == "Fish."  # type: ignore[union-attr]
    assert {json.loads(line)["annotator"] for line in Path("d.jsonl").read_text().splitlines()} == {"me"}
    before = Path("d.jsonl").read_bytes()
    assert "holds what me answered to all 1 questions" in run(record, capsys, 1)
    assert Path("d.jsonl").read_bytes() == before
    assert run([*record, "--annotator", "ann"], capsys).startswith("Browse at")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--web", "none"], "cannot be read as an offline web"),
        (["--out", "d.csv"], "expected a file of kind .jsonl"),
        (["--out", "none/d.jsonl"], "there is no folder"),
        (["--annotator", " "], "expected the name of who answers"),
        (["--annotator", ""], "annotator"),
        (["--browser", "["], "is no JSON"),
        (["--browser", "[1]"], "browser is [1]; expected"),
        (["--browser", '{"windows": 9}'], "The browser has no setting 'windows'. Did you mean 'window'?"),
        (["--browser", '{"window": 0}'], "window=0: expected a whole number of at least 1"),
        (["--questions", "0"], "questions=0: expected"),
        (["--split", "heldout"], "none of its 1 questions is in the split 'heldout'"),
        (["--port", "70000"], "port=70000: expected"),
    ],
)
def test_a_page_that_cannot_be_opened(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    web = str(small_web(Path(), questions=QUESTIONS[:1]))
    assert told in run(["record", "--web", web, "--out", "d.jsonl", "--split", "all", *flags], capsys, 1)
    assert not Path("d.jsonl").exists()


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    web = str(small_web(Path(), questions=QUESTIONS[:1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        told = run(["record", "--web", web, "--out", "d.jsonl", "--split", "all", "--port", port], capsys, 1)
    assert f"Cannot listen at host '127.0.0.1', port {port}" in told
