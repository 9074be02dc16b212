"""PPO in one file, in the manner of CleanRL: the agent and the update are written out, the environment is textenv's.

python examples/cleanrl_ppo.py --total-steps 20000
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Categorical

import textenv


class Agent(nn.Module):
    """A causal language model and a value head on its last hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = textenv.CausalLM.from_pretrained()
        self.network = self.lm.model.requires_grad_(True)
        self.critic = nn.Linear(self.lm.hidden_size, 1)
        nn.init.zeros_(self.critic.weight)

    @torch.no_grad()
    def act(self, obs: dict[str, Any]) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Draw the next token of each row; return it, its log-probability and the value of the state."""
        logits, hidden = self.lm.next_token(obs["input_ids"], obs["attention_mask"].sum(axis=1))  # cached: one token
        self.acting = Categorical(logits=logits)
        actions = self.acting.sample()
        return actions.numpy(), self.acting.log_prob(actions), self.critic(hidden)[:, 0]

    def action_log_prob(self, actions: Any) -> Any:
        """Return log pi of the actions just chosen, which the environment asks for in every step to compute the KL."""
        return self.acting.log_prob(torch.from_numpy(actions)).numpy()

    def evaluate(self, ids: torch.Tensor, lengths: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return log-probabilities of actions, entropies and values, with gradients: one forward a prefix."""
        hidden = self.lm.hidden_states(ids, lengths)[torch.arange(len(ids)), lengths - 1]
        policy = Categorical(logits=self.lm.head(hidden))
        return policy.log_prob(actions), policy.entropy(), self.critic(hidden)[:, 0]


def main(
    *,
    total_steps: int = 40_000,
    num_envs: int = 32,
    num_steps: int = 24,
    minibatch_size: int = 256,
    epochs: int = 1,
    learning_rate: float = 2e-4,
    gamma: float = 1.0,
    lam: float = 1.0,
    clip: float = 0.2,
    value_coef: float = 0.1,
    seed: int = 0,
) -> None:
    torch.manual_seed(seed)
    envs = gym.make_vec("textenv/MovieReview-v0", num_envs=num_envs)
    agent = Agent()
    envs.unwrapped.attach_policy(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=1e-5)
    obs, _ = envs.reset(seed=seed)
    scores: list[float] = []
    for step in range(0, total_steps, num_envs * num_steps):
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in ("ids", "lengths", "a", "logp", "v", "r", "end")}
        for _ in range(num_steps):
            actions, log_probs, values = agent.act(obs)
            columns["ids"].append(torch.from_numpy(obs["input_ids"]))
            columns["lengths"].append(torch.from_numpy(obs["attention_mask"].sum(axis=1)))
            obs, rewards, ends, _, infos = envs.step(actions)
            row = (
                torch.from_numpy(actions),
                log_probs,
                values,
                torch.from_numpy(rewards).float(),
                torch.from_numpy(ends),
            )
            for name, column in zip(("a", "logp", "v", "r", "end"), row, strict=True):
                columns[name].append(column)
            scores += infos["final_info"]["score"][ends].tolist() if ends.any() else []
        data = {name: torch.stack(column) for name, column in columns.items()}  # (num_steps, num_envs, ...)

        advantages, carried, following = torch.zeros_like(data["r"]), torch.zeros(num_envs), agent.act(obs)[2]
        for t in reversed(range(num_steps)):
            goes_on = 1 - data["end"][t].float()
            delta = data["r"][t] + gamma * following * goes_on - data["v"][t]
            advantages[t] = carried = delta + gamma * lam * goes_on * carried
            following = data["v"][t]
        data["advantage"], data["return"] = advantages, advantages + data["v"]

        flat = {name: column.flatten(0, 1) for name, column in data.items()}
        for _ in range(epochs):
            for rows in torch.randperm(num_envs * num_steps).split(minibatch_size):
                part = {name: column[rows] for name, column in flat.items()}
                log_probs, _, values = agent.evaluate(part["ids"], part["lengths"], part["a"])
                ratio = (log_probs - part["logp"]).exp()
                advantage = (part["advantage"] - part["advantage"].mean()) / (part["advantage"].std() + 1e-8)
                policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
                value_loss = 0.5 * ((values - part["return"]) ** 2).mean()
                optimizer.zero_grad()
                (policy_loss + value_coef * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
                optimizer.step()
        print(f"{step + num_envs * num_steps:,}: score {np.mean(scores[-256:]):.3f}")


if __name__ == "__main__":
    tyro.cli(main)
