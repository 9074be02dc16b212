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
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from textenv.data.files import parse_json, to_json, write_atomically
from textenv.data.pictures import check_picture, save_figure
from textenv.data.values import as_mapping, as_number, as_whole_number
from textenv.env.render import total_kl, visible
from textenv.rollouts.console import SafeConsole
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
        self._spoke = -math.inf

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
        self._board.flush()  # or a kill takes rows that come before the checkpoint, which a resumed run won't log again
        note = ", ".join(f"{label} {metrics[name]:{form}}" for label, name, form in _SHOWN if name in metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=min(step, self._total), note=note)
        elif self._plain and (time.monotonic() - self._spoke > _QUIET_SECONDS or step >= self._total):
            self._spoke = time.monotonic()
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
    """Return the rows of a run's ``metrics.jsonl``; a last line that a kill cut short is left out.

    Args:
        folder: The run's folder; no rows where it has none yet.
    """
    path = folder / "metrics.jsonl"
    return _rows(path) if path.exists() else []


def plot_training(runs: Mapping[str, Path], path: Path) -> None:
    """Draw score and KL over the tokens written, for one run or several, faintly as measured and smoothed.

    Args:
        runs: Folders of runs, by the name in the legend.
        path: ``.png`` or ``.svg`` to write.

    Raises:
        TextEnvError: A run has no metrics, or the picture's kind is another.
    """
    check_picture(path)
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2)
    for place, (name, folder) in enumerate(runs.items()):
        rows = read_metrics(folder)
        if not rows:
            raise TextEnvError(f"{folder} has no metrics to draw; expected a run of 'textenv train'.")
        for panel, key, label in zip(
            panels, ("objective/score", "objective/kl"), ("score", "KL in nats an episode"), strict=True
        ):
            steps = np.array([row["step"] for row in rows if key in row])
            values = np.array([row[key] for row in rows if key in row], dtype=float)
            finite = np.isfinite(values)  # one nan would take the smoothed line with it
            steps, values = steps[finite], values[finite]
            panel.plot(steps, values, color=f"C{place}", alpha=0.25, linewidth=1)
            panel.plot(steps, _smooth(values), color=f"C{place}", linewidth=2, label=name)
            panel.set(xlabel="tokens written", ylabel=label)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        panels[0].legend(frameon=False)
    save_figure(figure, path)


def comparison_table(before: Sequence[Episode], after: Sequence[Episode]) -> Table:
    """Return completions of the same prompts before and after training, side by side, for a terminal."""
    table = Table(title="Completions of held-out prompts", show_lines=True)
    for name in ("prompt", "before", "score", "after", "score", "KL"):
        table.add_column(name, justify="right" if name in {"score", "KL"} else "left", no_wrap=name in {"score", "KL"})
    for old, new in zip(before, after, strict=True):
        was = (visible(old.prompt), visible(old.completion), f"{old.score:+.2f}")
        now = (visible(new.completion), f"{new.score:+.2f}", f"{total_kl(new):.1f}")
        table.add_row(*map(Text, (*was, *now)))  # in plain strings, rich would read markup and emoji codes
    return table


def comparison_markdown(before: Sequence[Episode], after: Sequence[Episode]) -> str:
    """Return the same as a Markdown table."""
    lines = ["| prompt | before | score | after | score | KL (nats) |", "|---|---|---:|---|---:|---:|"]
    for old, new in zip(before, after, strict=True):
        texts = [_MARKDOWN.sub(r"\\\g<0>", visible(text)) for text in (old.prompt, old.completion, new.completion)]
        lines.append(
            f"| {texts[0]} | {texts[1]} | {old.score:+.2f} | {texts[2]} | {new.score:+.2f} | {total_kl(new):.1f} |"
        )
    return "\n".join(lines) + "\n"


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
        if all(float(row["step"]) >= 0 for row in rows):
            return rows
        reason = "a step is below 0"
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


def _smooth(values: np.ndarray, weight: float = 0.8) -> np.ndarray:
    """Return the exponential moving average, corrected for its start."""
    average, total, smoothed = 0.0, 0.0, []
    for value in values:
        average, total = weight * average + (1 - weight) * value, weight * total + (1 - weight)
        smoothed.append(average / total)
    return np.array(smoothed)
