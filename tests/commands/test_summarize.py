"""``textenv summarize``, and its page in a browser."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.browser import find_chromium
from tests.conftest import build_lm
from textenv.analysis.book_summary import Summary
from textenv.commands.cli import main
from textenv.web.book_page import book_page

HOSTILE = "It <script>alert(1)</script> was\x1b[31m \u202ea day & more."
BOOK = f"{HOSTILE} A ship came. Another sentence of it. The king slept. The queen left."
NODES = [
    Summary(0, 0, 0, 60, 0, HOSTILE),
    Summary(0, 1, 60, len(BOOK), 1, "The king slept."),
    Summary(1, 0, 0, 2, 0, "The king slept one day. Dragons <b>!"),
]


@pytest.fixture
def model(tmp_path: Path) -> str:
    lm = build_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_book_is_summarized_and_gone_on_with(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "out"
    book.write_text("The film was a good plot of it. " * 30)
    command = ["summarize", str(book), "--model", model, "--out", str(out), "--leaf-tokens", "30"]
    assert main(command) == 0
    assert "The page:" in capsys.readouterr().out
    names = ("nodes.jsonl", "summary.html", "summary.txt")
    made = [(out / name).read_bytes() for name in names]
    lines = made[0].splitlines(keepends=True)
    (out / "nodes.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:9])
    (out / "summary.txt").unlink()
    assert main(command) == 0
    assert f"{len(lines) - 3} made now" in capsys.readouterr().out
    assert [(out / name).read_bytes() for name in names] == made
    assert json.loads(lines[-1])["summary"] + "\n" == made[2].decode()
    assert main([*command, "--seed", "1"]) == 1
    assert "seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("b.txt", b"\xff\xfe", "not UTF-8"),
        ("b.txt", b"", "no text in it; expected a book"),
        ("b.epub", b"PK", "not an EPUB that can be read"),
        ("b.doc", b"text", "expected a file of kind .txt"),
    ],
    ids=["binary", "empty", "epub", "kind"],
)
def test_what_is_no_book(
    name: str, data: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    assert main(["summarize", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_what_a_model_cannot_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.txt").write_text("text")
    command = ["summarize", str(tmp_path / "b.txt"), "--model", model, "--out", str(tmp_path / "out")]
    assert main([*command, "--leaf-tokens", "500"]) == 1
    assert "but the model reads 128; lower leaf_tokens" in capsys.readouterr().out
    assert main([*command, "--chat", "yes"]) == 1
    assert "has no chat template" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_every_link_of_the_page_leads_somewhere() -> None:
    page = book_page("A <book>", "bundled", BOOK, NODES)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(ids)
    assert {"h0-1-s0", "h0-0", "h0-1", "top"} <= links
    assert "No words in common with anything below" in page
    assert "<script" not in page
    assert "<b>!" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert 'src="' not in page


def test_of_a_single_passage_and_of_nothing() -> None:
    assert "The model wrote nothing" in book_page("x", "m", "One day.", [Summary(0, 0, 0, 8, 0, "")])
    page = book_page("x", "m", "One day.", [Summary(0, 0, 0, 8, 0, "A day.")])
    assert page.count("<details>") == 1
    assert 'href="#h0-0-p0"' in page


@pytest.mark.slow
def test_a_browser_shows_it_without_a_horizontal_bar(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(book_page("A <book>", "bundled", BOOK + " " + "x" * 400, NODES))
    command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=360,700", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "A &lt;book&gt;" in shown
    assert "alert(1)" in shown
