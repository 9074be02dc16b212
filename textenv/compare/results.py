"""The figures of a comparison: what its runs wrote, put together."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.analysis.frontier import price_in_nats
from textenv.compare.plan import Plan
from textenv.compare.runs import finished, run_folder, task_file
from textenv.data.files import write_atomically
from textenv.types import TextEnvError

__all__ = ["Aggregate", "Curves", "Results", "read_results", "write_tables"]

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """The runs of an agent on a task, all at the same places; ``at`` is in tokens or in seconds.

    Attributes:
        at: Shape ``(points,)``, from 0, where every agent is the reference.
        score: Shape ``(runs, points)``.
        kl: In nats, likewise.
        value: ``score - kl_coef * kl``, likewise.
    """

    at: Values
    score: Values
    kl: Values
    value: Values


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """An agent's scores over the tasks, ``(runs, tasks)``: 0 is the reference, 1 the best that is known.

    Attributes:
        tokens: When the budget of tokens is used up.
        seconds: When every run of the task has taken as long as the quickest took in all.
    """

    tokens: Values
    seconds: Values


@dataclass(frozen=True, eq=False)
class Results:
    """All that the report tells.

    Attributes:
        plan: What was asked for.
        tasks: By label, what ``measure_task`` wrote.
        runs: By labels of agent and task, what the finished runs wrote, by seed.
    """

    plan: Plan
    tasks: Mapping[str, Mapping[str, Any]]
    runs: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]

    @property
    def agents(self) -> list[str]:
        """Labels of the agents of which a run is finished."""
        return [a.label for a in self.plan.agents if any(self.runs[a.label, t.label] for t in self.plan.tasks)]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Labels of agent and task where a run is finished, task by task."""
        return [(a, t.label) for t in self.plan.tasks for a in self.agents if self.runs[a, t.label]]

    def top(self, task: str) -> float:
        """Return the best value known: the optimum's, that of the best of best-of-n, or with a world the best run's."""
        about = self.tasks[task]
        if about["optimum"] is not None:
            return float(about["optimum"]["value"])
        frontier = about["frontier"]
        if not frontier["n"]:
            start = float(about["reference"]["value"])
            best = max(float(run["value"]) for (_, t), runs in self.runs.items() if t == task for run in runs.values())
            return best if best > start else start + 1.0  # where none is better, differences stay as they are
        return float(np.max(np.array(frontier["score"]) - about["kl_coef"] * np.array(frontier["kl"])))

    def normalized(self, task: str, value: Values | float) -> Values:
        """Return values as shares of the way from the reference to ``top``; 1 less the regret, where that is known."""
        start = self.tasks[task]["reference"]["value"]
        gain = self.top(task) - start
        if gain <= 1e-12 * max(1.0, abs(start)):
            raise TextEnvError(
                f"On {task} nothing known is better than the reference, at {start:.4g}: there is nothing to compare."
            )
        return np.asarray((np.asarray(value, dtype=np.float64) - start) / gain)

    def curves(self, agent: str, task: str, axis: str = "steps") -> Curves:
        """Return an agent's learning curves.

        Args:
            agent: Its label.
            task: That of the task.
            axis: ``"steps"`` or ``"seconds"``.
        """
        runs = [run["curve"] for run in self.runs[agent, task].values()]
        if axis == "steps":
            end = float(self.plan.budget.total_steps)
            if self.plan.budget.seconds is not None:  # as far as all came
                end = min(end, *(float(rows[-1]["steps"]) for rows in runs))
        else:
            end = min(float(rows[-1]["seconds"]) for rows in runs)
        at = np.linspace(0.0, end, 4 * self.plan.budget.evaluations + 1)
        start = self.tasks[task]["reference"]
        found: dict[str, Values] = {}
        for name in ("score", "kl", "value"):
            rows_at = [np.interp(at, _column(rows, axis, 0.0), _column(rows, name, start[name])) for rows in runs]
            found[name] = np.stack(rows_at)
        return Curves(at, **found)

    def sampled(self, task: str) -> list[str]:
        """Return the agents whose figures on a task are of completions, not computed from all texts."""
        rows = {
            agent: [row for run in self.runs[agent, t].values() for row in run["curve"]]
            for agent, t in self.pairs
            if t == task
        }
        return [agent for agent in rows if not all(map(is_exact, rows[agent]))]

    def shared_seconds(self, task: str) -> float:
        """Return the seconds that every run of a task took at least, those that train nothing aside."""
        times = [run["seconds"] for (_, t), runs in self.runs.items() if t == task for run in runs.values()]
        return min((seconds for seconds in times if seconds > 0), default=0.0)

    def aggregate(self, agent: str) -> Aggregate | None:
        """Return an agent's scores of the seeds that are finished on every task; None if no seed is."""
        labels = [task.label for task in self.plan.tasks]
        seeds = sorted(set.intersection(*(set(self.runs[agent, label]) for label in labels)))
        if not seeds:
            return None
        tokens, seconds = np.empty((len(seeds), len(labels))), np.empty((len(seeds), len(labels)))
        for column, label in enumerate(labels):
            start, until = self.tasks[label]["reference"], self.shared_seconds(label)
            for row, seed in enumerate(seeds):
                run = self.runs[agent, label][seed]
                times, values = _column(run["curve"], "seconds", 0.0), _column(run["curve"], "value", start["value"])
                if run["seconds"] == 0:  # an agent that trains nothing
                    times, values = times[1:], values[1:]
                tokens[row, column] = self.normalized(label, run["value"])
                seconds[row, column] = self.normalized(label, float(np.interp(until, times, values)))
        return Aggregate(tokens, seconds)

    def price(self, agent: str, task: str) -> float | None:
        """Return the KL at which the agent's mean score first reaches best-of-32's, over that one's own KL."""
        curves, frontier = self.curves(agent, task), self.tasks[task]["frontier"]
        if 32 not in frontier["n"]:
            return None
        best = frontier["score"][frontier["n"].index(32)]
        return price_in_nats(curves.kl.mean(axis=0), curves.score.mean(axis=0), best)


