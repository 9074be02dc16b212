"""Over-optimization: gold score and proxy score over the distance from the reference, for PPO and best of n.

    textenv rlhf --out runs/proxy --gold vader --rounds 1 --labels 400
    python -m benchmarks.overoptimization --run runs/proxy --out runs/overoptimization

Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization": a reward model (the proxy) is trained on rankings by
a gold reward, and policies are optimized against the proxy ever further. The proxy's score goes on rising after the
gold score has passed its peak. Best of n is estimated without bias from more samples, for n to 256; PPO trains without
a KL penalty and is measured as it goes. Distances are square roots of the KL divergence in nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from matplotlib.figure import Figure

from benchmarks._measure import environment, show
from textenv.agents.ppo import PPO, PPOConfig
from textenv.analysis.frontier import best_of_n_kl, expected_best
from textenv.data.files import write_atomically
from textenv.data.pictures import save_figure
from textenv.env.scoring import resolve_reward, score
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.types import Episode


@dataclass(frozen=True, slots=True)
class Config:
    """What to optimize, and how far.

    Attributes:
        run: A finished run of ``textenv rlhf`` with a gold reward; its first round's reward model is the proxy.
        out: Folder for the figures and the picture.
        samples: Completions a prompt that best of n is estimated from.
        prompts: Held-out prompts for that.
        steps: Tokens that PPO writes.
        every: Iterations of PPO between measurements.
        episodes: Completions of held-out prompts in each measurement.
        num_envs: Episodes written side by side.
        seed: Seeds everything.
    """

    run: Path
    out: Path
    samples: int = 512
    prompts: int = 32
    steps: int = 150_000
    every: int = 6
    episodes: int = 512
    num_envs: int = 128
    seed: int = 0


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    settings = json.loads((config.run / "config.json").read_text("utf-8"))
    gold = resolve_reward(_parsed(settings["gold"]))
    proxy = {"name": "learned", "model": str(config.run / "round-1" / "reward-model")}
    base = str(config.run / "sft") if settings["sft"] else settings["model"]
    keywords: dict[str, Any] = {"model": base, "reward": proxy, "kl_mode": "lump", "kl_coef": 0.0}
    fresh: Any = gym.make_vec(
        settings["env"], num_envs=config.num_envs, split="heldout", autoreset_mode=AutoresetMode.DISABLED, **keywords
    )

    def golden(episodes: list[Episode]) -> np.ndarray[Any, Any]:
        return score(
            gold,
            prompts=[episode.prompt for episode in episodes],
            completions=[episode.completion for episode in episodes],
            completion_ids=[episode.completion_ids for episode in episodes],
            columns={},
        )

    results = {
        "best of n": _best_of_n(config, fresh, golden),
        "PPO": _ppo(config, settings["env"], keywords, fresh, golden),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out / "overoptimization.json", json.dumps(results, indent=2) + "\n")
    _draw(results, config.out / "overoptimization.png")
    for name, rows in results.items():
        best = max(rows, key=lambda row: row["gold"])
        show(
            name,
            ("", "KL in nats", "proxy", "gold"),
            [
                (label, f"{row['kl']:.2f}", f"{row['proxy']:.3f}", f"{row['gold']:.3f}")
                for label, row in (("start", rows[0]), ("gold's peak", best), ("end", rows[-1]))
            ],
        )
    print(f"Picture: {config.out / 'overoptimization.png'}")


def _parsed(reward: str) -> Any:
    return json.loads(reward) if reward.startswith("{") else reward


def _best_of_n(config: Config, envs: Any, golden: Any) -> list[dict[str, float]]:
    base = text_env(envs)
    policy = TextPolicy.of_reference(base)
    generator = torch.Generator().manual_seed(config.seed)
    prompts = base.prompts[: config.prompts]
    proxies, golds = [], []
    for prompt in prompts:
        episodes = sample_episodes(envs, policy, generator, [prompt] * config.samples)
        proxies.append([episode.score for episode in episodes])
        golds.append(golden(episodes))
    rows = []
    for power in range(int(math.log2(min(256, config.samples))) + 1):
        n = 2**power
        rows.append(
            {
                "n": float(n),
                "kl": float(best_of_n_kl(n)),
                "proxy": float(expected_best(proxies, n).mean()),
                "gold": float(expected_best(proxies, n, golds).mean()),
            }
        )
    return rows


def _ppo(config: Config, env: str, keywords: Mapping[str, Any], fresh: Any, golden: Any) -> list[dict[str, float]]:
    envs: Any = gym.make_vec(env, num_envs=config.num_envs, autoreset_mode=AutoresetMode.DISABLED, **keywords)
    agent = PPO(envs, PPOConfig(seed=config.seed, lr_schedule="constant"))
    held_out = text_env(fresh).prompts
    prompts = [held_out[place % len(held_out)] for place in range(config.episodes)]
    rows: list[dict[str, float]] = []

    def measure(step: int) -> None:
        episodes = sample_episodes(fresh, agent.policy, torch.Generator().manual_seed(config.seed), prompts)
        rows.append(
            {
                "tokens": float(step),
                "kl": float(np.mean([math.fsum(episode.kl) for episode in episodes])),
                "proxy": float(np.mean([episode.score for episode in episodes])),
                "gold": float(golden(episodes).mean()),
            }
        )
        print(f"{step:,} tokens: KL {rows[-1]['kl']:.2f}, proxy {rows[-1]['proxy']:.3f}, gold {rows[-1]['gold']:.3f}")

    def progress(step: int, metrics: Mapping[str, float]) -> None:
        if agent.iterations % config.every == 0:
            measure(step)

    measure(0)
    agent.learn(config.steps, progress=progress)
    return rows


def _draw(results: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    for panel, (name, rows) in zip(figure.subplots(1, 2), results.items(), strict=True):
        distance = [math.sqrt(max(row["kl"], 0.0)) for row in rows]
        other = panel.twinx()
        (gold,) = panel.plot(distance, [row["gold"] for row in rows], color="C1", marker=".", label="gold")
        (proxy,) = other.plot(distance, [row["proxy"] for row in rows], color="C0", marker=".", label="proxy")
        panel.set(title=name, xlabel="distance from the reference, √KL (√nats)", ylabel="gold score")
        other.set_ylabel("proxy score")
        panel.legend(handles=[gold, proxy], frameon=False, loc="lower right")
        panel.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
