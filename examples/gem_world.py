"""A game of GEM as a token-level environment: https://github.com/axon-rl/gem.

GEM asks for exact versions of other packages, so it gets an environment of its own:

python -m venv gem && gem/bin/pip install textenv gem-llm && gem/bin/python examples/gem_world.py
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as stable_baselines3_check_env

import textenv  # noqa: F401 (registers the ids)
from textenv.worlds import find


def by_halving(said: str, low: int, high: int) -> tuple[int, int]:
    """Return between which numbers the one to be guessed is, after an answer."""
    hint = re.search(r"the target number is (higher|lower) than (\d+)", said)
    if hint is None:
        return low, high
    number = int(hint[2])
    return (number + 1, high) if hint[1] == "higher" else (low, number - 1)


def play(seed: int, name: str) -> tuple[str, float]:
    """Play a game by halving; return all that was said, and what it paid."""
    world = find(name)[1]()
    said, _ = world.reset(seed=seed)
    bounds = re.search(r"between (\d+) and (\d+)", said)
    assert bounds is not None
    low, high, told, paid, done = int(bounds[1]), int(bounds[2]), said, 0.0, False
    while not done:
        answer, reward, terminated, truncated, _ = world.step(f"\\boxed{{{(low + high) // 2}}}")
        low, high = by_halving(answer, low, high)
        told, paid, done = told + answer, paid + reward, terminated or truncated
    return told, paid


def main(name: str = "gem:game:GuessTheNumber-v0-easy", games: int = 50, model: str = "bundled") -> None:
    played = [play(seed, name) for seed in range(games)]
    again = [play(seed, name) for seed in range(games)]
    same = "the same with the same seeds" if played == again else "DIFFERENT with the same seeds"
    print(f"{games} games of {name} by halving pay {np.mean([paid for _, paid in played]):.2f}, {same}")
    env = gym.make("textenv/Text-v0", model=model, world=name, max_new_tokens=8, max_turns=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(env.unwrapped, skip_render_check=True)
        stable_baselines3_check_env(env.unwrapped)
    print("both checkers pass")
    env.reset(seed=0)
    env.action_space.seed(0)
    ended, info = False, dict[str, Any]()
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    print(
        f"random tokens: stop_reason {info['stop_reason']!r}, the world paid {[turn.reward for turn in info['turns']]}"
    )
    env.close()


if __name__ == "__main__":
    tyro.cli(main)
