"""Every agent on ``textenv/Exact-v0``, where the optimum is known: the regret that it reaches, and in how many steps.

Regret is ``(J* - J(pi)) / (J* - J(pi_ref))``, exact, by enumeration of all texts. Run from the repository::

    python -m benchmarks.exact_agents --out runs/exact --agents ppo rloo --families dense sparse --seeds 5

A run that was cut off goes on: what is in ``results.jsonl`` is not run again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table

from textenv.agents import AGENTS, config_of, find
from textenv.exact import Tree

ROWS = 64
SETTINGS: dict[str, dict[str, Any]] = {}
"""What differs from an agent's defaults, which are made for models a hundred times as large."""


@dataclass(frozen=True)
class Arguments:
    """What to run.

    Attributes:
        out: Folder for results.jsonl.
        agents: Their names; none for all that learn.
        families: Of rewards.
        seeds: As many seeds of each.
        total_steps: Tokens to learn from.
        marks: Figures on the way, at equal distances.
    """

    out: Path
    agents: tuple[str, ...] = ()
    families: tuple[str, ...] = ("dense", "sparse")
    seeds: int = 5
    total_steps: int = 60_000
    marks: int = 6


def measure(name: str, family: str, seed: int, total_steps: int, marks: int = 6) -> dict[str, Any]:
    """Train an agent; return its regret on the way and at the end."""
    envs: Any = gym.make_vec(
        "textenv/Exact-v0", num_envs=ROWS, autoreset_mode=AutoresetMode.DISABLED, reward=family, kl_mode="lump"
    )
    tree = Tree.of(envs)
    agent_class = find(name)
    agent = agent_class(envs, config_of(agent_class, {**SETTINGS.get(name, {}), "seed": seed}))
    began = time.perf_counter()
    curve: list[tuple[int, float]] = []

    def log(steps: int, _: Any) -> None:
        if steps >= total_steps * (len(curve) + 1) / marks:
            curve.append((steps, tree.regret(agent.policy)))

    agent.learn(total_steps, progress=log)
    outcome = tree.evaluate(agent.policy)
    return {
        "agent": name, "family": family, "seed": seed, "steps": agent.steps, "regret": tree.regret_of(outcome),
        "score": outcome.score, "kl": outcome.kl, "curve": curve, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["agent"], row["family"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for family in arguments.families:
            for name in arguments.agents or sorted(set(AGENTS) - {"best_of_n"}):
                if (name, family, seed) not in done:
                    rows.append(measure(name, family, seed, arguments.total_steps, arguments.marks))
                    with results.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    table = Table("agent", "family", "seeds", "steps", "regret, %", "worst, %", "steps to 5 %", "to 2 %", "seconds")
    for name, family in sorted({(row["agent"], row["family"]) for row in rows}):
        of = [row for row in rows if (row["agent"], row["family"]) == (name, family)]
        regrets = [100 * row["regret"] for row in of]
        reached = []
        for bound in (0.05, 0.02):
            steps = [next((at for at, regret in row["curve"] if regret <= bound), None) for row in of]
            reached.append("-" if None in steps else f"{max(step for step in steps if step is not None):,}")
        table.add_row(
            name, family, str(len(of)), f"{of[0]['steps']:,}", f"{np.mean(regrets):.2f}", f"{max(regrets):.2f}",
            *reached, f"{np.mean([row['seconds'] for row in of]):.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
