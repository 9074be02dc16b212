"""Stable-Baselines3's PPO beside ours on ``textenv/MovieReview-v0``: matched settings, the same learning curve?

    python benchmarks/sb3_agreement.py --seeds 0 1 2 3 4

Matched are the model, the three learning rates (constant), Adam, one epoch, minibatches (in tokens, about), gamma,
lambda, clipping, the weight of the value loss, the norm of gradients, and the reward, paid at every token. What differs
is what SB3 is: it writes a fixed number of steps a row, so that an episode may be cut where a rollout ends (with the
value there in place of what is to come), and it whitens advantages by the minibatch.

The curves are the mean scores of finished episodes in equal intervals of tokens. Their difference has a t interval over
seeds at each; a run that is finished in ``--out`` is not run again.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import textenv
from textenv.agents import ppo
from textenv.agents.sb3 import CausalLMPolicy, EpisodeBuffer, TextVecEnv
from textenv.data.files import write_atomically

ID = "textenv/MovieReview-v0"
REWARD = "vader"


@dataclass(frozen=True)
class Arguments:
    """What to run.

    Attributes:
        seeds: Of the runs of each.
        total_steps: Tokens of a run.
        num_envs: Texts that ours writes side by side.
        sb3_steps: Steps that SB3 writes a row and iteration, in fewer rows, so that an iteration has as many tokens.
            The more steps, the fewer episodes are cut where a rollout ends.
        intervals: Points of the curve.
        threads: Of torch.
        out: Folder of the figures.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    total_steps: int = 40_000
    num_envs: int = 64
    sb3_steps: int = 96
    intervals: int = 8
    threads: int = 1
    out: Path = Path("runs/sb3-agreement")


class Scores(BaseCallback):
    """Keeps when each episode ended, in tokens, its score and its KL."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "score" in info:
                self.episodes.append((self.num_timesteps, info["score"], sum(info["token_kl"])))
        return True


def run_sb3(arguments: Arguments, seed: int) -> list[tuple[int, float, float]]:
    scores = Scores()
    rows = max(1, arguments.num_envs * 12 // arguments.sb3_steps)  # an episode has up to 12 tokens
    agent = PPO(
        CausalLMPolicy,
        TextVecEnv(gym.make_vec(ID, num_envs=rows, reward=REWARD)),
        rollout_buffer_class=EpisodeBuffer,
        learning_rate=1e-4,
        n_steps=arguments.sb3_steps,
        batch_size=rows * arguments.sb3_steps // 2,
        n_epochs=1,
        gamma=1.0,
        gae_lambda=1.0,
        vf_coef=0.05,
        max_grad_norm=1.0,
        policy_kwargs={"embedding_rate": 8.0, "value_rate": 30.0},
        device="cpu",
        seed=seed,
    )
    agent.learn(arguments.total_steps, callback=scores, log_interval=None)  # type: ignore[arg-type]
    return scores.episodes


def run_ours(arguments: Arguments, seed: int) -> list[tuple[int, float, float]]:
    envs = gym.make_vec(ID, num_envs=arguments.num_envs, reward=REWARD, autoreset_mode=AutoresetMode.DISABLED)
    config = ppo.PPOConfig(
        lr_schedule="constant",
        lr_warmup=0.0,
        minibatch_size=arguments.num_envs // 2,
        value_clip=None,
        precision="float32",
        seed=seed,
    )
    episodes: list[tuple[int, float, float]] = []

    def keep(steps: int, metrics: Any) -> None:
        episodes.extend([(steps, metrics["objective/score"], metrics["objective/kl"])] * arguments.num_envs)

    ppo.PPO(envs, config).learn(arguments.total_steps, progress=keep)
    return episodes


def curve(episodes: list[tuple[int, float, float]], edges: NDArray[Any], column: int) -> NDArray[np.float64]:
    """Return the means of the episodes that ended in each interval."""
    rows = np.array(episodes)
    return np.array([rows[(rows[:, 0] > a) & (rows[:, 0] <= b), column].mean() for a, b in itertools.pairwise(edges)])


def runs(arguments: Arguments) -> dict[str, list[dict[str, Any]]]:
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "SB3": []}
    for seed in arguments.seeds:
        for name, run in (("ours", run_ours), ("SB3", run_sb3)):
            steps = f"-{arguments.sb3_steps}" if name == "SB3" else ""
            path = arguments.out / f"{name}-{arguments.total_steps}-{arguments.num_envs}{steps}-{seed}.json"
            if not path.exists():
                began = time.perf_counter()
                episodes = run(arguments, seed)
                result = {"seconds": time.perf_counter() - began, "episodes": episodes}
                write_atomically(path, json.dumps(result))
            found[name].append(json.loads(path.read_text()))
    return found


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    found = runs(arguments)
    edges = np.linspace(0, arguments.total_steps, arguments.intervals + 1)
    scores, kls = (
        {name: np.stack([curve(row["episodes"], edges, column) for row in rows]) for name, rows in found.items()}
        for column in (1, 2)
    )
    table = Table(
        "tokens", "score, ours", "score, SB3", "difference, 95 %", "KL, ours", "KL, SB3", title=f"PPO on {ID}, {REWARD}"
    )
    inside = []
    for place in range(arguments.intervals):
        mine, its = scores["ours"][:, place], scores["SB3"][:, place]
        interval = stats.ttest_ind(its, mine, equal_var=False).confidence_interval()
        inside.append(interval.low <= 0 <= interval.high)
        table.add_row(
            f"{edges[place + 1]:,.0f}",
            *(f"{them.mean():.3f} ± {them.std(ddof=1):.3f}" for them in (mine, its)),
            f"{its.mean() - mine.mean():+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]{'' if inside[-1] else ' *'}",
            *(f"{kls[name][:, place].mean():.2f}" for name in ("ours", "SB3")),
        )
    Console(width=120).print(table)
    seconds = {name: float(np.median([row["seconds"] for row in rows])) for name, rows in found.items()}
    print(f"0 is within the interval at {sum(inside)} of {len(inside)} points; median seconds a run: {seconds}")
    print(f"{asdict(arguments)}; textenv {textenv.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
