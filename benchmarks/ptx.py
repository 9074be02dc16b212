"""What mixing in pre-training text repairs, and a higher price of the KL does not: a sweep of each, in one picture.

    python -m benchmarks.ptx --out runs/ptx
    python -m benchmarks.ptx --out runs/ptx --seeds 3

As figures 33 and 34 of Ouyang et al. 2022 (arXiv:2203.02155): one run of ``textenv rlhf`` for each seed makes the
fine-tuned model and the reward model, and from these PPO is run with each weight of the pre-training text (gamma) at
the recipe's price of the KL, and with each price of the KL (beta) without the text. What it costs is told in bits per
character on held-out pre-training text, what it gains by the gold score. Finished runs are not run again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks._measure import environment, show
from textenv.commands.rlhf import Rlhf
from textenv.commands.rlhf_run import Measure, resolve, rlhf, training_settings, with_data
from textenv.commands.training_run import train
from textenv.data.files import to_json, write_json
from textenv.data.pictures import save_figure

_BITS = "bits per character"


@dataclass(frozen=True, slots=True)
class Config:
    """What to compare.

    Attributes:
        out: Folder of the runs.
        recipe: The recipe.
        ptx_coefs: Weights of the pre-training text, at the recipe's ``kl_coef``.
        kl_coefs: Prices of the KL, without the text.
        seeds: Runs of each kind.
        quick: The recipe's smallest settings.
    """

    out: Path
    recipe: str = "chatgpt"
    ptx_coefs: tuple[float, ...] = (0.0, 0.05, 0.2, 0.8)
    kl_coefs: tuple[float, ...] = (0.05, 0.2)
    seeds: int = 1
    quick: bool = False


class Point(NamedTuple):
    """One setting of PPO."""

    ptx_coef: float
    kl_coef: float


def points(config: Config) -> list[Point]:
    """Return the settings, those of the weights of the text first."""
    price = _settings(config, config.out).settings["kl_coef"]
    return [Point(weight, price) for weight in config.ptx_coefs] + [Point(0.0, each) for each in config.kl_coefs]


def _settings(config: Config, out: Path, seed: int = 0) -> Any:
    made = Rlhf.of_recipe(config.recipe, quick=config.quick)
    return resolve(made(out=out, rounds=1, seed=seed))


def run(config: Config, seed: int) -> dict[Point | None, dict[str, Any]]:
    """Return the figures of the policies of a seed by their settings; those of the start under None."""
    out = config.out / f"seed-{seed}"
    rlhf(_settings(config, out, seed))
    settings, recipe, data = with_data(_settings(config, out, seed))
    base = str((out / "sft").resolve())
    own = Point(settings.ppo["ptx_coef"], settings.settings["kl_coef"])  # that of the run itself
    found: dict[Point | None, dict[str, Any]] = {None: json.loads((out / "start.json").read_text("utf-8"))}
    for point in points(config):
        if point == own:
            found[point] = json.loads((out / "round-1" / "figures.json").read_text("utf-8"))
            continue
        ppo = {**settings.ppo, "ptx_coef": point.ptx_coef}
        if not point.ptx_coef:
            ppo.pop("ptx_files", None)
        here = dataclasses.replace(settings, ppo=ppo, settings={**settings.settings, "kl_coef": point.kl_coef})
        folder = out / f"ptx-{point.ptx_coef:g}-kl-{point.kl_coef:g}"
        measure = Measure(here, base, recipe, data)
        model = str((out / "round-1" / "reward-model").resolve())
        reward = to_json(measure.paid({"name": "learned", "model": model}))
        if not (folder / "results.json").exists():
            train(training_settings(here, base, reward, folder))
        found[point] = measure.policy(folder / "policy", reward, folder / "figures.json")
    return found


def _of(row: dict[str, Any], name: str) -> dict[str, float]:
    figure: dict[str, float] = row["measures"][name] if name in row["measures"] else row[name]
    return figure


def merged(rows: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Return the mean of a figure over seeds with its standard error; over prompts or texts where there is one seed."""
    values = [_of(row, name)["mean"] for row in rows]
    if len(values) == 1:
        return values[0], _of(rows[0], name)["stderr"] or 0.0  # it has none where there is one text
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    runs = [run(config, seed) for seed in range(config.seeds)]
    names = ("gold", "kl", *(name for name in runs[0][None]["measures"] if name != _BITS), _BITS)
    results = {point: {name: merged([each[point] for each in runs], name) for name in names} for point in runs[0]}
    table = [
        (
            *(("start", "") if point is None else (f"{point.ptx_coef:g}", f"{point.kl_coef:g}")),
            *(f"{mean:.3f} ± {error:.3f}" for mean, error in row.values()),
        )
        for point, row in results.items()
    ]
    show(f"{config.recipe}: {config.seeds} seeds", ("ptx_coef", "kl_coef", *names), table)
    kept = [
        {"point": None if point is None else point._asdict(), **{name: list(row[name]) for name in names}}
        for point, row in results.items()
    ]
    write_json(config.out / "ptx.json", kept)
    draw(results, config.out / "ptx.png")


def draw(results: dict[Point | None, dict[str, tuple[float, float]]], path: Path) -> None:
    """Draw the gold score over bits per character, a line for each sweep."""
    figure = Figure(figsize=(5.2, 4.0), dpi=130, layout="constrained")
    panel = figure.add_subplot()
    first = next(point for point in results if point is not None and not point.ptx_coef)
    sweeps = {
        "γ: pre-training text": [point for point in results if point is not None and point.kl_coef == first.kl_coef],
        "β: price of the KL": [point for point in results if point is not None and not point.ptx_coef],
    }
    for color, (label, line) in enumerate(sweeps.items()):
        bits, gold = ([results[point][name] for point in line] for name in (_BITS, "gold"))
        panel.errorbar(
            [mean for mean, _ in bits], [mean for mean, _ in gold],
            [1.96 * error for _, error in gold], [1.96 * error for _, error in bits],
            fmt="o-", capsize=3, color=f"C{color}", label=label,
        )  # fmt: skip
        for point, (x, _), (y, _) in zip(line, bits, gold, strict=True):
            value = point.ptx_coef if color == 0 else point.kl_coef
            panel.annotate(
                f"{value:g}", (x, y), xytext=(5, 5), textcoords="offset points", color=f"C{color}", fontsize=8
            )
    start = results[None]
    panel.plot(start[_BITS][0], start["gold"][0], "*", color="0.4", markersize=11, label="start")
    panel.set(xlabel=f"{_BITS} of held-out pre-training text", ylabel="gold score")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
