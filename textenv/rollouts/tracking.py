"""What a training run leaves in its folder: metrics for programs and TensorBoard, pictures and tables for people."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from textenv.data.files import parse_json, to_json, write_atomically
from textenv.data.pictures import check_picture, legend_label, save_figure
from textenv.data.values import as_mapping, as_number, as_whole_number
from textenv.env.render import prompt_lines, prompt_turns, total_kl, visible
from textenv.rollouts.console import SafeConsole
from textenv.rollouts.tables import make_table
from textenv.types import Episode, TextEnvError

__all__ = ["RunLogger", "comparison_markdown", "comparison_table", "plot_training", "read_metrics"]

_SHOWN = (
    ("reward", "rollout/ep_rew_mean", ".3f"),
    ("score", "objective/score", ".3f"),
    ("KL", "objective/kl", ".2f"),
    ("tokens/s", "time/tokens_per_second", ",.0f"),
    ("labels", "labels/judged", ",.0f"),
    ("true return", "rollout/true_return", ",.1f"),
)
_MARKDOWN = re.compile(r"[\\`*_\[\]<>&|!~]")  # what would be a tag, a link, a picture or the next cell
_QUIET_SECONDS = 10.0  # between lines where there is no terminal to draw a bar in


class RunLogger:
    """Writes metrics to ``metrics.csv``, ``metrics.jsonl`` and TensorBoard, and shows a progress bar.

    A run that was killed and goes on drops the rows after its checkpoint, so that the files equal those of a run that
    was never killed, ``time/...`` aside.
    """

    def __init__(
        self, folder: Path, *, total_steps: int, progress: bool = True, resume_from: int = 0, unit: str = "tokens"
    ) -> None:
        """Open the files of a run.

        Args:
            folder: The run's folder.
            total_steps: Steps at which the bar is full.
            progress: Show the bar; where there is no terminal, a line every ten seconds.
            resume_from: The step the run goes on from; later rows are dropped. 0 begins anew, and -1
                where rows are logged at step 0 too.
            unit: What is counted in steps.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._jsonl, self._csv = folder / "metrics.jsonl", folder / "metrics.csv"
        rows = [row for row in read_metrics(folder) if row["step"] <= resume_from]
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        write_atomically(self._jsonl, "".join(_line(row) for row in rows))
        cells = [row for row in _cells(self._csv) if float(row["step"]) <= resume_from]
        write_atomically(self._csv, _table([*cells, *rows[len(cells) :]], self._columns))
        self._board = _board(folder / "tensorboard", resume_from + 1)
        self._console = SafeConsole()
        self._bar: Progress | None = None
        if progress and self._console.is_interactive:
            columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self._console
            )
            self._task = self._bar.add_task("training", total=total_steps, completed=resume_from, note="")
            self._bar.start()
        self._plain = progress and self._bar is None
        self._total, self._unit = total_steps, unit
        self._printed = -math.inf  # when the last line was

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step.

        Args:
            step: Steps done so far.
            metrics: Values by name, such as ``objective/kl``.
        """
        row = {"step": step, **metrics}
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            write_atomically(self._csv, _table(_cells(self._csv), self._columns))
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        with self._csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()  # a killed run would lose rows from before its checkpoint, which are not logged again
        note = ", ".join(f"{label} {metrics[name]:{form}}" for label, name, form in _SHOWN if name in metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=min(step, self._total), note=note)
        elif self._plain and (time.monotonic() - self._printed > _QUIET_SECONDS or step >= self._total):
            self._printed = time.monotonic()
            sys.stdout.write(f"{step:,}/{self._total:,} {self._unit}: {note}\n")
            sys.stdout.flush()

    def close(self) -> None:
        """Close the files and the bar."""
        self._board.close()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> RunLogger:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files and the bar."""
        self.close()


def _board(folder: Path, purge_step: int) -> SummaryWriter:
    """Begin a file of events that TensorBoard reads after those that are there.

    It reads them in the order of their names, ``events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER``, as text: of files of
    the same second the tenth would come before the ninth.
    """
    before = set(folder.glob("events.*"))
    board = SummaryWriter(str(folder), purge_step=purge_step)
    after = set(folder.glob("events.*"))
    if before and max(after) in before:
        board.close()
        for path in after - before:
            path.unlink()
        time.sleep(1 - time.time() % 1)
        board = SummaryWriter(str(folder), purge_step=purge_step)
    return board


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's ``metrics.jsonl``, less a last line that a killed run left incomplete.

    Args:
        folder: The run's folder; no rows where it has none yet.
    """
    path = folder / "metrics.jsonl"
    return _rows(path) if path.exists() else []


def plot_training(runs: Mapping[str, Path], path: Path) -> None:
    """Draw score and KL over the tokens written, for one run or several: of each iteration, faintly, and smoothed.

    For one run whose reward has parts, the smoothed scores of these are drawn beside them.

    Args:
        runs: Folders of runs, by the name in the title or, of several, in the legend.
        path: ``.png`` or ``.svg`` to write.

    Raises:
        TextEnvError: A run has no metrics, or the picture's kind is another.
    """
    check_picture(path)
    alone = len(runs) == 1
    parts = _part_curves(next(iter(runs.values()))) if alone else {}
    count = len(_DRAWN) + bool(parts)
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow, and drawn at the end)

    figure = Figure(figsize=(4.5 * count, 3.9), dpi=130, layout="constrained")
    panels = figure.subplots(1, count)
    figure.suptitle(f"Training of {next(iter(runs))}" if alone else "Training; faint: each iteration")
    for place, (name, folder) in enumerate(runs.items()):
        rows = read_metrics(folder)
        if not rows:
            raise TextEnvError(f"{folder} has no metrics to draw; expected a run of 'textenv train'.")
        for panel, key in zip(panels, _DRAWN, strict=False):
            steps, values = _finite(rows, key)
            labels = ("each iteration", "smoothed") if alone else ("", legend_label(name))
            panel.plot(steps, values, color=f"C{place}", alpha=0.35, linewidth=1, label=labels[0])
            panel.plot(steps, _smooth(steps, values), color=f"C{place}", linewidth=2, label=labels[1])
    for name, (steps, values) in parts.items():
        panels[-1].plot(steps, _smooth(steps, values), linewidth=2, label=legend_label(name))
    titles = [*_DRAWN.values(), ("Parts of the score, smoothed", "score")]
    for panel, (title, label) in zip(panels, titles, strict=False):
        panel.set(title=title, xlabel="tokens written", ylabel=label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in [panels[0], *panels[len(_DRAWN) :]]:
        panel.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


_PART = "objective/score/"
"""What the names of the metrics of a reward's parts begin with."""


