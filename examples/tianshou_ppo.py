"""tianshou's PPO in a dialogue of a few letters, its networks MLPs on one-hot tokens; how far is it from the optimum?

pip install 'tianshou>=2' textenv && python examples/tianshou_ppo.py

tianshou lays infos out as arrays, so the environment is asked for infos of fixed keys and shapes. Its networks are not
attached to the environment, so the behavior counts as deterministic: the reward is score + beta * log pi_ref, and an
entropy bonus of beta makes that the KL-regularized return.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from torch import nn

import textenv  # noqa: F401 (registers the ids)
from textenv.analysis.exact import Tree


class Network(nn.Module):
    """Reads the tokens so far, one-hot, as one vector."""

    def __init__(self, env: gym.Env[Any, Any], outputs: int) -> None:
        super().__init__()
        self.vocab_size = env.action_space.n
        width = env.observation_space["input_ids"].shape[0]
        self.layers = nn.Sequential(nn.Linear(width * self.vocab_size, 64), nn.Tanh(), nn.Linear(64, outputs))

    def forward(self, obs: Any) -> torch.Tensor:
        """Return what each of a batch of observations comes to, ``(batch, outputs)``."""
        ids, mask = torch.as_tensor(obs["input_ids"]), torch.as_tensor(obs["attention_mask"])
        tokens = nn.functional.one_hot(ids, self.vocab_size) * mask[..., None]
        return self.layers(tokens.flatten(1).float())


class Actor(Network):
    """The logits of the next token, in the form that tianshou's policies ask for."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """Return the logits, ``(batch, vocab_size)``, and the state as it was."""
        return super().forward(obs), state


def main(
    iterations: int = 12,
    batch: int = 2_000,
    *,
    vocab_size: int = 5,
    turns: int = 2,
    max_new_tokens: int = 2,
    seed: int = 0,
) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (tianshou shuffles its minibatches by it)
    settings = {"vocab_size": vocab_size, "turns": turns, "max_new_tokens": max_new_tokens}
    envs = DummyVectorEnv([lambda: gym.make("textenv/Exact-v0", info="fixed", **settings)] * 8)
    envs.seed(seed)
    env = gym.make("textenv/Exact-v0", **settings)
    tree = Tree.of(env)
    actor = Actor(env, vocab_size)
    algorithm = PPO(
        policy=DiscreteActorPolicy(actor=actor, action_space=env.action_space),
        critic=Network(env, 1),
        optim=AdamOptimizerFactory(lr=3e-3),
        gamma=1.0,
        gae_lambda=1.0,
        ent_coef=tree.kl_coef,
        max_grad_norm=1.0,
    )

    def log_probs(ids: Any) -> Any:
        with torch.no_grad():
            logits, _ = actor(tree.observations(ids))
        return torch.log_softmax(logits.double(), dim=-1).numpy()

    def report(epoch: int, tokens: int) -> None:
        if epoch % 3 == 1 or tokens == iterations * batch:
            score = tree.evaluate(log_probs).score
            print(f"{tokens} tokens: regret {100 * tree.regret(log_probs):.1f} %, score {score:.2f}", flush=True)

    training = OnPolicyTrainerParams(
        training_collector=Collector[CollectStats](algorithm.policy, envs, VectorReplayBuffer(2 * batch, len(envs))),
        max_epochs=iterations,
        epoch_num_steps=batch,
        collection_step_num_env_steps=batch,
        batch_size=batch // 4,
        update_step_num_repetitions=4,
        training_fn=report,
        verbose=False,
        show_progress=False,
    )
    algorithm.run_training(training)
    report(0, iterations * batch)
    envs.close()


if __name__ == "__main__":
    tyro.cli(main)