def is_exact(row: Mapping[str, Any]) -> bool:
    """Tell whether a measurement was computed from all texts; early runs say so by a standard error of 0."""
    return bool(row.get("exact", row["stderr"] == 0))


def _column(rows: list[Mapping[str, float]], name: str, start: float) -> Values:
    return np.array([start, *(row[name] for row in rows)], dtype=np.float64)


def read_results(plan: Plan, out: Path) -> Results:
    """Read what the finished runs wrote.

    Raises:
        TextEnvError: None is finished, or a file holds something else than what a comparison writes.
    """
    tasks = {task.label: _read(task_file(out, task), _TASK) for task in plan.tasks}
    runs: dict[tuple[str, str], dict[int, Any]] = {(a.label, t.label): {} for a in plan.agents for t in plan.tasks}
    for run in plan.runs:
        if finished(out, run):
            runs[run.agent.label, run.task.label][run.seed] = _read(run_folder(out, run) / "results.json", _RUN)
    if not any(runs.values()):
        raise TextEnvError(f"{out} holds no finished run.")
    return Results(plan, tasks, runs)


@dataclass(frozen=True)
class _Maybe:
    """What may be missing: null or NaN, or something of a form."""

    form: Any


# What is read of a file: a type, a list of such, an object with such (and anything else), or names of numbers.
_NUMBER = float
_OUTCOME = {"score": _NUMBER, "kl": _NUMBER, "value": _NUMBER}
_MEASURED = {**_OUTCOME, "steps": _NUMBER, "seconds": _NUMBER, "stderr": _Maybe(_NUMBER)}
_SAMPLES = [{"prompt": str, "completion": str, "score": _NUMBER}]
_TASK = {
    "label": str, "kl_coef": _NUMBER, "reference": _OUTCOME, "optimum": _Maybe(_OUTCOME), "samples": _SAMPLES,
    "frontier": {"n": [int], "kl": [_NUMBER], "score": [_NUMBER]},
}  # fmt: skip
_RUN = {**_MEASURED, "curve": [_MEASURED], "samples": _SAMPLES, "threads": int, "versions": dict[str, str]}


def _read(path: Path, form: Any) -> Any:
    """Read a file of JSON, and check that it holds what is expected: it may have come from anywhere."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TextEnvError(f"{path}: expected what 'textenv compare' writes ({error}).") from error
    _check(found, form, path, "")
    frontier = found.get("frontier", {})
    if len({len(column) for column in frontier.values()}) > 1:
        raise TextEnvError(f"{path}: frontier: expected lists of the same length.")
    parts = found.get("parts", {})  # of a reward that has some
    _check(parts, dict.fromkeys(parts, float) if isinstance(parts, dict) else {"NAME": float}, path, "parts")
    if "curve" in form and not found["curve"]:
        raise TextEnvError(f"{path}: curve: expected one measurement at least.")
    return found


def _check(value: Any, form: Any, path: Path, where: str) -> None:
    def check(part: Any, of: Any, name: str | int) -> None:
        _check(part, of, path, f"{where}.{name}" if where else str(name))

    expected = ""
    match form:
        case _Maybe():
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                _check(value, form.form, path, where)
        case dict():
            if not isinstance(value, dict) or form.keys() - value.keys():
                expected = f"an object with {', '.join(form)}"
            else:
                for name, of in form.items():
                    check(value[name], of, name)
        case list():
            if not isinstance(value, list):
                expected = "a list"
            else:
                for place, part in enumerate(value):
                    check(part, form[0], place)
        case _ if form is float:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                expected = "a finite number"
        case _ if form is int:
            if isinstance(value, bool) or not isinstance(value, int):
                expected = "a whole number"
        case _ if form is str:
            if not isinstance(value, str):
                expected = "text"
        case _:
            if not isinstance(value, dict) or not all(isinstance(part, str) for part in value.values()):
                expected = "an object of texts"
    if expected:
        raise TextEnvError(f"{path}: {where or 'the whole'}: expected {expected}, found {str(value)[:80]!r}.")


def write_tables(results: Results, out: Path) -> list[Path]:
    """Write ``results`` (a row a run) and ``curves`` (a row a measurement) as .csv, and as .parquet with pyarrow."""
    final: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for (agent, task), runs in results.runs.items():
        for seed, run in runs.items():
            key = {"agent": agent, "task": task, "seed": seed}
            for rows, table in (([run], final), (run["curve"], curves)):
                for row in rows:
                    figures = {name: row[name] for name in ("steps", "seconds", "score", "stderr", "kl", "value")}
                    share = float(results.normalized(task, row["value"]))
                    known = results.tasks[task]["optimum"] is not None
                    shares = {"normalized": share, "regret": 1 - share if known else None}
                    table.append({**key, **figures, **shares, "exact": is_exact(row)})
    written = []
    for name, table in (("results", final), ("curves", curves)):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        write_atomically(out / f"{name}.csv", text.getvalue())
        written.append(out / f"{name}.csv")
        try:
            import pyarrow  # noqa: PLC0415 (an optional dependency)
            from pyarrow import parquet  # noqa: PLC0415
        except ModuleNotFoundError:
            continue
        sink = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(table), sink)
        write_atomically(out / f"{name}.parquet", sink.getvalue())
        written.append(out / f"{name}.parquet")
    return written