def _part_curves(folder: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return steps and scores of each part of a run's reward, by its name."""
    rows = read_metrics(folder)
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(_PART))
    return {key.removeprefix(_PART): _finite(rows, key) for key in keys}


_DRAWN = {
    "objective/score": ("Score of the reward", "score"),
    "objective/kl": ("KL from the reference", "KL in nats an episode"),
}
"""Metrics in the picture of a training, with the title of their panel and the label of its axis."""


def _finite(rows: Sequence[Mapping[str, float]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps and values of a metric, each ``(n,)``, where it is finite: one nan would spread by smoothing."""
    found = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def comparison_table(before: Sequence[Episode], after: Sequence[Episode], *, title: str) -> Table:
    """Return completions of the same prompts before and after training, side by side, for a terminal."""
    table = make_table("prompt", "before", "score", "after", "score", "KL", title=title, texts=(0, 1, 3), lines=True)
    for old, new in zip(before, after, strict=True):
        was = (prompt_lines(old.start), visible(old.completion), f"{old.earned:+.2f}")
        now = (visible(new.completion), f"{new.earned:+.2f}", f"{total_kl(new):.1f}")
        table.add_row(*map(Text, (*was, *now)))  # in plain strings, rich would read markup and emoji codes
    return table


def comparison_markdown(before: Sequence[Episode], after: Sequence[Episode]) -> str:
    """Return the same as a Markdown table."""
    lines = ["| prompt | before | score | after | score | KL (nats) |", "|---|---|---:|---|---:|---:|"]
    for old, new in zip(before, after, strict=True):
        turns = [(_escaped(role), _escaped(text)) for role, text in prompt_turns(old.start)]
        prompt = "<br>".join(f"{f'**{role}:** ' if role else ''}{text}" for role, text in turns)
        was, now = _escaped(old.completion), _escaped(new.completion)
        lines.append(f"| {prompt} | {was} | {old.earned:+.2f} | {now} | {new.earned:+.2f} | {total_kl(new):.1f} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def _line(row: Mapping[str, float]) -> str:
    strict = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return to_json(strict) + "\n"


def _rows(path: Path) -> list[dict[str, float]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            where = f"{path}, line {number}:"
            row = as_mapping(parse_json(line, f"{where} it"), f"{where} it")
            as_whole_number(row.get("step"), f"{where} step")
            for name, value in row.items():
                if value is not None:
                    as_number(value, f"{where} {name}")
            rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def _cells(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of ``metrics.csv`` as they are written: unlike JSON, it tells infinity from nan."""
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
        whole = all(None not in (*row, *row.values()) for row in rows)
        if whole and all(float(row["step"]) >= 0 for row in rows):
            return rows
        reason = "a step is below 0" if whole else "a row has more or fewer cells than the heading"
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}"
    raise TextEnvError(f"{path} is not what a run wrote ({reason}). Restore it, or begin in another folder.")


def _table(rows: Sequence[Mapping[str, float | str]], columns: Sequence[str]) -> str:
    if not columns:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _smooth(steps: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a smoothed curve, shape ``(n,)``, that does not lag behind: a line fitted around each point.

    The points of an eighth of the curve on either side count, the less the farther they are away (local linear
    regression). A moving average would be late wherever the curve rises, and off at both of its ends.
    """
    reach = min(max(3, len(values) // 8), (len(values) - 1) // 2)
    if reach < 1:
        return values
    weights = 1 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)

    def around(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.convolve(numbers, weights, mode="same")

    x = (steps - steps.mean()) / (np.ptp(steps) or 1.0)
    n, sum_x, sum_y = around(np.ones_like(x)), around(x), around(values)
    spread = n * around(x * x) - sum_x**2
    slope = (n * around(x * values) - sum_x * sum_y) / np.maximum(spread, np.finfo(np.float64).tiny)
    slope = np.where(spread > 1e-12, slope, 0.0)
    smoothed: NDArray[np.float64] = (sum_y - slope * sum_x) / n + slope * x
    return smoothed
