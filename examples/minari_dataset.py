"""Minari's DataCollector: writes episodes of the reference model as an offline data set, and reads them back.

pip install 'textenv[clients]' && python examples/minari_dataset.py --episodes 32
"""

from __future__ import annotations

import os
import tempfile

import gymnasium as gym
import minari
import numpy as np
import torch
import tyro
from minari import DataCollector

from textenv.models.policy import TextPolicy


def main(episodes: int = 32, max_new_tokens: int = 12, seed: int = 0, name: str = "textenv/reference-v0") -> None:
    os.environ.setdefault("MINARI_DATASETS_PATH", tempfile.mkdtemp())
    env = DataCollector(
        gym.make("textenv/MovieReview-v0", max_new_tokens=max_new_tokens, info="fixed"), record_infos=True
    )
    policy = TextPolicy.of_reference(env.unwrapped.batch)
    env.unwrapped.attach_policy(policy)
    generator = torch.Generator().manual_seed(seed)
    written = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        over, rewards = False, []
        while not over:
            actions, _ = policy.act({key: value[None] for key, value in obs.items()}, generator=generator)
            obs, reward, terminated, truncated, _ = env.step(actions[0])
            over = terminated or truncated
            rewards.append(reward)
        written.append((env.unwrapped.last_episode, rewards))
    env.create_dataset(dataset_id=name, algorithm_name="the reference model", description="Movie reviews.")

    dataset = minari.load_dataset(name)
    for (before, rewards), found in zip(written, dataset.iterate_episodes(), strict=True):
        assert tuple(found.actions.tolist()) == before.completion_ids
        assert np.allclose(found.rewards, rewards)
        assert found.observations["input_ids"].shape[0] == len(found.actions) + 1
        assert bool(found.terminations[-1])
        assert np.allclose(found.infos["score"][-1], before.score)
    again = dataset.recover_environment()
    assert again.observation_space == env.observation_space
    print(f"{dataset.total_episodes} episodes, {dataset.total_steps} tokens, the same when read back")


if __name__ == "__main__":
    tyro.cli(main)
