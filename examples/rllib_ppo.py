"""RLlib's PPO in a dialogue of a few letters, its network an MLP on one-hot tokens; how far is it from the optimum?

pip install 'ray[rllib]' textenv && python examples/rllib_ppo.py

RLlib's own networks are not attached to the environment, so the behavior counts as deterministic: the reward is
score + beta * log pi_ref, and an entropy bonus of beta makes that the KL-regularized return.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.tune.registry import register_env

from textenv.analysis.exact import Tree


class OneHot(gym.ObservationWrapper[Any, Any, Any]):
    """The tokens read so far, one-hot, as one vector."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.vocab_size = env.action_space.n
        width = env.observation_space["input_ids"].shape[0]
        self.observation_space = gym.spaces.Box(0, 1, (width * self.vocab_size,), np.float32)

    def observation(self, observation: Any) -> Any:
        """Encode an observation."""
        return one_hot(observation, self.vocab_size)


def one_hot(observation: Any, vocab_size: int) -> Any:
    """Encode an observation, or a batch of them."""
    tokens = np.eye(vocab_size, dtype=np.float32)[observation["input_ids"]]
    seen = tokens * observation["attention_mask"][..., None]
    return seen.reshape(*seen.shape[:-2], -1)


def make(settings: dict[str, Any]) -> gym.Env[Any, Any]:
    return OneHot(gym.make("textenv:textenv/Exact-v0", **settings))  # textenv: imported in RLlib's processes too


def main(
    iterations: int = 10,
    batch: int = 2_000,
    *,
    vocab_size: int = 5,
    turns: int = 2,
    max_new_tokens: int = 2,
    seed: int = 0,
) -> None:
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    register_env("letters", make)
    settings = {"vocab_size": vocab_size, "turns": turns, "max_new_tokens": max_new_tokens}
    env = make(settings)
    tree = Tree.of(env)
    config = PPOConfig().environment("letters", env_config=settings).debugging(seed=seed)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=8)
    config.training(gamma=1.0, lambda_=1.0, lr=1e-3, num_epochs=4, use_kl_loss=False, entropy_coeff=tree.kl_coef)
    config.training(train_batch_size_per_learner=batch, minibatch_size=batch // 4)
    algorithm = config.build_algo()

    def log_probs(ids: Any) -> Any:
        module: RLModule = algorithm.get_module()
        observed = torch.from_numpy(one_hot(tree.observations(ids), vocab_size))
        with torch.no_grad():
            logits = module.forward_inference({Columns.OBS: observed})[Columns.ACTION_DIST_INPUTS]
        return torch.log_softmax(logits.double(), dim=-1).numpy()

    for iteration in range(1, iterations + 1):
        algorithm.train()
        if iteration == 1 or iteration % 5 == 0 or iteration == iterations:
            print(f"{iteration * batch} tokens: regret {100 * tree.regret(log_probs):.1f} %", flush=True)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    tyro.cli(main)
