"""Metrics survive a kill, and a resumed run's files equal those of one that was never killed."""

import csv
import io
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from tests.env.test_render import episode
from textenv.rollouts.tracking import (
    RunLogger,
    _smooth,
    comparison_markdown,
    comparison_table,
    plot_training,
    read_metrics,
)
from textenv.types import TextEnvError


def write(folder: Path, steps: range, *, resume_from: int = 0) -> None:
    with RunLogger(folder, total_steps=100, progress=False, resume_from=resume_from) as logger:
        for step in steps:
            logger.log(step, {"objective/score": step / 10, "objective/kl": step * 2.0})


def test_rows_are_in_all_three_places(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert rows == read_metrics(tmp_path)
    assert (
        [float(row["objective/score"]) for row in table] == [row["objective/score"] for row in rows] == [0.1, 0.2, 0.3]
    )
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("objective/kl")] == [1, 2, 3]
    assert [event.value for event in board.Scalars("objective/kl")] == [2.0, 4.0, 6.0]


@given(killed=st.integers(0, 9), checkpoint=st.integers(0, 9), torn=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, killed: int, checkpoint: int, torn: int
) -> None:
    checkpoint = min(checkpoint, killed)
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    write(whole, range(1, 11))
    write(parts, range(1, killed + 1))
    for name in ("metrics.jsonl", "metrics.csv"):  # the kill came in the middle of a line
        with (parts / name).open("a") as file:
            file.write('{"step": 99, "objective/score": 1.0, "objec'[:torn])
    write(parts, range(checkpoint + 1, 11), resume_from=checkpoint)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (parts / name).read_text() == (whole / name).read_text()


def steps_in_tensorboard(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("objective/kl")]


@pytest.mark.parametrize("checkpoint", [0, 3])
def test_a_resumed_run_has_every_step_once_in_tensorboard(
    tmp_path: Path, checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(9, 20))  # of files: the tenth's name comes before the ninth's, were they of the same second
    monkeypatch.setattr(event_file_writer._global_uid, "get", lambda: next(numbers))
    write(tmp_path, range(1, 6))
    write(tmp_path, range(checkpoint + 1, 9), resume_from=checkpoint)
    assert steps_in_tensorboard(tmp_path) == list(range(1, 9))


