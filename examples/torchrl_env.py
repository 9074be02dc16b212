"""TorchRL's GymEnv around a text environment: its specs hold, and a rollout is a TensorDict.

pip install 'textenv[clients]' && python examples/torchrl_env.py
"""

from __future__ import annotations

import tyro
from torchrl.envs.libs.gym import GymEnv
from torchrl.envs.utils import check_env_specs

import textenv  # noqa: F401 (registers the ids)


def main(max_new_tokens: int = 6, steps: int = 24, seed: int = 0) -> None:
    env = GymEnv("textenv/MovieReview-v0", categorical_action_encoding=True, max_new_tokens=max_new_tokens)
    env.set_seed(seed)
    check_env_specs(env)
    rollout = env.rollout(steps, break_when_any_done=False)
    print(rollout)
    ends = rollout["next", "terminated"].flatten()
    print(f"{int(ends.sum())} episodes in {steps} steps, mean reward {float(rollout['next', 'reward'].mean()):.3f}")


if __name__ == "__main__":
    tyro.cli(main)
