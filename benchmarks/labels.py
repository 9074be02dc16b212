"""What labels are worth to a recipe: the gold score and the win rate over the start by their number, and online.

    python -m benchmarks.labels --out runs/labels
    python -m benchmarks.labels --out runs/labels --labels 60 300 --seeds 3

As figure 2 of Ziegler et al. 2019 (arXiv:1909.08593): one run of ``textenv rlhf`` for each number of labels, and one in
several rounds ("online") of the same number, each policy of which is trained for as many tokens. Finished runs are not
run again. Wins are over all prompts and seeds, the interval is Wilson's; the error of the gold score is over prompts of
one seed, or over seeds where there are several.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks._measure import environment, show
from textenv.commands.rlhf import Rlhf
from textenv.commands.rlhf_run import rlhf
from textenv.data.files import write_json
from textenv.data.pictures import save_figure
from textenv.feedback.agreement import Share


@dataclass(frozen=True, slots=True)
class Config:
    """What to compare.

    Attributes:
        out: Folder of the runs.
        recipe: The recipe.
        labels: Numbers of labels, each a run in one round.
        online_labels: Numbers of labels of the runs in several rounds.
        rounds: Rounds of these.
        seeds: Runs of each kind.
        total_steps: Tokens of PPO a round; None for the recipe's.
        eval_episodes: Held-out prompts that policies are measured on.
    """

    out: Path
    recipe: str = "ziegler"
    labels: tuple[int, ...] = (60, 300, 1000, 5000)
    online_labels: tuple[int, ...] = (300,)
    rounds: int = 3
    seeds: int = 1
    total_steps: int | None = None
    eval_episodes: int = 512


def run(config: Config, labels: int, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Return the figures of the policies of a run, that of the start first."""
    sizes: dict[str, Any] = {} if config.total_steps is None else {"total_steps": config.total_steps}
    made = Rlhf.of_recipe(config.recipe)
    out = config.out / f"{labels}-labels-{rounds}-rounds-{seed}"
    rlhf(made(out=out, labels=labels, rounds=rounds, seed=seed, eval_episodes=config.eval_episodes, **sizes))
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text("utf-8"))
    pairs = json.loads((out / "wins.json").read_text("utf-8"))["pairs"]
    wins = {pair["side"]: pair["share"] for pair in pairs if pair["against"] == "start"}
    agreed = [
        json.loads((out / f"round-{number}" / "reward-model.json").read_text("utf-8"))
        for number in range(1, rounds + 1)
    ]
    return [
        {
            **row,
            "wins": wins[f"round {number}"] if number else 0.5,
            "agrees": agreed[number - 1]["model"] if number else None,
        }
        for number, row in enumerate(rows)
    ]


def merged(config: Config, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one kind of policy, of as many seeds as there are."""
    gold = [row["gold"]["mean"] for row in found]
    error = found[0]["gold"]["stderr"] if len(found) == 1 else float(np.std(gold, ddof=1)) / math.sqrt(len(gold))
    count = config.eval_episodes * len(found)
    wins = Share(float(np.mean([row["wins"] for row in found])) * count, count)
    return {
        "gold": float(np.mean(gold)),
        "error": error,
        "wins": wins.value,
        "interval": wins.interval,
        "kl": float(np.mean([row["kl"]["mean"] for row in found])),
        "agrees": None if found[0]["agrees"] is None else float(np.mean([row["agrees"]["mean"] for row in found])),
    }


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    kinds = [(labels, 1) for labels in config.labels] + [(labels, config.rounds) for labels in config.online_labels]
    results: dict[str, dict[str, Any]] = {}
    for labels, rounds in kinds:
        runs = [run(config, labels, rounds, seed) for seed in range(config.seeds)]
        if not results:
            results["start"] = merged(config, [rows[0] for rows in runs])
        for number in range(1, rounds + 1):
            label = f"{labels} labels" if rounds == 1 else f"{labels} labels online, after {labels * number // rounds}"
            results[label] = merged(config, [rows[number] for rows in runs])
    table = [
        (
            label,
            f"{row['gold']:.3f} ± {row['error']:.3f}",
            f"{row['wins']:.0%} [{row['interval'][0]:.0%}, {row['interval'][1]:.0%}]" if label != "start" else "",
            f"{row['kl']:.1f}",
            "" if row["agrees"] is None else f"{row['agrees']:.0%}",
        )
        for label, row in results.items()
    ]
    heads = ("", "gold score", "wins over the start", "KL in nats", "reward model agrees")
    show(f"{config.recipe}: {config.seeds} seeds, {config.eval_episodes} held-out prompts", heads, table)
    write_json(config.out / "labels.json", results)
    draw(config, results, config.out / "labels.png")


def draw(config: Config, results: dict[str, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7.4, 3.4), dpi=130, layout="constrained")
    gold, wins = figure.subplots(1, 2)
    offline = [results[f"{labels} labels"] for labels in config.labels]
    gold.errorbar(
        config.labels, [row["gold"] for row in offline], [1.96 * row["error"] for row in offline], fmt="o-", capsize=3
    )
    gold.axhline(results["start"]["gold"], color="0.5", linestyle=":", label="start")
    spread = np.abs(np.array([row["interval"] for row in offline]).T - [row["wins"] for row in offline])
    wins.errorbar(config.labels, [row["wins"] for row in offline], spread, fmt="o-", capsize=3, label="offline")
    for labels in config.online_labels:
        last = results[f"{labels} labels online, after {labels}"]
        gold.plot(labels, last["gold"], "s", color="C1", label=f"online, {config.rounds} rounds")
        wins.plot(labels, last["wins"], "s", color="C1", label=f"online, {config.rounds} rounds")
    wins.axhline(0.5, color="0.5", linestyle=":", label="start")
    gold.set(ylabel="gold score")
    wins.set(ylabel="wins over the start", ylim=(0.45, 1.02))
    for panel in (gold, wins):
        panel.set(xlabel="labels", xscale="log")
        panel.set_xticks(config.labels, [f"{labels:,}" for labels in config.labels])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
