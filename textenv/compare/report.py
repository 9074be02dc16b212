"""The report of a comparison: one page with all in it, that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from textenv.compare.plots import draw_aggregates, draw_curves, draw_frontier, draw_profiles
from textenv.compare.results import Results
from textenv.compare.runs import SAMPLES
from textenv.compare.statistics import AGGREGATES, improvement, mean_interval, stratified_bootstrap
from textenv.data.files import to_json, write_atomically
from textenv.data.pictures import figure_bytes
from textenv.env.render import visible
from textenv.web.markup import Markup, fill, join

__all__ = ["task_table", "write_report"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Comparison · textenv</title><style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 75rem; color: #1d2530;
  background: #fff; }}
h1, h2, h3 {{ line-height: 1.25; }} h2 {{ margin-top: 2.4rem; border-top: 1px solid #d5dbe3; padding-top: 1.2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }}
caption {{ text-align: left; color: #556070; padding-bottom: .3rem; }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e3e8ee; vertical-align: top; }}
th:first-child, td:first-child, .text td, .text th {{ text-align: left; }}
thead th {{ border-bottom: 2px solid #aab4c0; }}
.row {{ display: flex; flex-wrap: wrap; gap: 1rem; }} figure {{ margin: 0; }} img {{ max-width: 100%; height: auto; }}
.soft {{ color: #556070; }} pre {{ background: #f4f6f9; padding: .8rem; overflow-x: auto; font-size: .85rem; }}
.text td, .text th {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
</style></head><body><main>
<h1>Comparison of {agents} agents on {tasks} tasks</h1>
{body}
</main></body></html>
"""


def write_report(results: Results, failures: Sequence[str], path: Path) -> None:
    """Write the page.

    Args:
        results: What to tell.
        failures: Runs that failed, and why.
        path: ``.html`` file.
    """
    body = [_summary(results, failures)]
    for task in results.plan.tasks:
        if any(where == task.label for _, where in results.pairs):
            body.append(_task(results, task.label))
    body += [_profiles(results), _settings(results)]
    page = fill(_PAGE, agents=len(results.agents), tasks=len(results.plan.tasks), body=join(body, "\n"))
    write_atomically(path, page)


