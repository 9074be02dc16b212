"""Best of n, without training: write n reviews from each opening and keep the best, through Gymnasium's API.

python examples/best_of_n.py --n 16
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode

import textenv
from textenv.analysis.frontier import best_of_n_kl
from textenv.env.prompts import movie_openings
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import sample_episodes


def main(n: int = 16, prompts: int = 16, seed: int = 0) -> None:
    envs = gym.make_vec(
        "textenv/MovieReview-v0", num_envs=n, split="heldout", kl_mode="lump", autoreset_mode=AutoresetMode.DISABLED
    )
    policy = TextPolicy(textenv.CausalLM.from_pretrained(), value="none")
    generator = torch.Generator().manual_seed(seed)
    best = []
    for opening in movie_openings("heldout")[:prompts]:
        episodes = sample_episodes(envs, policy, generator, [opening] * n)
        best.append(max(episodes, key=lambda episode: episode.score))
        print(f"{best[-1].score:+.2f}  {opening}{best[-1].completion}")
    kl = best_of_n_kl(n)
    print(f"best of {n}: mean score {np.mean([e.score for e in best]):.3f} at {kl:.2f} nats")


if __name__ == "__main__":
    tyro.cli(main)
