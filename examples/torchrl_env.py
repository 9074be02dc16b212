"""TorchRL's GymEnv around a text environment of several turns: three side by side, and with pictures.

pip install 'textenv[clients]' && python examples/torchrl_env.py
"""

from __future__ import annotations

from typing import Any

import tyro
from torchrl.envs.libs.gym import GymEnv
from torchrl.envs.utils import check_env_specs

import textenv  # noqa: F401 (registers the ids)


def main(max_new_tokens: int = 6, steps: int = 24, seed: int = 0) -> None:
    world: dict[str, Any] = {"world": "guess_number", "max_turns": 3, "max_new_tokens": max_new_tokens}
    settings = {"categorical_action_encoding": True, "max_tokens": 96, **world}
    env = GymEnv("textenv/Text-v0", num_envs=3, info="fixed", **settings)  # whose infos are tensors of the rollout
    env.set_seed(seed)
    check_env_specs(env)
    rollout = env.rollout(steps, break_when_any_done=False)
    print(rollout)
    ends = rollout["next", "terminated"].flatten()
    env.close()
    drawn = GymEnv("textenv/Text-v0", from_pixels=True, pixels_only=False, **settings)
    check_env_specs(drawn)
    print(f"pictures of shape {tuple(drawn.rollout(2)['pixels'].shape)}")
    print(f"{int(ends.sum())} episodes in {steps} steps, mean reward {float(rollout['next', 'reward'].mean()):.3f}")


if __name__ == "__main__":
    tyro.cli(main)
