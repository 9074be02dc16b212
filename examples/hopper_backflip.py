"""A hopper learns backflips from comparisons of clips: a synthetic judge's, or a person's with --store.

python examples/hopper_backflip.py --out runs/backflip
python examples/hopper_backflip.py --out runs/backflip --store runs/backflip.db    # and: textenv label --store ...

The task's own reward, which only the synthetic judge and the evaluation see, is the torso's backward rotation, weighted
by its height: lying on the back earns nothing. Needs mujoco (pip install 'textenv[clips]'); half an hour of one core.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro

from textenv.clips.clips_config import ClipsConfig
from textenv.clips.measuring import plot_returns
from textenv.clips.media import Player, write_animation
from textenv.clips.saved import load_policy
from textenv.clips.training import train

TASK = "textenv/HopperBackflip-v0"
HEIGHT, SPIN = 0, 7  # in Hopper-v5's observation: meters, and radians a second, positive forward


class Backflip(gym.Wrapper[Any, Any, Any, Any]):
    """Rewards turning backward high above the ground: 1 is a turn a second at a height of one meter."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the hopper."""
        observation, _, terminated, truncated, info = self.env.step(action)
        reward = -observation[SPIN] / (2 * math.pi) * max(observation[HEIGHT], 0.0)
        return observation, float(reward), terminated, truncated, info


def make(**keywords: Any) -> gym.Env[Any, Any]:
    return Backflip(gym.make("Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=-1, **keywords))


gym.register(TASK, make, max_episode_steps=500)


def film(policy: Path, path: Path, seed: int = 0) -> float:
    """Write one episode as an animated picture; return how many times the torso turned backward in it."""
    agent = load_policy(policy)
    camera = {"type": 1, "trackbodyid": 1, "distance": 3.5, "elevation": -10.0}  # follows the torso
    player = Player(TASK, {"width": 200, "height": 200, "camera_id": -1, "default_camera_config": camera})
    observation, _ = player.env.reset(seed=seed)
    begin, frames, steps, done = observation[1], [], 0, False
    while not done:
        if steps % player.every == 0:
            frames.append(player.picture())
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = player.env.step(action)
        steps, done = steps + 1, terminated or truncated
    write_animation(frames, path, frames_per_second=player.frames_per_second)
    player.close()
    return float(begin - observation[1]) / (2 * math.pi)


def main(  # noqa: PLR0917 (a command line's)
    out: Path = Path("runs/backflip"),
    labels: int = 900,
    total_steps: int = 150_000,
    reward: Literal["learned", "task"] = "learned",
    store: Path | None = None,
    seed: int = 0,
) -> None:
    config = ClipsConfig(
        out=out, task=TASK, agent="sac", labels=labels, reward=reward, total_steps=total_steps, store=store,
        seed=seed, clip_steps=60, eval_episodes=5,
        agent_settings={
            "learning_rate": 1e-3, "batch_size": 128, "train_freq": 4, "gradient_steps": 2, "learning_starts": 2000,
            "policy_kwargs": {"net_arch": [128, 128]},
        },
    )  # fmt: skip
    if not (out / "results.json").exists():
        train(config)
    plot_returns({f"{labels} comparisons" if reward == "learned" else "true reward": [out]}, out / "returns.png")
    turns = film(out / "policy", out / "backflip.webp")
    print(f"{turns:.2f} turns backward in the 4 seconds of {out / 'backflip.webp'}")


if __name__ == "__main__":
    tyro.cli(main)
