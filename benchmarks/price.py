"""The price in nats of an agent on ``textenv/MovieReview-v0`` with VADER: at how much more KL than best-of-32.

    python -m benchmarks.price
    python -m benchmarks.price --agent ppo --settings '{}' --kl-coefs 0.05 0.035 0.02 --rows 128 --steps 56000

The agent learns once for each weight of the KL penalty. On held-out openings its score and KL, with 95 % intervals, and
the seconds that it learned and that it wrote; the price is read off the line through them, from the least KL on.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.progress import track

from benchmarks._measure import environment, show
from textenv.agents import config_of, find
from textenv.analysis.frontier import best_of_n_kl, price_in_nats, sample_frontier


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        agent: A name of ``textenv.agents.names()``, or an import path.
        settings: Its settings, as JSON.
        kl_coefs: Weights of the KL penalty, from the greatest on.
        rows: Texts side by side.
        steps: Tokens to learn from.
        episodes: Completions to measure with.
        samples: Completions of each opening that best-of-32 is estimated from.
        seed: Seeds the agent.
    """

    agent: str = "guided"
    settings: str = '{"candidates": 1024}'
    kl_coefs: tuple[float, ...] = (0.085, 0.07)
    rows: int = 96
    steps: int = 1500
    episodes: int = 512
    samples: int = 64
    seed: int = 0


def make(rows: int, split: str, **settings: Any) -> Any:
    return gym.make_vec(
        "textenv/MovieReview-v0", num_envs=rows, split=split, reward="vader", autoreset_mode=AutoresetMode.DISABLED,
        **settings,
    )  # fmt: skip


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    best = sample_frontier(make(256, "heldout", kl_mode="lump"), config.samples, seed=config.seed).score_at(32)
    agent_class = find(config.agent)
    settings = config_of(agent_class, {"seed": config.seed, **json.loads(config.settings)})
    kls, scores, rows = [], [], []
    for coef in track(sorted(config.kl_coefs, reverse=True), "Runs"):
        agent = agent_class(make(config.rows, "train", kl_coef=coef, kl_mode="dense"), settings)
        began = time.perf_counter()
        agent.learn(config.steps)
        learned = time.perf_counter()
        envs = make(256, "heldout", kl_coef=coef, kl_mode="dense")
        prompts = envs.unwrapped.prompts
        asked = [prompts[place % len(prompts)] for place in range(config.episodes)]
        episodes = agent.sample(envs, asked, generator=torch.Generator().manual_seed(config.seed))
        wrote = time.perf_counter()
        score, kl = (np.array(v) for v in zip(*((e.score, sum(e.kl)) for e in episodes), strict=True))
        kls.append(float(kl.mean()))
        scores.append(float(score.mean()))
        width = [1.96 * values.std(ddof=1) / np.sqrt(len(values)) for values in (score, kl)]
        rows.append(
            (
                f"{coef:g}",
                f"{scores[-1]:.3f} ± {width[0]:.3f}",
                f"{kls[-1]:.2f} ± {width[1]:.2f}",
                f"{learned - began:.0f}",
                f"{wrote - learned:.0f}",
            )
        )
    order = np.argsort(kls)
    price = price_in_nats(np.array(kls)[order], np.array(scores)[order], best)
    show(
        f"{config.agent} {config.settings}, {config.steps:,} tokens, {config.rows} rows",
        ("kl_coef", "score", "KL (nats)", "s learning", f"s writing {config.episodes}"),
        rows,
        f"Best-of-32: {best:.3f} at {float(best_of_n_kl(32)):.2f} nats. Price in nats: "
        + (f"{price:.2f}." if price is not None else "not reached."),
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
