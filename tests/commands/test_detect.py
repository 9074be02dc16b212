"""``textenv sample --watermark`` and ``textenv detect``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textenv.analysis.watermark import Suspect, detect
from textenv.commands.cli import main
from textenv.models.codec import TextCodec
from textenv.models.loading import load_tokenizer
from textenv.models.watermark import KEY_VARIABLE, Gumbel

KEY = "a key of these tests, never stored"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    Path("key").write_text(KEY + "\n")
    return tmp_path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    capsys.readouterr()
    assert main(arguments) == status
    return capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = run(arguments, capsys, 1).splitlines()
    assert KEY not in line
    return line


DETECT = ["detect", "texts.txt", "--watermark", "gumbel"]
SAMPLE = ["sample", "bundled", "--prompt", "The acting", "--samples", "2", "--max-new-tokens", "40"]
KEYED = ["--watermark-key-file", "key"]


def test_what_is_sampled_is_detected_and_the_key_is_nowhere(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run([*SAMPLE, "--watermark", "gumbel", *KEYED, "--records", "x.jsonl", "--html", "x.html"], capsys)
    row = json.loads(Path("x.jsonl").read_text().splitlines()[0])
    assert row["prompt"] == "The acting"
    assert row["watermark"] == {"name": "gumbel", "context": 4, "vocab_size": 4096}
    told += run(["detect", "x.jsonl", "--watermark", "gumbel", *KEYED, "--html", "map.html"], capsys)
    assert "2 of 2 texts have p < 0.01" in told
    Path("key2").write_text("another key, with which nothing is found")
    assert "0 of 2" in run(["detect", "x.jsonl", "--watermark", "gumbel", "--watermark-key-file", "key2"], capsys)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert "2 of 2" in run(["detect", "x.jsonl", "--watermark", "gumbel"], capsys)
    files = [path for path in here.iterdir() if path.name != "key"]
    assert KEY not in told + "".join(path.read_text() for path in files)


def test_verdicts_of_lines_add_up_and_a_page_shows_texts_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("texts.txt").write_text("A film with <b>much</b> to like in it.\nIts plot is thin.\n\nAnother text of them.\n")
    told = run([*DETECT, *KEYED, "--html", "map.html"], capsys)
    assert "texts.txt, text 1: p = " in told
    assert "  line 2: p = " in told
    assert "texts.txt, text 2: p = " in told
    page = Path("map.html").read_text()
    assert "<b>much" not in page
    assert page.count("<article>") == 2
    codec = TextCodec(load_tokenizer("bundled"))
    found = detect(Suspect("", "One line of text here,\nand another one.\n\nAnd more."), Gumbel(KEY.encode()), codec)
    assert len(found.lines) == 4
    assert sum(line.counted for line in found.lines) == found.verdict.counted
    assert "".join(found.tokens) == "One line of text here,\nand another one.\n\nAnd more."
    assert [strength is None for strength in found.strengths[:5]] == [True] * 4 + [False]


def test_no_watermark_is_found_in_what_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    run([*SAMPLE, "--records", "x.jsonl"], capsys)
    assert "watermark" not in json.loads(Path("x.jsonl").read_text().splitlines()[0])
    for name in ("gumbel", "green_list", "synthid"):
        assert "0 of 2 texts" in run(["detect", "x.jsonl", "--watermark", name, *KEYED], capsys)


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts.txt").write_text("A film.\n")
    Path("short").write_text("hidden")
    assert "--watermark-key-file FILE" in refused(DETECT, capsys)
    assert "its key has 6 bytes" in refused([*DETECT, "--watermark-key-file", "short"], capsys)
    assert "cannot be read" in refused([*DETECT, "--watermark-key-file", "none"], capsys)
    assert "Did you mean 'gumbel'?" in refused([*DETECT[:3], "gumbell", *KEYED], capsys)
    assert "with a context of 4 the first that counts is number 5" in refused([*DETECT, *KEYED], capsys)
    settings = [*DETECT, *KEYED, "--watermark-settings"]
    assert "has no setting 'delta'" in refused([*settings, '{"delta": 1}'], capsys)
    assert "gumbel(context='x'): expected" in refused([*settings, '{"context": "x"}'], capsys)
    assert "expected a JSON object" in refused([*settings, "["], capsys)
    assert "holds a key" in refused([*settings, json.dumps({"key": "k" * 20})], capsys)
    Path("texts.txt").write_text("\n")
    assert "no text in it" in refused([*DETECT, *KEYED], capsys)
    assert "no such file" in refused(["detect", "none.jsonl", "--watermark", "gumbel", *KEYED], capsys)
    Path("x.jsonl").write_text('{"prompt": "The film"}\n')
    assert "expected the text 'completion' or 'text'" in refused(["detect", "x.jsonl", *DETECT[2:], *KEYED], capsys)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"name": "synthid", "context": 4, "vocab_size": 4096}, "its watermark is 'synthid', not 'gumbel'"),
        ({"name": "gumbel", "context": 4, "vocab_size": 50257}, "written with a vocabulary of 50257 tokens, and this"),
        ({"name": "gumbel", "context": 2, "vocab_size": 4096}, """give --watermark-settings '{"context": 2}'"""),
        ([1], "watermark is [1]; expected an object"),
    ],
    ids=["name", "vocabulary", "settings", "list"],
)
def test_a_record_says_what_it_was_written_with(
    about: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.jsonl").write_text(json.dumps({"completion": " a film to see and to like.", "watermark": about}) + "\n")
    assert message in refused(["detect", "x.jsonl", "--watermark", "gumbel", *KEYED], capsys)


def test_what_cannot_be_marked_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    marked = [*SAMPLE, "--watermark", "gumbel", *KEYED]
    assert "--greedy draws nothing" in refused([*marked, "--greedy"], capsys)
    assert "name it with --watermark" in refused([*SAMPLE, *KEYED], capsys)
    assert "has no key" in refused([*SAMPLE, "--watermark", "gumbel"], capsys)
    assert "expected a file of kind .jsonl" in refused([*SAMPLE, "--records", "x.txt"], capsys)
    assert "--watermark" in run(["train", "--watermark", "gumbel", "--out", "o"], capsys, 2)
