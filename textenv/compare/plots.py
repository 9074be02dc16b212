"""The pictures of a comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from textenv.compare.results import Results
from textenv.compare.statistics import (
    AGGREGATES,
    interquartile_mean,
    mean_interval,
    performance_profile,
    stratified_bootstrap,
)

__all__ = ["draw_aggregates", "draw_curves", "draw_frontier", "draw_overview", "draw_profiles"]

# Okabe and Ito's, which color-blind people can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
_LINES = ("-", "--", ":", "-.")


def draw_curves(results: Results, task: str, axis: str) -> Figure:
    """Draw the value over tokens (``"steps"``) or ``"seconds"``, with 95 % bands over the seeds."""
    figure = _figure(5.2, 3.4)
    _curves(figure.subplots(), results, task, axis)
    return figure


def draw_frontier(results: Results, task: str) -> Figure:
    """Draw score against KL, beside best-of-n and the optimum."""
    figure = _figure(5.2, 3.4)
    _frontier(figure.subplots(), results, task)
    return figure


def draw_aggregates(results: Results) -> Figure:
    """Draw each aggregate with its 95 % interval."""
    figure = _figure(10.4, 0.9 + 0.32 * len(results.agents))
    panels = figure.subplots(1, len(AGGREGATES), sharey=True)
    for panel, (name, statistic) in zip(panels, AGGREGATES.items(), strict=True):
        _aggregate(panel, results, name, statistic)
    return figure


def draw_profiles(results: Results) -> Figure:
    """Draw the share of runs above each normalized score, with 95 % bands."""
    figure = _figure(5.2, 3.4)
    _profiles(figure.subplots(), results)
    return figure


def draw_overview(results: Results) -> Figure:
    """Draw the picture of the whole: a row of curves, one of frontiers for up to four tasks, and the aggregates."""
    tasks = [task.label for task in results.plan.tasks][:4]
    figure = _figure(4.1 * (len(tasks) + 1), 6.4)
    panels = figure.subplots(2, len(tasks) + 1)
    for column, task in enumerate(tasks):
        _curves(panels[0, column], results, task, "steps", legend=False)
        _frontier(panels[1, column], results, task, legend=False)
    _aggregate(panels[0, -1], results, "IQM", interquartile_mean)
    _profiles(panels[1, -1], results)
    handles, labels = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _style(results: Results, agent: str) -> dict[str, Any]:
    place = results.agents.index(agent)
    return {"color": _COLORS[place % len(_COLORS)], "linestyle": _LINES[place // len(_COLORS) % len(_LINES)]}


def _finish(panel: Any, *, legend: bool = False, **labels: str) -> None:
    panel.set(**labels)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if legend:
        panel.legend(frameon=False, fontsize=8)


def _curves(panel: Any, results: Results, task: str, axis: str, *, legend: bool = True) -> None:
    """Draw means and their bands; where those of a few seeds are huge, the panel is made for the means."""
    for agent, where in results.pairs:
        if where != task:
            continue
        curves, style = results.curves(agent, task, axis), _style(results, agent)
        if axis == "seconds" and not curves.at[-1]:  # it trains nothing
            panel.axhline(curves.value[:, -1].mean(), label=agent, **style)
            continue
        panel.plot(curves.at, curves.value.mean(axis=0), label=agent, **style)
        low, high = mean_interval(curves.value)
        panel.fill_between(curves.at, low, high, color=style["color"], alpha=0.18, linewidth=0)
    about = results.tasks[task]
    if about["optimum"] is not None:
        panel.axhline(about["optimum"]["value"], color="#555555", linewidth=1, linestyle=(0, (1, 2)))
        panel.annotate("optimum", (0, about["optimum"]["value"]), fontsize=7, va="bottom", color="#555555")
    heights = np.concatenate([line.get_ydata() for line in panel.get_lines()])
    room = 0.3 * (np.ptp(heights) or 1.0)
    bottom, top = panel.get_ylim()
    panel.set_ylim(max(bottom, heights.min() - room), min(top, heights.max() + room))
    label = "tokens written" if axis == "steps" else "seconds of training"
    if axis == "steps":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    _finish(panel, legend=legend, title=task, xlabel=label, ylabel="score − β·KL")


def _frontier(panel: Any, results: Results, task: str, *, legend: bool = True) -> None:
    about = results.tasks[task]
    frontier = about["frontier"]
    if frontier["n"]:
        panel.plot(
            frontier["kl"], frontier["score"], ".-", color="#777777", linewidth=1, markersize=4, label="best of n"
        )
    for n in (4, 32, 256):
        if n in frontier["n"]:
            place = frontier["n"].index(n)
            at = (frontier["kl"][place], frontier["score"][place])
            panel.annotate(f"{n}", at, fontsize=7, color="#555555", xytext=(0, 3), textcoords="offset points")
    for agent, where in results.pairs:
        if where == task:
            curves, style = results.curves(agent, task), _style(results, agent)
            kl, score = curves.kl.mean(axis=0), curves.score.mean(axis=0)
            panel.plot(kl, score, label=agent, **style)
            panel.plot(kl[-1], score[-1], "o", color=style["color"], markersize=5)
    if about["optimum"] is not None:
        panel.plot(about["optimum"]["kl"], about["optimum"]["score"], "*", color="#555555", markersize=11)
        panel.annotate(
            "optimum", (about["optimum"]["kl"], about["optimum"]["score"]), fontsize=7, color="#555555",
            xytext=(-7, -3), textcoords="offset points", ha="right",
        )  # fmt: skip
    _finish(panel, legend=legend, title=task, xlabel="KL from the reference, nats", ylabel="score")


def _aggregate(panel: Any, results: Results, name: str, statistic: Any) -> None:
    labels: list[str] = []
    for agent in reversed(results.agents):
        aggregate = results.aggregate(agent)
        if aggregate is None:
            continue
        color, height = _style(results, agent)["color"], len(labels)
        low, high = stratified_bootstrap(statistic, aggregate.tokens)
        panel.barh(height, high - low, left=low, height=0.55, color=color, alpha=0.35)
        panel.plot(2 * [statistic(aggregate.tokens)], [height - 0.28, height + 0.28], color=color, linewidth=2)
        labels.append(agent)
    panel.set_yticks(range(len(labels)), labels)
    less = ", less is better" if name == "optimality gap" else ""
    _finish(panel, title=f"{name}{less}", xlabel="normalized score")


def _profiles(panel: Any, results: Results) -> None:
    found = {agent: each.tokens for agent in results.agents if (each := results.aggregate(agent)) is not None}
    every = np.concatenate([scores.ravel() for scores in found.values()]) if found else np.zeros(1)
    at = np.linspace(min(0.0, float(every.min())), max(1.0, float(every.max())), 101)
    for agent, scores in found.items():
        style = _style(results, agent)
        panel.plot(at, performance_profile(scores, at), label=agent, **style)
        low, high = stratified_bootstrap(lambda drawn: performance_profile(drawn, at), scores, resamples=500)
        panel.fill_between(at, low, high, color=style["color"], alpha=0.18, linewidth=0)
    panel.set_ylim(0, 1.02)  # a share, and the line at 1 is to be seen whole
    _finish(panel, title="performance profiles", xlabel="normalized score τ", ylabel="share of runs above τ")
