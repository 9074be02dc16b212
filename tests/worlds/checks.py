"""What tests of worlds share: a world inside the environment of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as stable_baselines3_check_env

from textenv import TextEnv


@contextmanager
def env_of(model: Any, world: Any, **settings: Any) -> Iterator[TextEnv]:
    """Make ``textenv/Text-v0`` with a world, and close it afterwards."""
    env = gym.make("textenv/Text-v0", model=model, world=world, **settings)
    try:
        assert isinstance(env.unwrapped, TextEnv)
        yield env.unwrapped
    finally:
        env.close()


def passes_both_checkers(model: Any, world: Any, **settings: Any) -> None:
    """Assert that the checkers of Gymnasium and Stable-Baselines3 find nothing, not even to warn of."""
    with env_of(model, world, **settings) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(env, skip_render_check=True)
        stable_baselines3_check_env(env)


def write(env: TextEnv, text: str) -> tuple[float, bool, bool, dict[str, Any]]:
    """Write a text and the token that ends a turn; return the sum of the rewards, and the rest of the last step."""
    model, paid = env.reference, 0.0
    ids = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.eos_ids[0]]
    terminated = truncated = False
    info: dict[str, Any] = {}
    for token in ids:
        _, reward, terminated, truncated, info = env.step(token)
        paid += float(reward)
        if terminated or truncated:
            break
    return paid, terminated, truncated, info
