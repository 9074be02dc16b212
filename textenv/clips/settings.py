"""Settings of ``textenv clips train``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from textenv.data.files import to_json
from textenv.types import TextEnvError

__all__ = ["ClipsConfig"]


def _mapping(arguments: list[str]) -> Mapping[str, Any]:
    value = json.loads(arguments[0])
    if not isinstance(value, dict):
        raise ValueError(f"{arguments[0]} is no JSON object.")
    return value


JSONObject = Annotated[
    Mapping[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_mapping,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [to_json(dict(value))],
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsConfig:
    """Train a Stable-Baselines3 agent on preferences between clips of what it does; a run that was cut off goes on.

    Attributes:
        out: Folder of the run: metrics, checkpoints, the policy, the reward model, the learning curve.
        task: Registered id of any Gymnasium task with a Box of observations, and a Box or Discrete of actions.
        agent: Algorithm of Stable-Baselines3.
        labels: Comparisons to ask for in all.
        reward: "learned", or "task" for the task's own reward, to compare with.
        total_steps: Steps of the agent.
        store: File of a feedback store, made if it is missing: its annotators judge, on the page of "textenv label",
            which is told of the run's folder (--clip-folders) where that does not lie in the store's. None has a
            synthetic judge who goes by the task's own reward.
        clip_steps: Steps of a clip.
        rounds: How often new comparisons are asked for and the reward model goes on learning; fewer if a round would be
            shorter than an episode.
        initial_share: Share of the comparisons that is asked for before training, on clips of random actions.
        anneal_share: After this share of the steps, comparisons are asked for half as often as at first.
        query: Which pairs are asked for: those on which the reward models disagree, or random ones.
        candidates: Random pairs for each that is asked for, from which disagreement chooses.
        lag: Share of the comparisons due that may still be missing before training waits for people.
        members: Reward models in the ensemble.
        hidden: Width of their two hidden layers.
        updates: Minibatches of 64 comparisons that they learn from in a round.
        learning_rate: Of the reward models.
        error_rate: Share of judgements that the reward models take to be made at random.
        reward_std: Standard deviation of the learned reward, over the steps of all clips compared.
        oracle_error_rate: Share of the synthetic judge's judgements that are made at random.
        oracle_temperature: Of the synthetic judge, in units of true return; 0 always prefers the better clip.
        episode_steps: Length of every episode in training; None for the task's time limit.
        task_settings: Further keywords of gymnasium.make.
        agent_settings: Further keywords of the agent's class.
        against: Folder of another run, drawn beside this one's learning curve.
        eval_episodes: Episodes, by the task's own rules and reward, that the trained policy is measured on.
        seed: Seeds everything.
        threads: Threads that torch computes with; networks this small are fastest with one.
    """

    out: Path
    task: str = "Pendulum-v1"
    agent: Literal["a2c", "ddpg", "dqn", "ppo", "sac", "td3"] = "sac"
    labels: int = 700
    reward: Literal["learned", "task"] = "learned"
    total_steps: int = 15_000
    store: Path | None = None
    clip_steps: int = 25
    rounds: int = 30
    initial_share: float = 0.25
    anneal_share: float = 0.25
    query: Literal["disagreement", "random"] = "disagreement"
    candidates: int = 10
    lag: float = 0.5
    members: int = 3
    hidden: int = 64
    updates: int = 300
    learning_rate: float = 1e-3
    error_rate: float = 0.1
    reward_std: float = 1.0
    oracle_error_rate: float = 0.0
    oracle_temperature: float = 0.0
    episode_steps: int | None = None
    task_settings: JSONObject = field(default_factory=dict)
    agent_settings: JSONObject = field(default_factory=dict)
    against: Path | None = None
    eval_episodes: int = 20
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in (
            "labels", "total_steps", "clip_steps", "rounds", "candidates", "members", "hidden", "updates",
            "eval_episodes", "threads",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a whole number of at least 1.")
        if self.episode_steps is not None and self.episode_steps < self.clip_steps:
            raise TextEnvError(
                f"episode_steps={self.episode_steps}: expected at least the {self.clip_steps} steps of a clip."
            )
        for name in ("initial_share", "lag", "error_rate", "oracle_error_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a share from 0 to 1.")
        if self.error_rate == 1:
            raise TextEnvError("error_rate=1: from judgements that are all random nothing can be learnt.")
        for name in ("anneal_share", "learning_rate", "reward_std"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a number above 0.")
        if self.store is not None and (self.reward == "task" or self.oracle_error_rate or self.oracle_temperature):
            raise TextEnvError(
                f"store={str(self.store)!r} asks people, which goes neither with reward='task' nor with settings of a "
                "synthetic judge."
            )
        if self.seed < 0:
            raise TextEnvError(f"seed={self.seed}: expected a whole number of at least 0.")
        if round(self.labels * self.initial_share) < 1:
            raise TextEnvError(
                f"labels={self.labels}, initial_share={self.initial_share}: expected at least one comparison before "
                "training."
            )
