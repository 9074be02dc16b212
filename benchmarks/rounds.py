"""Several rounds of feedback against one with the same number of rankings, a gold reward standing in for people.

    python -m benchmarks.rounds --out runs/rounds --labels 600 --rounds 3 --seeds 3

Each run is one of ``textenv rlhf``, finished ones are not run again. The gold score is that of fresh completions of
held-out prompts; its standard error is over seeds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks._measure import environment, show
from textenv.commands.rlhf import Rlhf
from textenv.commands.rlhf_run import rlhf


@dataclass(frozen=True, slots=True)
class Config:
    """What to compare.

    Attributes:
        out: Folder of the runs.
        gold: The gold reward.
        labels: Rankings in each run.
        rounds: Rounds of the runs that have several.
        seeds: Runs of each kind.
        total_steps: Tokens of PPO a round.
    """

    out: Path
    gold: str = "vader"
    labels: int = 600
    rounds: int = 3
    seeds: int = 3
    total_steps: int = 56_000


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    scores: dict[int, list[list[float]]] = {1: [], config.rounds: []}
    for seed in range(config.seeds):
        for rounds, found in scores.items():
            run = Rlhf(
                out=config.out / f"{rounds}-rounds-{seed}", gold=config.gold, labels=config.labels, rounds=rounds,
                total_steps=config.total_steps, seed=seed,
            )  # fmt: skip
            rlhf(run)
            rows = json.loads((run.out / "results.json").read_text("utf-8"))
            found.append([row["gold"]["mean"] for row in rows])
    table = []
    for rounds, found in scores.items():
        for number in range(rounds + 1):
            values = [row[number] for row in found]
            error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            ranked = config.labels * number // rounds
            table.append(
                (f"{rounds} rounds: after round {number}", f"{ranked:,}", f"{np.mean(values):.3f} ± {error:.3f}")
            )
    show(f"gold score ({config.gold}), {config.seeds} seeds", ("", "rankings", "gold score"), table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
