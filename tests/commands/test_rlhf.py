"""The whole loop, on a model of two layers and with a handful of rankings."""

import functools
import io
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import textenv.commands.rlhf_report
import textenv.commands.rlhf_run
from tests.conftest import build_lm
from textenv.commands.bias_run import Sampling
from textenv.commands.cli import main
from textenv.commands.rlhf import Rlhf
from textenv.commands.rlhf_report import report
from textenv.commands.rlhf_run import rlhf
from textenv.feedback.annotators import FromReward, annotate
from textenv.feedback.demonstrations import WrittenAnswer, add_demonstrations
from textenv.feedback.store import FeedbackStore
from textenv.rollouts.collect import sample_episodes
from textenv.rollouts.console import SafeConsole
from textenv.types import TextEnvError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    lm = build_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(model: str, tmp_path: Path) -> Callable[..., Rlhf]:
    (tmp_path / "prompts.txt").write_text("the film\nthe plot\nit was\n")

    def make(out: str = "run", **changed: Any) -> Rlhf:
        given: dict[str, Any] = {
            "out": tmp_path / out, "model": model, "prompts": tmp_path / "prompts.txt", "gold": None,
            "rounds": 2, "labels": 9, "samples": 3, "eval_episodes": 6, "total_steps": 40, "num_envs": 6,
            "settings": {"max_new_tokens": 5, "kl_mode": "lump"}, "ppo": {"minibatch_size": 6},
            "reward_epochs": 1,
        }  # fmt: skip
        given["gold"] = '{"name": "length", "target": 3}'
        return Rlhf(**{**given, **changed})

    return make


def results(config: Rlhf) -> Any:
    return json.loads((config.out / "results.json").read_text())


def test_two_rounds_and_where_everything_came_from(settings: Callable[..., Rlhf]) -> None:
    config = settings()
    assert rlhf(config)
    rows = results(config)
    assert [(row["round"], row["rankings"]) for row in rows] == [(0, 0), (1, 4), (2, 9)]
    assert rows[0]["kl"]["mean"] == pytest.approx(0.0, abs=1e-4)  # what all start from
    assert rows[0]["proxy"] is None
    assert all(0 <= row["gold"]["mean"] <= 1 and 0 <= row["beats_previous"] <= 1 for row in rows[1:])
    assert (config.out / "rlhf.png").read_bytes().startswith(b"\x89PNG")
    with FeedbackStore(config.store) as store:
        start, first, second = store.policies()
        models = store.reward_models()
        assert [policy.reward_model for policy in (start, first, second)] == [None, *(each.id for each in models)]
        assert Path(second.folder).is_dir()
        judged = [judgement.id for judgement in store.judgements()]
        assert [len(each.judgements) for each in models] == [4, 9]  # the second learns from both rounds
        assert models[1].judgements == tuple(judged)
        authors = {item.id: item.policy for item in store.completions()}
        tasks = store.tasks()
        assert {authors[item] for task in tasks[:4] for item in task.items} == {start.id}
        assert {authors[item] for task in tasks[4:] for item in task.items} == {start.id, first.id}
        for _, ranking in store.rankings():
            gold = [min(len(text.split()), 3) / max(len(text.split()), 3) for text in ranking.completions]
            ranked = np.array(ranking.ranks, dtype=int)
            assert (np.sign(np.subtract.outer(ranked, ranked)) == -np.sign(np.subtract.outer(gold, gold))).all()
    before = (config.out / "results.json").read_bytes()
    assert rlhf(config)  # nothing is missing, so nothing is done
    assert (config.out / "results.json").read_bytes() == before


def test_bias_of_every_stage(settings: Callable[..., Rlhf], monkeypatch: pytest.MonkeyPatch) -> None:
    short = functools.partial(Sampling, samples=1, max_new_tokens=2)
    monkeypatch.setattr(textenv.commands.rlhf_run, "Sampling", short)
    assert rlhf(settings(rounds=1, labels=2))
    config = settings(rounds=1, labels=2, bias=True)  # of a run that is finished
    assert not (config.out / "bias.json").exists()
    assert rlhf(config)
    found = json.loads((config.out / "bias.json").read_text())
    assert [stage["stage"] for stage in found["stages"]] == ["pre-trained", "reward model 1", "PPO 1"]
    assert (config.out / "bias.png").exists()


STAGES = ["_ask", "annotate", "train_reward_model", "train", "Measure.policy", "report"]