@pytest.mark.slow
def test_a_kill_takes_no_row_that_was_logged(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal
from textenv.rollouts.tracking import RunLogger
logger = RunLogger(pathlib.Path({str(tmp_path)!r}), total_steps=100, progress=False)
for step in range(1, 40):
    logger.log(step, {{"objective/kl": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path)] == steps_in_tensorboard(tmp_path) == list(range(1, 40))


def test_the_table_tells_infinity_from_nan_after_a_resume_and_a_new_column(tmp_path: Path) -> None:
    with RunLogger(tmp_path, total_steps=3, progress=False) as logger:
        logger.log(1, {"a": math.inf})
        logger.log(2, {"a": -math.inf})
    with RunLogger(tmp_path, total_steps=3, progress=False, resume_from=2) as logger:
        logger.log(3, {"a": math.nan, "b": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,inf,\n2,-inf,\n3,nan,1.0\n"


def test_a_table_that_was_lost_is_made_again_on_resume(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    table = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").unlink()
    write(tmp_path, range(0), resume_from=3)
    assert (tmp_path / "metrics.csv").read_text() == table


@pytest.mark.parametrize(
    "damage",
    ['{"step": 1, "sc', "\0\0", "[]", "5", '{"step": "1"}', '{"score": 1}', '{"step": 1, "x": "y"}', "[" * 10**5],
    ids=["cut", "NUL", "list", "number", "text", "no step", "no number", "deep"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_a_damaged_file_is_told(damage: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    path = tmp_path / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[1:]]) + "\n")
    with pytest.raises(TextEnvError, match=rf"{name}(, line 2: |  *is not what a run wrote)"):
        RunLogger(tmp_path, total_steps=100, progress=False, resume_from=3)


def test_a_new_metric_gets_a_column(tmp_path: Path) -> None:
    with RunLogger(tmp_path, total_steps=2, progress=False) as logger:
        logger.log(1, {"a": 1.0})
        logger.log(2, {"a": 2.0, "b": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,1.0,\n2,2.0,3.0\n"


def test_json_is_strict_where_a_number_is_not_finite(tmp_path: Path) -> None:
    with RunLogger(tmp_path, total_steps=1, progress=False) as logger:
        logger.log(1, {"a": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {"step": 1, "a": None}
    assert math.isnan(read_metrics(tmp_path)[0]["a"])


def test_without_a_terminal_a_line_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLogger(tmp_path, total_steps=20) as logger:
        logger.log(10, {"objective/score": 0.5, "objective/kl": 1.0, "time/tokens_per_second": 1234.0})
        logger.log(20, {"objective/score": 0.6, "objective/kl": 1.0})
    out = capsys.readouterr().out
    assert out == "10/20 tokens: score 0.500, KL 1.00, tokens/s 1,234\n20/20 tokens: score 0.600, KL 1.00\n"


def test_in_a_terminal_a_bar_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    with RunLogger(tmp_path, total_steps=20) as logger:
        logger.log(10, {"rollout/ep_rew_mean": 0.5, "objective/kl": 1.0, "time/tokens_per_second": 1234.0})
    out = capsys.readouterr().out
    assert "50%" in out
    assert "reward 0.500, KL 1.00, tokens/s 1,234" in out
    assert "\x1b[?25h" in out  # the cursor is shown again


def test_in_a_dumb_terminal_lines_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    with RunLogger(tmp_path, total_steps=20) as logger:
        logger.log(20, {"objective/kl": 1.0})
    assert capsys.readouterr().out == "20/20 tokens: KL 1.00\n"


def test_a_value_that_is_not_finite_does_not_end_the_smoothed_line(tmp_path: Path) -> None:
    for name, bad in (("without", ()), ("with", (3,))):
        with RunLogger(tmp_path / name, total_steps=30, progress=False) as logger:
            for step in range(1, 31):
                logger.log(step, {"objective/score": math.nan if step in bad else 1.0, "objective/kl": 1.0})
        plot_training({"run": tmp_path / name}, tmp_path / f"{name}.png")
    blue = [
        int((picture[..., 2] - picture[..., 0] > 0.3).sum())
        for picture in (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("without", "with"))
    ]
    assert blue[1] == pytest.approx(blue[0], rel=0.02)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_shows_the_runs(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "a", range(1, 30))
    write(tmp_path / "b", range(1, 20))
    path = tmp_path / f"x{suffix}"
    plot_training({"one": tmp_path / "a", "two": tmp_path / "b"}, path)
    if suffix == ".png":
        picture = matplotlib.image.imread(path)
        assert picture.shape[1] > 800
        assert ((picture[..., 2] - picture[..., 0]) > 0.3).sum() > 200  # the first run's blue line
        assert ((picture[..., 0] - picture[..., 2]) > 0.3).sum() > 200  # the second's orange
    else:
        assert "<svg" in path.read_text()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 60, 400])
def test_the_smoothed_line_does_not_lag(size: int) -> None:
    steps = np.cumsum(np.linspace(50.0, 100.0, size))
    rising = 3.0 + 0.01 * steps
    np.testing.assert_allclose(_smooth(steps, rising), rising, rtol=1e-9)  # a moving average would be late
    noise = np.random.default_rng(0).normal(size=size)
    if size > 10:
        curve = rising + 2 * np.sin(steps / steps[-1] * np.pi)
        off = _smooth(steps, curve + noise) - curve
        assert np.abs(off).mean() < np.abs(noise).mean()
        assert abs(off.mean()) < 0.25  # neither late nor early
    assert (_smooth(np.full(size, 5.0), noise) <= noise.max() + 1e-9).all()  # all at one step: their mean


def test_the_picture_has_a_title_and_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("textenv.rollouts.tracking.save_figure", lambda figure, path: drawn.append(figure))
    for name in ("a$\\frac$", "_b"):
        write(tmp_path / name, range(1, 40))
    plot_training({"a$\\frac$": tmp_path / "a$\\frac$"}, tmp_path / "x.png")
    plot_training({name: tmp_path / name for name in ("a$\\frac$", "_b")}, tmp_path / "x.png")
    one, two = drawn
    assert one.get_suptitle() == "Training of a$\\frac$"
    for figure, labels in ((one, ["each iteration", "smoothed"]), (two, ["a$\\frac$", " _b"])):
        score, kl = figure.axes
        legend = score.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == labels
        assert (score.get_title(), kl.get_title()) == ("Score of the reward", "KL from the reference")


def test_the_picture_of_one_run_shows_the_parts_of_its_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("textenv.rollouts.tracking.save_figure", lambda figure, path: drawn.append(figure))
    with RunLogger(tmp_path / "a", total_steps=9, progress=False) as logger:
        for step in range(1, 10):
            told = {"objective/score/vader": 0.1 * step} | ({"objective/score/length": 1.0} if step > 4 else {})
            logger.log(step, {"objective/score": 1.0, "objective/kl": 0.5, **told})
    plot_training({"a": tmp_path / "a"}, tmp_path / "x.png")
    plot_training({"a": tmp_path / "a", "b": tmp_path / "a"}, tmp_path / "x.png")
    panel = drawn[0].axes[2]
    assert panel.get_title() == "Parts of the score, smoothed"
    assert [line.get_label() for line in panel.get_lines()] == ["vader", "length"]
    heights = np.asarray(panel.get_lines()[0].get_ydata(), dtype=np.float64)
    assert heights.tolist() == pytest.approx([0.1 * step for step in range(1, 10)])
    assert len(drawn[1].axes) == 2


def test_there_must_be_something_to_draw(tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="no metrics to draw"):
        plot_training({"a": tmp_path}, tmp_path / "x.png")
    with pytest.raises(TextEnvError, match=r"\.png or \.svg"):
        plot_training({"a": tmp_path}, tmp_path / "x.jpg")


def test_the_tables_show_both_and_break_on_nothing() -> None:
    before, after = [episode(" bad | [red]", "\n")], [episode(" good", kl=2.0)]
    markdown = comparison_markdown(before, after)
    assert "bad \\| \\[red\\]\\\\n" in markdown
    assert "| +0.25 | 2.0 |" in markdown
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(before, after, title="Completions"))
    console.file.close()
    text = console.export_text()
    assert "[red]" in text
    assert " good" in text


@pytest.mark.parametrize(
    "text", ["\\[/b]", "[/]", "\\[red]x", "x\\", ":smile:", "**bold**", "![x](http://example.org/x)"]
)
def test_a_completion_is_shown_as_it_is_written(text: str) -> None:
    pair = [episode("before")], [episode(text)]
    for shown in (comparison_table(*pair, title="Completions"), Markdown(comparison_markdown(*pair))):
        console = Console(file=io.StringIO(), record=True, width=200)
        console.print(shown)
        assert text in console.export_text()