def task_table(results: Results, task: str) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the final figures on a task, the best agent first.

    Regret is ``(J* - J) / (J* - J_ref)`` in per cent where the optimum is known; else the normalized score. The
    interval is Student's over the seeds. Tokens are those after which the mean regret stays at most 2 %.
    """
    exact = results.tasks[task]["optimum"] is not None
    head = ["agent", "seeds", "score − β·KL", "score", "KL, nats", "regret, %" if exact else "normalized", "95 %"]
    head += ["worst seed", "tokens to 2 %"] if exact else []
    head += ["price in nats", "seconds"]
    rows = []
    for agent, where in results.pairs:
        if where != task:
            continue
        runs = list(results.runs[agent, task].values())
        value, score, kl, seconds = (np.array([run[n] for run in runs]) for n in ("value", "score", "kl", "seconds"))
        share = results.normalized(task, value)
        told = 100 * (1 - share) if exact else share
        low, high = mean_interval(told)
        digits = 2
        interval = "–" if np.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"
        cells = [agent, str(len(runs)), f"{value.mean():.4f}", f"{score.mean():.4f}", f"{kl.mean():.3f}"]
        cells += [f"{told.mean():.{digits}f}", interval]
        if exact:
            curves = results.curves(agent, task)
            regret = 1 - results.normalized(task, curves.value.mean(axis=0))
            below = np.flatnonzero(regret > 0.02)
            first = 0 if not len(below) else int(below[-1]) + 1
            cells += [f"{told.max():.2f}", f"{curves.at[first]:,.0f}" if first < len(curves.at) else "–"]
        price = results.price(agent, task)
        cells += ["–" if price is None else f"{price:.2f}", f"{np.median(seconds):.1f}" if seconds.any() else "none"]
        rows.append((-float(value.mean()), cells))
    return head, [cells for _, cells in sorted(rows)]


def _summary(results: Results, failures: Sequence[str]) -> Markup:
    plan = results.plan
    parts = []
    budget = f"{plan.budget.total_steps:,} tokens"
    if plan.budget.seconds is not None:
        budget += f" or {plan.budget.seconds:g} seconds of training, whichever is first"
    parts.append(
        fill(
            "<p>Each run: {budget}; {seeds} seeds. Scores are normalized: 0 is the reference model, 1 the "
            "optimum where it is known, else the best that best-of-n comes to, all in score − β·KL. Intervals of "
            "aggregates are 95 % stratified bootstrap intervals over seeds (Agarwal et al. 2021).</p>",
            budget=budget,
            seeds=plan.seeds,
        )
    )
    if failures:
        items = join(fill("<li>{failure}</li>", failure=visible(failure)) for failure in failures)
        told = "<section role='alert'><h2>{count} runs failed</h2><ul>{items}</ul></section>"
        parts.append(fill(told, count=len(failures), items=items))
    known = {agent: each for agent in results.agents if (each := results.aggregate(agent)) is not None}
    if left := [agent for agent in results.agents if agent not in known]:
        told = "<p>Without a seed that is finished on every task, and so not here: {left}.</p>"
        parts.append(fill(told, left=", ".join(left)))
    if known:
        parts.append(_image(draw_aggregates(results), "Aggregates with their intervals"))
        shared = ", ".join(f"{results.shared_seconds(task.label):.1f} s on {task.label}" for task in plan.tasks)
        for budget, name in (
            ("tokens", "After the budget of tokens"),
            ("seconds", f"At equal wall-clock time: {shared}"),
        ):
            rows = []
            for agent, aggregate in known.items():
                scores = getattr(aggregate, budget)
                cells = [agent, str(len(scores))]
                for statistic in AGGREGATES.values():
                    low, high = stratified_bootstrap(statistic, scores)
                    cells.append(f"{statistic(scores):.3f} [{low:.3f}, {high:.3f}]")
                rows.append(cells)
            parts.append(_table(["agent", "seeds", *AGGREGATES], rows, name))
        parts.append(_improvement({agent: each.tokens for agent, each in known.items()}))
    return join(parts, "\n")


def _improvement(scores: dict[str, Any]) -> Markup:
    if len(scores) < 2:
        return Markup()
    rows = []
    for one, mine in scores.items():
        cells = [one]
        for other, theirs in scores.items():
            if one == other:
                cells.append("")
                continue
            low, high = stratified_bootstrap(improvement, mine, theirs, resamples=1000)
            cells.append(f"{improvement(mine, theirs):.2f} [{low:.2f}, {high:.2f}]")
        rows.append(cells)
    caption = "Probability that a run of the row's agent beats one of the column's, on a task drawn at random"
    return _table(["", *scores], rows, caption)


def _task(results: Results, task: str) -> Markup:
    about = results.tasks[task]
    reference, frontier = about["reference"], about["frontier"]
    known = f"The reference scores {reference['score']:.4f}; β = {about['kl_coef']:g}."
    if about["optimum"] is not None:
        best = about["optimum"]
        known += (
            f" The optimum, by enumeration of all texts, is {best['value']:.4f}: a score of {best['score']:.4f} at "
            f"{best['kl']:.3f} nats. "
        )
        sampled = results.sampled(task)
        many = f"{results.plan.budget.eval_episodes:,} fresh completions"
        known += (
            f"The figures of {', '.join(sampled)} are of {many}, those of all others exact."
            if sampled
            else "All figures here are exact."
        )
    elif frontier["n"]:
        known += (
            f" The agents' figures are of {results.plan.budget.eval_episodes:,} fresh completions, the reference's and "
            f"those of best-of-n's frontier of {SAMPLES:,} of each prompt."
        )
    else:
        known += (
            f" All figures are of {results.plan.budget.eval_episodes:,} fresh episodes, whose seeds are the same for "
            "all. Scores are normalized so that the best run here has 1, if it is better than the reference."
        )
    points = zip(*(frontier[column] for column in ("n", "score", "kl")), strict=True)
    bons = ", ".join(f"{n}: {score:.3f} at {kl:.2f} nats" for n, score, kl in points)
    parts = [
        fill("<h2>{task}</h2><p>{known}</p>", task=task, known=known),
        _table(*task_table(results, task), "After the budget of tokens"),
        fill(
            '<div class="row">{tokens}{seconds}{frontier}</div>',
            tokens=_image(draw_curves(results, task, "steps"), f"Learning curves on {task} over tokens"),
            seconds=_image(draw_curves(results, task, "seconds"), f"Learning curves on {task} over seconds"),
            frontier=_image(draw_frontier(results, task), f"Score against KL on {task}"),
        ),
    ]
    if bons:
        parts.append(
            fill(
                '<p class="soft">Best of n: {bons}. The price in nats is the KL at which an agent first reaches the '
                "mean score of best-of-32, over best-of-32's own: less is better.</p>",
                bons=bons,
            )
        )
    if of_parts := _part_table(results, task):
        many = f"{results.plan.budget.eval_episodes:,} fresh completions"
        parts.append(_table(*of_parts, f"Parts of the score, before their weights, on {many}"))
    columns = [("before", about["samples"])]
    columns += [
        (agent, next(iter(results.runs[agent, task].values()))["samples"]) for agent, t in results.pairs if t == task
    ]
    rows = []
    for place, first in enumerate(about["samples"]):
        cells = [first["prompt"]]
        for _, samples in columns:
            shown = samples[place] if place < len(samples) else None
            cells.append("" if shown is None else f"{shown['completion']}  ({shown['score']:+.2f})")
        rows.append(cells)
    samples = _table(["prompt", *(name for name, _ in columns)], rows, "", kind="text")
    told = "<details><summary>Completions of the first seed, before and after</summary>{samples}</details>"
    parts.append(fill(told, samples=samples))
    return join(parts, "\n")


def _part_table(results: Results, task: str) -> tuple[list[str], list[list[str]]] | None:
    """Return the heading and the rows of what the parts of the reward said, means over seeds; None without parts."""
    told = {"before": [results.tasks[task]]}
    told |= {agent: list(results.runs[agent, task].values()) for agent, where in results.pairs if where == task}
    found = {name: [run.get("parts", {}) for run in runs] for name, runs in told.items()}
    names = list(dict.fromkeys(name for parts in found.values() for each in parts for name in each))
    rows = []
    for agent, parts in found.items():
        known = [[each[name] for each in parts if name in each] for name in names]
        rows.append([agent, *(f"{np.mean(values):.4f}" if values else "–" for values in known)])
    return (["agent", *map(visible, names)], rows) if names else None


def _profiles(results: Results) -> Markup:
    if not any(results.aggregate(agent) is not None for agent in results.agents):
        return Markup()
    profiles = _image(draw_profiles(results), "Performance profiles")
    return fill("<h2>Performance profiles</h2>{profiles}", profiles=profiles)


def _settings(results: Results) -> Markup:
    every = list(itertools.chain.from_iterable(runs.values() for runs in results.runs.values()))
    versions = {to_json(run["versions"], sort_keys=True) for run in every}
    threads = sorted({run["threads"] for run in every})
    told = "; ".join(", ".join(f"{n} {v}" for n, v in json.loads(each).items()) for each in sorted(versions))
    settings = {
        "agents": {agent.label: {"agent": agent.name, **agent.settings} for agent in results.plan.agents},
        "tasks": {
            task.label: {"env": task.env, **task.keywords(), "agent_settings": task.agent_settings}
            for task in results.plan.tasks
        },
        "budget": {name: getattr(results.plan.budget, name) for name in results.plan.budget.__dataclass_fields__},
    }
    return fill(
        "<h2>Settings and versions</h2><p>{versions}; {threads} threads a run.</p><pre>{settings}</pre>",
        versions=told,
        threads=", ".join(map(str, threads)),
        settings=to_json(settings, indent=2, default=str),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, kind: str = "") -> Markup:
    top = join(fill('<th scope="col">{cell}</th>', cell=cell) for cell in head)
    lines = []
    for row in rows:
        cells = join(fill("<td>{cell}</td>", cell=visible(cell)) for cell in row[1:])
        name = visible(row[0], keep="\n")  # the messages of a conversation
        lines.append(fill('<tr><th scope="row">{name}</th>{cells}</tr>', name=name, cells=cells))
    return fill(
        '<div class="wide"><table class="{kind}">{caption}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>",
        kind=kind,
        caption=fill("<caption>{caption}</caption>", caption=caption) if caption else "",
        top=top,
        lines=join(lines),
    )


def _image(figure: Figure, words: str) -> Markup:
    data = base64.b64encode(figure_bytes(figure, "svg")).decode()
    told = '<figure><img alt="{words}" src="data:image/svg+xml;base64,{data}"></figure>'
    return fill(told, words=words, data=data)
