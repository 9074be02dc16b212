"""The main job, measured: PPO with its defaults on ``textenv/MovieReview-v0`` and VADER, with and without KL.

    python benchmarks/movie_review.py --seeds 0 1 2 3 4

Each seed is a run of ``textenv train``; a seed that is finished in ``--out`` is not run again. The table gives, on
fresh completions of held-out prompts, the rise of the mean score over the reference's, the KL of an episode, and the
seconds spent in training (making the environment, comparing and drawing left out). The picture sets the first seed
beside a run with ``kl_coef=0``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from textenv.rollouts.tracking import plot_training


@dataclass(frozen=True)
class Arguments:
    """What to run.

    Attributes:
        seeds: Seeds of the runs with default settings.
        out: Folder of the runs.
        picture: Where the picture goes; None for ``kl.png`` in ``out``.
        flags: Further flags of ``textenv train``, the same for all runs.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    out: Path = Path("runs/movie-review")
    picture: Path | None = None
    flags: tuple[str, ...] = ()


def train(folder: Path, flags: tuple[str, ...]) -> dict[str, float]:
    """Run ``textenv train`` unless it was run already; return its figures."""
    if not (folder / "results.json").exists():
        command = [sys.executable, "-m", "textenv", "train", "--reward", "vader", "--out", str(folder), *flags]
        subprocess.run(command, check=True)
    results = json.loads((folder / "results.json").read_text())
    before, after = results["before"], results["after"]
    return {
        "before": before["score"]["mean"],
        "after": after["score"]["mean"],
        "rise": after["score"]["mean"] - before["score"]["mean"],
        "KL": after["kl"]["mean"],
        "tokens": after["length"]["mean"],
        "seconds": results["seconds"],
    }


def main(arguments: Arguments) -> None:
    runs = {f"seed {seed}": arguments.out / f"seed-{seed}" for seed in arguments.seeds}
    rows = {
        name: train(folder, ("--seed", name.removeprefix("seed "), *arguments.flags)) for name, folder in runs.items()
    }
    free = arguments.out / "without-kl"
    without = train(free, ("--seed", str(arguments.seeds[0]), "--kl-coef", "0", *arguments.flags))
    columns = list(without)
    table = Table("run", *columns, title="textenv/MovieReview-v0, PPO, VADER score of held-out prompts")
    rows |= {"median": {key: float(np.median([row[key] for row in rows.values()])) for key in columns}}
    for name, row in [*rows.items(), ("kl_coef=0", without)]:
        table.add_row(
            name, *(f"{row[key]:.3f}" if key in {"before", "after", "rise"} else f"{row[key]:.2f}" for key in columns)
        )
    Console(width=120).print(table)
    picture = arguments.picture or arguments.out / "kl.png"
    plot_training({"kl_coef=0.035": next(iter(runs.values())), "kl_coef=0": free}, picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
