"""What a run of ``textenv rlhf`` reports: a table and a picture of its policies, who beats whom, and Elo ratings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from textenv.commands.console import console
from textenv.data.files import write_json
from textenv.data.pictures import save_figure
from textenv.feedback.agreement import Share
from textenv.feedback.bradley_terry import fit_bradley_terry
from textenv.rollouts.runs import figure_text
from textenv.rollouts.tables import make_table

__all__ = ["report", "share_won"]

_PANELS = (("gold", "gold score"), ("proxy", "score of its reward model"), ("kl", "KL in nats an episode"))
_START = 1000.0  # Elo rating of the model that all policies start from
_ELO = 400 / math.log(10)  # points for a logit


def report(
    out: Path,
    rows: Sequence[dict[str, Any]],
    labels: Sequence[int],
    *,
    demonstrations: dict[str, Any] | None,
    judged: Sequence[Mapping[str, Any] | None],
    title: str,
) -> None:
    """Print and write what the policies of a run are worth.

    Args:
        out: Folder of the run; ``results.json`` and ``rlhf.png`` go there, and ``wins.json`` where there is a gold.
        rows: Figures of each policy, that of the start first.
        labels: Rankings that each had been trained with.
        demonstrations: The gold score of demonstrations, if there are any.
        judged: How often each reward model agrees with the stand-in for people; None where there is none.
        title: What it was measured on.
    """
    table = make_table(
        "policy", "rankings", "its reward", "gold score", "wins", "KL in nats",
        title=title,
        caption="rankings: given so far; its reward: the score by the reward model that it was trained against; "
        "wins: share of the prompts on which its text has a better gold score than the text of the policy before",
    )  # fmt: skip
    found = []
    for number, row in enumerate(rows):
        wins = share_won(row["scores"], rows[number - 1]["scores"]) if number and row["gold"] else None
        shown = {name: value for name, value in row.items() if name != "scores"}
        found.append({"round": number, "rankings": labels[number], "beats_previous": wins, **shown})
        table.add_row(
            _name(number),
            f"{labels[number]:,}",
            *(_written(row[name]) for name in ("proxy", "gold")),
            "" if wins is None else f"{wins:.0%}",
            _written(row["kl"]),
        )
    console.print(table)
    if any(judged):
        _print_agreement(judged)
    if rows[0].get("measures"):
        _print_measures(rows)
    if rows[0]["gold"]:
        _report_wins(out, rows, demonstrations)
    picture = out / "rlhf.png"
    _draw(found, picture)
    console.print(f"Picture: {picture}", soft_wrap=True)
    write_json(out / "results.json", found)


def share_won(new: Sequence[float], old: Sequence[float]) -> float:
    """Return the share of prompts on which the first side has the better score, ties as halves."""
    return _wins(new, old) / len(new)


def _wins(new: Sequence[float], old: Sequence[float]) -> float:
    difference = np.subtract(new, old)
    return float((difference > 0).sum() + 0.5 * (difference == 0).sum())


def _name(number: int) -> str:
    return f"round {number}" if number else "start"


def _print_agreement(judged: Sequence[Mapping[str, Any] | None]) -> None:
    table = make_table(
        "reward model", "agrees with the judge", "noise ceiling", "two judges agree",
        title="Which of two texts of a policy is better, on held-out prompts",
        caption="texts of equal gold scores left out; noise ceiling: how often the judge agrees with its own scores, "
        "which no model of its choices exceeds",
    )  # fmt: skip
    for number, row in enumerate(judged, 1):
        table.add_row(_name(number), *(_written(row and row[name]) for name in ("model", "ceiling", "judges")))
    console.print(table)


def _print_measures(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(rows[0]["measures"])
    table = make_table("policy", *names, title="Measures of the recipe")
    for number, row in enumerate(rows):
        table.add_row(_name(number), *(_written(row["measures"][name]) for name in names))
    console.print(table)


def _report_wins(out: Path, rows: Sequence[Mapping[str, Any]], demonstrations: Mapping[str, Any] | None) -> None:
    """Print and write the share of prompts that each side wins against each other, and Elo ratings."""
    sides = {_name(number): row["scores"] for number, row in enumerate(rows)}
    if demonstrations is not None:
        sides["demonstrations"] = demonstrations["scores"]
    names = list(sides)
    wins = np.array([[0.0 if a == b else _wins(sides[a], sides[b]) for b in names] for a in names])
    count = len(sides[names[0]])
    ratings = _elo(wins)
    table = make_table(
        "against", *names, "Elo",
        title="Prompts on which the gold score prefers the row to the column, ties as halves (95 % interval)",
        caption="Elo: Bradley-Terry strengths (95 % interval); 400 points are odds of ten to one, start has 1,000",
    )  # fmt: skip
    pairs = []
    for i, name in enumerate(names):
        cells = []
        for j, other in enumerate(names):
            if i == j:
                cells.append("")
                continue
            won = Share(float(wins[i, j]), count)
            low, high = won.interval or (0.0, 1.0)
            cells.append(f"{won.value:.0%} [{low:.0%}, {high:.0%}]")
            pairs.append({"side": name, "against": other, "share": won.value, "interval": [low, high]})
        value, low, high = ratings[i]
        table.add_row(name, *cells, f"{value:,.0f} [{low:,.0f}, {high:,.0f}]")
    console.print(table)
    elo = {
        name: {"rating": value, "interval": [low, high]}
        for name, (value, low, high) in zip(names, ratings, strict=True)
    }
    write_json(out / "wins.json", {"prompts": count, "pairs": pairs, "elo": elo})


def _elo(wins: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """Return each side's rating with its interval; the first side has ``_START``."""
    strengths = fit_bradley_terry(wins)
    shift = _START - _ELO * strengths[0].strength
    return [
        (_ELO * each.strength + shift, _ELO * each.interval[0] + shift, _ELO * each.interval[1] + shift)
        for each in strengths
    ]


def _written(figure: Mapping[str, float | None] | None) -> str:
    return "" if figure is None else figure_text(figure)


def _draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what each policy is worth over the rankings given so far."""
    panels = [(name, label) for name, label in _PANELS if any(row[name] for row in found)]
    figure = Figure(figsize=(3.4 * len(panels), 3.5), dpi=130, layout="constrained")
    figure.suptitle("The policy of each round, with 95 % intervals")
    for place, (name, label) in enumerate(panels):
        panel = figure.add_subplot(1, len(panels), place + 1)
        measured = [row for row in found if row[name]]
        panel.errorbar(
            [row["rankings"] for row in measured],
            [row[name]["mean"] for row in measured],
            [1.96 * row[name]["stderr"] for row in measured],
            marker="o",
            capsize=3,
            color=f"C{place}",
        )
        panel.set(xlabel="rankings so far", ylabel=label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
