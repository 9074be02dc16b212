"""``textenv reward train`` and ``textenv reward eval`` as people run them, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import build_lm
from tests.training.test_reward_training import rankings
from textenv.commands.cli import main
from textenv.models.loading import quiet

FAST = ["--precision", "float32", "--learning-rate", "3e-3", "--epochs", "2", "--batch-size", "24"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model, rankings, and two reward models of few and of many of them."""
    folder = tmp_path_factory.mktemp("work")
    lm = build_lm()
    with quiet():
        lm.model.save_pretrained(folder / "base")
        lm.tokenizer.save_pretrained(folder / "base")
    for name, count, seed in (("train", 120, 0), ("test", 40, 1)):
        rows = [
            {"prompt": r.prompt, "completions": r.completions, "ranks": r.ranks, "annotator": r.annotator}
            for r in rankings(count, seed=seed)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    files = ["--files", str(folder / "train.jsonl"), "--validation", str(folder / "test.jsonl")]
    for name, more in (("few", ["--limit", "10"]), ("all", [])):
        out = ["--out", str(folder / name), "--model", str(folder / "base")]
        assert main(["reward", "train", *files, *out, *FAST, *more]) == 0
    return folder


def test_figures_and_picture_of_several_models(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    texts = {"chosen": "great film great great plot", "rejected": "thin film plot plot thin"}
    row = {"prompt": "", **texts, "subset": "alpacaeval-easy"}
    pairs.write_text(json.dumps(row) + "\n", "utf-8")
    given = ["--files", str(work / "test.jsonl"), "--trained-on", str(work / "train.jsonl"), "--out", str(tmp_path)]
    models = ["--model", str(work / "few"), str(work / "all"), "--reward-bench", str(pairs)]
    assert main(["reward", "eval", *models, *given]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("accuracy against a person", "Brier score", "longer", "RewardBench", "Chat"))
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    few, everything = (report[str(work / name)] for name in ("few", "all"))
    assert few["learned_from"] < everything["learned_from"]
    assert few["accuracy"] < everything["accuracy"]
    assert set(few["groups"]) <= {f"text {what}, annotator seen" for what in ("seen", "partly seen", "held out")}
    assert everything["reward_bench"]["score"] == 1.0
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_training_is_not_done_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--files", str(work / "train.jsonl"), "--validation", str(work / "test.jsonl")]
    out = ["--out", str(work / "all"), "--model", str(work / "base")]
    assert main(["reward", "train", *files, *out, *FAST]) == 0
    assert "validation accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--files", "no.jsonl", "--out", "x"], "no.jsonl: no such file"),
        (["eval", "--model", "nowhere", "--files", "{test}"], "no such folder. Expected 'bundled'"),
        (["eval"], "nothing to measure on"),
        (["train", "--files", "{test}", "--out", "x", "--limit", "1000"], "limit=1000"),
    ],
)
def test_errors(work: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str) -> None:
    command = [part.replace("{test}", str(work / "test.jsonl")) for part in command]
    assert main(["reward", *command]) == 1
    assert message.lower() in capsys.readouterr().out.replace("\n", " ").lower()
