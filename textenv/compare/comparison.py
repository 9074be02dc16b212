"""A comparison from its plan to its report: the runs that are not finished, the figures, the picture."""

from __future__ import annotations

import os

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from textenv.compare.plan import Compare, Plan, make_plan
from textenv.compare.plots import draw_overview
from textenv.compare.pool import Job, processes, ray_cluster
from textenv.compare.report import task_table, write_report
from textenv.compare.results import Results, read_results, write_tables
from textenv.compare.runs import finished, measure_task, run_folder, train_run
from textenv.compare.statistics import interquartile_mean, stratified_bootstrap
from textenv.data.files import locked
from textenv.data.pictures import save_figure
from textenv.rollouts.runs import check_settings
from textenv.rollouts.tables import make_table
from textenv.types import TextEnvError

__all__ = ["compare"]


def compare(command: Compare, console: Console) -> Results:
    """Do all runs that are not finished, and write the figures, the report and the picture.

    Raises:
        TextEnvError: A setting is not what is expected, or runs failed; what is finished is kept and told all the same.
    """
    plan = make_plan(command)
    with locked(command.out):
        return _compare(command, plan, console)


def _compare(command: Compare, plan: Plan, console: Console) -> Results:
    out = command.out
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = command.workers or cores
    threads = command.threads or _threads_wanted() or max(1, cores // workers)
    out.mkdir(parents=True, exist_ok=True)
    tasks: list[Job] = [(task.label, measure_task, (task, plan.budget, out, threads)) for task in plan.tasks]
    for run in plan.runs:
        check_settings(run_folder(out, run), run.described(plan.budget))
    left = [run for run in plan.runs if not finished(out, run)]
    jobs: list[Job] = [(run.name, train_run, (run, plan.budget, out, threads)) for run in left]
    if len(left) < len(plan.runs):
        console.print(f"{len(plan.runs) - len(left)} of {len(plan.runs)} runs are finished.")
    failures: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    made = ray_cluster if command.ray else processes
    with made(workers, threads) as do, Progress(*columns, console=console) as bar:
        shown = bar.add_task("tasks", total=len(tasks))
        for name, error in do(tasks):
            bar.advance(shown)
            if error:
                raise TextEnvError(f"The task {name!r} cannot be measured: {error}")
        shown = bar.add_task("runs", total=len(jobs))
        for name, error in do(jobs):
            bar.advance(shown)
            if error:
                failures.append(f"{name}: {error}")
                console.print(f"failed: {failures[-1]}", highlight=False)
    if failures and len(failures) == len(plan.runs):
        raise TextEnvError(f"All {len(jobs)} runs failed; the first, {failures[0]}")
    results = read_results(plan, out)
    files = write_tables(results, out)
    write_report(results, failures, out / "report.html")
    save_figure(draw_overview(results), out / "compare.png")
    _tell(results, console)
    console.print(
        "Written:", *(str(path) for path in [out / "report.html", out / "compare.png", *files]), soft_wrap=True
    )
    if failures:
        raise TextEnvError(
            f"{len(failures)} of {len(plan.runs)} runs failed, and are not in the figures; the same command tries them "
            f"again. The first: {failures[0]}"
        )
    return results


def _threads_wanted() -> int | None:
    """Return what ``OMP_NUM_THREADS`` asks for, if it does."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(first) if first.isdecimal() and int(first) else None


_SHOWN = {
    "agent": "agent",
    "score − β·KL": "value",
    "KL, nats": "KL",
    "regret, %": "regret",
    "normalized": "norm.",
    "95 %": "95 %",
    "tokens to 2 %": "to 2 %",
    "price in nats": "price",
}
"""The columns of a task's table that fit into a terminal, and their headings there; results.csv has all."""
_MEANING = {
    "score − β·KL": "value: score − β·KL",
    "regret, %": "regret in %",
    "normalized": "norm.: 0 is the reference, 1 the best known",
    "tokens to 2 %": "to 2 %: tokens until the regret stays below",
    "price in nats": "price in nats, see report.html",
}


def _tell(results: Results, console: Console) -> None:
    for task in results.plan.tasks:
        if not any(where == task.label for _, where in results.pairs):
            continue
        head, rows = task_table(results, task.label)
        shown = [place for place, name in enumerate(head) if name in _SHOWN]
        caption = "; ".join(_MEANING[head[place]] for place in shown if head[place] in _MEANING)
        table = make_table(*(_SHOWN[head[place]] for place in shown), title=task.label, caption=caption)
        for row in rows:
            table.add_row(*(row[place] for place in shown))
        console.print(table)
    table = make_table("agent", "IQM", "95 %", title="All tasks; 0 is the reference, 1 the best known")
    table.title_justify = "left"  # it is wider than the table
    for agent in results.agents:
        if (aggregate := results.aggregate(agent)) is not None:
            low, high = stratified_bootstrap(interquartile_mean, aggregate.tokens)
            table.add_row(agent, f"{interquartile_mean(aggregate.tokens):.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)