@pytest.mark.slow
def test_a_run_that_is_cut_off_anywhere_goes_on(settings: Callable[..., Rlhf], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = settings("whole"), settings("cut")
    assert rlhf(whole)
    for stage in STAGES:
        place, _, name = f"textenv.commands.rlhf_run.{stage}".rpartition(".")
        owner = pkgutil.resolve_name(place)
        done = getattr(owner, name)

        def interrupted(*args: Any, _done: Any = done, **given: Any) -> Any:
            _done(*args, **given)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                rlhf(cut)
    assert rlhf(cut)
    assert results(cut) == results(whole)


def test_people_are_waited_for(settings: Callable[..., Rlhf], capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(gold=None, rounds=1, labels=3)
    assert not rlhf(config)
    printed = capsys.readouterr().out
    assert "3 of 3 rankings are missing" in printed
    assert f"textenv label {config.store}" in printed
    assert not rlhf(config)  # the same tasks wait
    with FeedbackStore(config.store) as store:
        assert len(store.tasks()) == 3
        annotate(store, FromReward(lambda completions, **_: [float(len(text)) for text in completions]), "ann")
    assert rlhf(config)
    assert results(config)[1]["gold"] is None
    assert results(config)[1]["proxy"] is not None


def test_demonstrations_come_first(settings: Callable[..., Rlhf], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "the film", "completion": " was good."}\n' * 40)
    config = settings(sft=(pairs,), sft_max_tokens=12, rounds=1, labels=2)
    assert rlhf(config)
    assert json.loads((config.out / "sft" / "training.json").read_text())["max_tokens"] == 12
    with FeedbackStore(config.store) as store:
        assert store.policies()[0].folder == str(config.out / "sft")
    trained = json.loads((config.round(1) / "policy" / "config.json").read_text())
    assert trained["model"] == str(config.out / "sft")
    before = {path: path.stat().st_mtime_ns for path in (config.out / "sft").iterdir()}
    assert rlhf(config)  # the model is there, and is not trained again
    assert {path: path.stat().st_mtime_ns for path in (config.out / "sft").iterdir()} == before


def test_bad_settings(settings: Callable[..., Rlhf], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changed, message in (
        ({"rounds": 0}, "rounds=0: expected a whole number of at least 1"),
        ({"rounds": 4, "labels": 3}, "a label for each round"),
        ({"samples": 1}, "2 to 9"),
        ({"gold": None, "gold_temperature": 1.0}, "--gold"),
        ({"eval_episodes": 1}, "eval_episodes=1: expected a whole number of at least 2"),
    ):
        with pytest.raises(TextEnvError, match=message):
            settings(**changed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"rounds": 5}')
    with pytest.raises(TextEnvError, match="rounds was 5, is 2"):
        rlhf(settings("other"))
    assert main(["rlhf", "--out", str(tmp_path / "x"), "--gold", "nonesuch", "--labels", "3"]) == 1
    assert "no reward named 'nonesuch'" in capsys.readouterr().out


def test_prompts_that_have_one_answer(settings: Callable[..., Rlhf], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textenv.commands.rlhf_run, "_different", lambda *_: {})
    config = settings()
    with pytest.raises(TextEnvError, match="nothing to rank"):
        rlhf(config)
    with FeedbackStore(config.store) as store:
        assert store.tasks() == []


def test_others_write_while_it_samples(settings: Callable[..., Rlhf], monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(gold=None, rounds=1, labels=70)  # two batches
    monitored: list[tuple[Any, int]] = []
    monkeypatch.setattr("textenv.feedback.store_database._LOCK_SECONDS", 0.05)

    def watched(*given: Any, **named: Any) -> Any:
        with FeedbackStore(config.store, create=False) as other:  # as "textenv label" does
            monitored.append((other.annotator(f"annotator {len(monitored)}"), len(other.tasks())))
        return sample_episodes(*given, **named)

    monkeypatch.setattr(textenv.commands.rlhf_run, "sample_episodes", watched)
    assert not rlhf(config)
    assert len(monitored) >= 2
    assert {tasks for _, tasks in monitored} == {0}  # all tasks of a round come at once
    with FeedbackStore(config.store) as store:
        assert len(store.tasks()) == 70


def test_the_table_of_rounds_fits_into_a_terminal(
    settings: Callable[..., Rlhf], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    console = SafeConsole(file=io.StringIO(), width=80)
    monkeypatch.setattr(textenv.commands.rlhf_report, "console", console)
    monkeypatch.setattr(textenv.commands.rlhf_report, "_draw", lambda report, path: None)
    config = settings()
    config.out.mkdir()
    figure = {"mean": 2.345, "stderr": 0.123}
    rows = [{"proxy": None if number == 0 else figure, "gold": figure, "scores": [1.0, 2.0], "kl": figure, "length": 5}
            for number in range(3)]  # fmt: skip
    judged = [{"model": figure, "ceiling": figure, "judges": figure}, None]
    title = "6 fresh completions of training prompts"
    report(config.out, rows, [0, 4, 9], demonstrations=None, judged=judged, title=title)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    table = shown[: shown.index("Picture")].splitlines()
    assert "…" not in shown
    assert max(map(len, table)) <= 80
    assert "fresh completions of training prompts" in shown
    (headings,) = [line for line in table if "policy " in line and "┃" in line]
    assert [cell.strip() for cell in headings.strip("┃").split("┃")] == [
        "policy", "rankings", "its reward", "gold score", "wins", "KL in nats",
    ]  # fmt: skip
    assert sum(line.count("2.345 ± 0.123") for line in table) == 11  # none is broken


def test_conversations_that_people_wrote_into_a_store(settings: Callable[..., Rlhf], tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "the film"}]
    with FeedbackStore(tmp_path / "written.db") as store:
        add_demonstrations(store, [WrittenAnswer(tuple(asked), (f"it was good {n}",), "ann", None) for n in range(8)])
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": asked}, allow_nan=False) + "\n")
    config = settings(sft=(tmp_path / "written.db",), rounds=1, labels=2, prompts=tmp_path / "prompts.jsonl")
    assert rlhf(config)
    assert results(config)[1]["rankings"] == 2
    assert rlhf(config)  # nothing is missing, so nothing is done
