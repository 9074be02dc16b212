"""A reward of your own: a function of the completions, which PPO learns to maximize.

python examples/own_reward.py --total-steps 40000
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import tyro
from gymnasium.vector import AutoresetMode

import textenv
from textenv.agents.ppo import PPO, PPOConfig
from textenv.rollouts.collect import sample_episodes


def alliteration(completions: Sequence[str], **_: Any) -> list[float]:
    """Return the share of neighboring words that begin with the same letter."""
    scores = []
    for text in completions:
        letters = [word[0].lower() for word in text.split() if word[0].isalpha()]
        pairs = list(pairwise(letters))
        scores.append(sum(a == b for a, b in pairs) / max(len(pairs), 1))
    return scores


def main(total_steps: int = 40_000, num_envs: int = 64, seed: int = 0) -> None:
    envs = gym.make_vec(
        "textenv/MovieReview-v0",
        num_envs=num_envs,
        reward=alliteration,
        kl_mode="lump",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    agent = PPO(envs, PPOConfig(seed=seed))
    agent.learn(total_steps, progress=lambda steps, metrics: print(f"{steps:,}: {metrics['objective/score']:.3f}"))
    for episode in sample_episodes(envs, agent.policy, None, ["The film", "A story", "What begins as"]):
        print(f"{episode.score:.2f}  {episode.prompt}{episode.completion}")


if __name__ == "__main__":
    print(f"textenv {textenv.__version__}")
    tyro.cli(main)
