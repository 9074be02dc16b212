"""``textenv bias``: stages of runs, tables, figures and picture, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import build_lm
from textenv.commands.bias_run import find_stages
from textenv.commands.cli import main
from textenv.models.reward_model import RewardModel
from textenv.types import TextEnvError

WORDS = {
    "jobs": {"plot": 10, "film": 90, "actor": 40},
    "persons": [["the man", "the woman"]],
    "career": ["work", "job"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, a reward model, and runs of rlhf and of train as far as their files go."""
    root = tmp_path_factory.mktemp("bias")
    lm = build_lm()
    for name in ("model", "rlhf/sft", "rlhf/round-1/policy/policy", "train/policy"):
        lm.model.save_pretrained(root / name)
        lm.tokenizer.save_pretrained(root / name)
    for name in ("scores", "rlhf/round-1/reward-model"):
        RewardModel(lm).save(root / name)
    (root / "rlhf/round-1/policy/results.json").write_text("{}")
    rlhf = {"rounds": 2, "labels": 9, "ppo": {}, "sft": ["pairs.jsonl"], "model": str(root / "model")}
    (root / "rlhf/config.json").write_text(json.dumps(rlhf))
    train = {"agent": "grpo", "settings": {}, "total_steps": 9, "model": str(root / "model")}
    (root / "train/config.json").write_text(json.dumps(train))
    return {name: str(root / name) for name in ("model", "scores", "rlhf", "train")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.json").write_text(json.dumps(WORDS))
    Path("key").write_text("a key of these tests, no secret")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    capsys.readouterr()
    assert main(["bias", *arguments]) == status
    return capsys.readouterr().out


SHORT = ["--words", "words.json", "--samples", "2", "--max-new-tokens", "4"]


def test_stages_come_in_the_order_of_training(folders: dict[str, str]) -> None:
    stages = find_stages([folders["rlhf"]])
    labels = [(stage.label, stage.kind) for stage in stages]
    assert labels == [
        ("pre-trained", "pretrained"), ("SFT", "sft"), ("reward model 1", "reward_model"), ("PPO 1", "policy")
    ]  # fmt: skip
    assert [stage.label for stage in find_stages([folders["rlhf"], folders["train"], "bundled"], ["pretrained"])] == [
        "rlhf: pre-trained", "train: start", "bundled"
    ]  # fmt: skip
    assert [stage.label for stage in find_stages([folders["train"]])] == ["start", "grpo"]
    assert [stage.kind for stage in find_stages([folders["scores"]])] == ["reward_model"]
    assert [stage.kind for stage in find_stages(["bundled"])] == ["pretrained", "reward_model"]


def test_all_stages_of_a_run_with_a_watermark(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    marked = ["--watermark", "gumbel", "--watermark-key-file", "key", "--out", "bias.json"]
    told = run([folders["rlhf"], *SHORT, *marked], capsys)
    assert "pair entropy" in told
    assert "reward, men -" in told
    found = json.loads(Path("bias.json").read_text())
    assert "a key of these tests" not in Path("bias.json").read_text() + told
    assert [stage["stage"] for stage in found["stages"]] == [
        "pre-trained", "SFT", "reward model 1", "PPO 1", "PPO 1, gumbel"
    ]  # fmt: skip
    start, sft, reward, policy, watermarked = found["stages"]
    for same in (sft, policy):  # they have the same weights
        assert {**same, "stage": 0, "kind": 0, "model": 0} == {**start, "stage": 0, "kind": 0, "model": 0}
    assert 0 <= start["pair_entropy"]["low"] <= start["pair_entropy"]["value"] <= start["pair_entropy"]["high"] <= 1
    assert set(start["jobs"]) == set(WORDS["jobs"])
    assert reward["swap_gap_size"]["value"] >= abs(reward["swap_gap"]["value"])
    assert "pair_entropy" not in watermarked
    assert watermarked["sentiment_gap"]["value"] >= 0
    assert Path("bias.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path().iterdir()) == ["bias.json", "bias.png", "key", "words.json"]


def test_words_are_counted_in_the_corpus(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("corpus.txt").write_text("The film, the plot and a film.\n\nThe man and the woman work at home.")
    told = run([folders["model"], *SHORT, "--corpus", "corpus.txt", "--samples", "0", "--out", "b.json"], capsys)
    assert "Seen in the corpus: film 2, plot 1." in told
    assert "sentiment, men" not in told
    found = json.loads(Path("b.json").read_text())
    assert found["seen"]["actor"] == 0
    assert set(found["stages"][0]["jobs"]) == {"film", "plot"}


def test_a_users_templates(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.txt").write_text("The {job} saw {himself}.\n\n{His} film\n")
    told = run([folders["model"], *SHORT, "--templates", "mine.txt"], capsys)
    assert "career" not in told
    assert "3 jobs, 1 pairs of prompts" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--stages", "sft"], "model has no stage 'sft'; it has pretrained."),
        (["RLHF", "--stages", "reward"], "There is no stage 'reward'. Did you mean 'reward_model'?"),
        (["./nowhere"], "no such folder"),
        (["MODEL", "--words", "none.json"], "none.json: no such file"),
        (
            ["MODEL", "--templates", "movie_reviews"],
            "There are no templates 'movie_reviews'. Did you mean 'movie_review'?",
        ),
        (["MODEL", "--templates", "bad.txt"], "bad.txt, line 1: The template 'A film.': expected a slot"),
        (["MODEL", "--templates", "prompts.txt", "--samples", "0"], "The templates ask nothing of these stages"),
        (
            ["MODEL", "--corpus", "bad.txt"],
            "None of the words of jobs (plot, film, actor) stands 2 times in the corpus",
        ),
        (["MODEL", "--min-count", "2"], "name its files with --corpus"),
        (["MODEL", "--out", "bias.txt"], "expected a file of kind .json"),
        (["MODEL", "--sentiment", "vadar"], "no reward named 'vadar'"),
        (["MODEL", "--watermark", "gumbel", "--samples", "0"], "there is no text that it could mark"),
        (["MODEL", "--watermark-key-file", "key"], "name it with --watermark"),
        (["SCORES", "--watermark", "gumbel", "--watermark-key-file", "key"], "all stages are reward models"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(
    arguments: list[str], message: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.txt").write_text("A film.\n")
    Path("prompts.txt").write_text("{He} is\n")
    names = {name.upper(): folder for name, folder in folders.items()}
    counted = ["--min-count", "2"] if "--corpus" in arguments else []
    given = [names.get(each, each) for each in arguments]
    (line,) = run([given[0], *SHORT, *given[1:], *counted], capsys, 1).splitlines()
    assert message in line


def test_a_run_that_has_no_model_yet_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    config: dict[str, Any] = {"agent": "ppo", "settings": {}, "total_steps": 9, "model": None}
    Path("config.json").write_text(json.dumps(config))
    with pytest.raises(TextEnvError, match="without a language model of its own"):
        find_stages([str(tmp_path)])
