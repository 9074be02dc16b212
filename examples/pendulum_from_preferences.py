"""Deep RL from human preferences on Pendulum-v1: learning from comparisons of clips, next to the task's own reward.

python examples/pendulum_from_preferences.py --out runs/pendulum-preferences

Trains every seed twice, with a synthetic judge of clips and with the true reward; prints a table and writes a figure.
If it is killed, it continues when it is started again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from textenv.clips.clips_config import ClipsConfig
from textenv.clips.measuring import plot_returns
from textenv.clips.training import train


def main(
    out: Path = Path("runs/pendulum-preferences"), seeds: int = 5, labels: int = 700, total_steps: int = 8_000
) -> None:
    folders: dict[str, list[Path]] = {}
    sides: tuple[tuple[str, Literal["learned", "task"]], ...] = (
        (f"{labels} comparisons of clips", "learned"),
        ("true reward", "task"),
    )
    for name, reward in sides:
        folders[name] = [out / f"{reward}-{seed}" for seed in range(seeds)]
        for seed, folder in enumerate(folders[name]):
            config = ClipsConfig(
                out=folder, labels=labels, reward=reward, total_steps=total_steps, rounds=16, seed=seed,
                agent_settings={"learning_rate": 1e-3, "batch_size": 128, "policy_kwargs": {"net_arch": [64, 64]}},
            )  # fmt: skip
            if not (folder / "results.json").exists():
                train(config)
    print("| reward | true return, mean over seeds | by seed |\n|---|---:|---|")
    for name, runs in folders.items():
        returns = [json.loads((run / "results.json").read_text("utf-8"))["true_return"] for run in runs]
        spread = f" ± {np.std(returns, ddof=1):.1f}" if seeds > 1 else ""
        print(f"| {name} | {np.mean(returns):.1f}{spread} | {', '.join(f'{value:.1f}' for value in returns)} |")
    plot_returns(folders, out / "returns.png", title="Pendulum-v1, SAC")
    print(f"picture: {out / 'returns.png'}")


if __name__ == "__main__":
    tyro.cli(main)
