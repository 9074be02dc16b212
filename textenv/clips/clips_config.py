"""Settings of ``textenv clips train``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from textenv.data.files import to_json
from textenv.data.outputs import OutputFile, OutputFolder
from textenv.types import TextEnvError
from textenv.validation import Count, LearningRate, NonNegative, Positive, Probability, Seed, Threads, validate

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
    """Train a Stable-Baselines3 agent on preferences between clips of its behavior; an interrupted run continues.

    Attributes:
        out: Folder of the run: metrics, checkpoints, the policy, the reward model, the learning curve.
        task: Registered id of a Gymnasium task with a Box of observations, and a Box or Discrete of actions.
        agent: Algorithm of Stable-Baselines3.
        labels: Comparisons to ask for in all.
        reward: "learned", or "task" for the task's own reward, to compare with.
        total_steps: Steps of the agent.
        store: File of a feedback store, made if it is missing, whose annotators judge on the page of "textenv label".
            That command needs --clip-folders with the run's folder if the run is not in the folder of the store. None
            for a synthetic judge, who prefers the clip with the higher true return.
        clip_steps: Steps of a clip.
        rounds: Rounds, in each of which new comparisons are asked for and the reward models are trained further; there
            are fewer if a round would be shorter than an episode.
        initial_share: Share of the comparisons that is asked for before training, on clips of random actions.
        anneal_share: After this share of the steps, comparisons are asked for half as often as at first.
        query: Which pairs are asked for: those on which the reward models disagree, or random ones.
        candidates: Random pairs for each pair that is asked for, from which disagreement chooses.
        lag: Share of the comparisons due that may be missing without training waiting for people.
        members: Reward models in the ensemble.
        hidden: Width of their two hidden layers.
        updates: Minibatches of 64 comparisons that they are trained on in a round.
        learning_rate: Learning rate of the reward models.
        error_rate: Share of the judgements that the reward models assume to be random.
        reward_std: Standard deviation of the learned reward, over the steps of all clips compared.
        oracle_error_rate: Share of the synthetic judge's judgements that are made at random.
        oracle_temperature: Temperature of the synthetic judge's choices, in units of true return; 0 always prefers the
            better clip.
        episode_steps: Length of every episode in training; None for the task's time limit.
        task_settings: Further keywords of gymnasium.make.
        agent_settings: Further keywords of the agent's class.
        against: Folder of another run, whose learning curve is drawn beside this one's.
        eval_episodes: Episodes, by the task's own rules and reward, that the trained policy is measured on.
        seed: Seed of everything random.
        threads: Threads that torch computes with; networks this small are fastest with one.
    """

    out: OutputFolder
    task: str = "Pendulum-v1"
    agent: Literal["a2c", "ddpg", "dqn", "ppo", "sac", "td3"] = "sac"
    labels: Count = 700
    reward: Literal["learned", "task"] = "learned"
    total_steps: Count = 15_000
    store: OutputFile | None = None
    clip_steps: Count = 25
    rounds: Count = 30
    initial_share: Probability = 0.25
    anneal_share: Positive = 0.25
    query: Literal["disagreement", "random"] = "disagreement"
    candidates: Count = 10
    lag: Probability = 0.5
    members: Count = 3
    hidden: Count = 64
    updates: Count = 300
    learning_rate: LearningRate = 1e-3
    error_rate: Probability = 0.1
    reward_std: Positive = 1.0
    oracle_error_rate: Probability = 0.0
    oracle_temperature: NonNegative = 0.0
    episode_steps: Count | None = None
    task_settings: JSONObject = field(default_factory=dict)
    agent_settings: JSONObject = field(default_factory=dict)
    against: Path | None = None
    eval_episodes: Count = 20
    seed: Seed = 0
    threads: Threads = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextEnvError: A value is not what is expected, or two do not go together.
        """
        validate(self)
        if self.episode_steps is not None and self.episode_steps < self.clip_steps:
            raise TextEnvError(
                f"episode_steps={self.episode_steps}: expected at least the {self.clip_steps} steps of a clip."
            )
        if self.error_rate == 1:
            raise TextEnvError(
                "error_rate=1: expected less, since nothing can be learned from judgements that are all random."
            )
        if self.store is not None and (self.reward == "task" or self.oracle_error_rate or self.oracle_temperature):
            raise TextEnvError(
                f"store={str(self.store)!r} asks people, which goes neither with reward='task' nor with settings of a "
                "synthetic judge."
            )
        if round(self.labels * self.initial_share) < 1:
            raise TextEnvError(
                f"labels={self.labels}, initial_share={self.initial_share}: expected at least one comparison before "
                "training."
            )
