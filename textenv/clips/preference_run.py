"""A run that learns from preferences: its agent, reward models and comparisons, and what happens in a round."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from textenv.clips.clips_config import ClipsConfig
from textenv.clips.comparisons import Comparisons
from textenv.clips.ensemble import RewardEnsemble
from textenv.clips.measuring import make_task
from textenv.clips.oracle import Oracle, Score
from textenv.clips.queries import Pair, choose_pairs, features_of, labels_due
from textenv.clips.reward_learner import FitReport, RewardLearner
from textenv.clips.saved import StepReward
from textenv.clips.sb3_agents import Agent, agent_state, make_agent, relabel_rewards, restore_agent
from textenv.clips.segments import Features, Recorder, Trajectory
from textenv.clips.wrappers import FixedLength, LearnedReward
from textenv.rollouts.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from textenv.rollouts.tracking import RunLogger
from textenv.types import TextEnvError

__all__ = ["ClipJudge", "PreferenceRun"]

_POLL_SECONDS = 1.0  # between two looks for judgements


class ClipJudge(Protocol):
    """Somebody who says which of two clips is better, not necessarily at once."""

    def ask(self, pair: Pair, *, number: int, step: int) -> int:
        """Ask which clip of a pair is better, and return the number under which ``answers`` is asked for the answer.

        Args:
            pair: The two clips.
            number: Number of the comparison in the run, from 0.
            step: Step of training at which it is asked for.
        """
        ...

    def answers(self, asked: Sequence[int]) -> Sequence[float | None]:
        """Return the present answers, one for each number that ``ask`` returned.

        1 if the first clip is preferred, 0 if the second, 0.5 for a tie; nan if the judge could not tell, and None if
        there is no answer yet.
        """
        ...


class PreferenceRun:
    """Everything in a run that changes during training.

    Attributes:
        config: The settings.
        agent: The agent that is trained.
        learner: The reward models, and their optimizer.
        comparisons: Pairs of clips, and which of the two is preferred.
        total_steps: Steps of the agent, rounded up to whole rollouts.
    """

    def __init__(self, config: ClipsConfig, judge: ClipJudge | None, score: Score) -> None:
        """Make the task, the agent and the reward models.

        Args:
            config: The settings.
            judge: Who judges the clips; None for the synthetic judge.
            score: The score of a clip by which the synthetic judge prefers one of two.

        Raises:
            TextEnvError: The task or the agent cannot be made, or an episode is shorter than a clip.
        """
        self.config, self.judge = config, judge
        self.oracle = Oracle(
            score,
            error_rate=config.oracle_error_rate,
            temperature=config.oracle_temperature,
            seed=config.seed,
        )
        self.asked: list[int] = []  # the judge's numbers of the comparisons
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        task = make_task(config.task, config.task_settings)
        limit = _episode_steps(config, task)
        self.features = Features(task.observation_space, task.action_space)
        ensemble = RewardEnsemble(self.features.size, members=config.members, hidden=config.hidden, seed=config.seed)
        self.learner = RewardLearner(ensemble, learning_rate=config.learning_rate, error_rate=config.error_rate)
        self.reward = StepReward(ensemble, self.features)
        self.comparisons = Comparisons.none(config.clip_steps, self.features.size, config.members)
        self.recorder = Recorder(task, config.seed)
        self.fixed_length = FixedLength(self.recorder, limit)
        self.learned = LearnedReward(self.fixed_length, self.reward)
        env: gym.Env[Any, Any] = self.fixed_length if config.reward == "task" else self.learned
        self.agent: Agent = make_agent(
            config.agent,
            env,
            seed=config.seed,
            buffer_size=config.total_steps,
            settings=config.agent_settings,
        )
        rollout = getattr(self.agent, "n_steps", 1)  # an on-policy agent stops only at the end of a rollout
        self.round_steps = math.ceil(max(config.total_steps / config.rounds, limit) / rollout) * rollout
        self.total_steps = math.ceil(config.total_steps / rollout) * rollout
        self.last_round = (self.total_steps - 1) // self.round_steps * self.round_steps
        self.next_round = 0
        self.began = time.perf_counter()
        self.logger: RunLogger | None = None

    def learn(self, logger: RunLogger) -> None:
        """Train from the present state of the run to its end."""
        self.logger = logger
        self._read_answers()
        left = self.total_steps - self.agent.num_timesteps
        if left > 0:
            self.agent.learn(left, callback=_Rounds(self), reset_num_timesteps=False)
        self._log(self.recorder.take(), None)

    def round(self) -> None:
        """Ask for comparisons, fit the reward models to the answers, relabel the agent's memory, write a checkpoint."""
        config, step = self.config, self.agent.num_timesteps
        trajectories = self.recorder.take() if step else self._random_trajectories()
        report = None
        if config.reward == "learned":
            due = self._due(step)
            if step == 0 or any(len(trajectory) >= config.clip_steps for trajectory in trajectories):
                self._ask(trajectories, due - len(self.comparisons), step)  # otherwise they are asked for next round
            self._wait(due)
            report = self._fit()
        self._log(trajectories, report)
        self.next_round = step - step % self.round_steps + self.round_steps
        self._checkpoint()

    def _due(self, step: int) -> int:
        return labels_due(
            step,
            labels=self.config.labels,
            initial=round(self.config.labels * self.config.initial_share),
            last_step=self.last_round,
            anneal_steps=self.config.anneal_share * self.total_steps,
        )

    def _random_trajectories(self) -> list[Trajectory]:
        """Act at random for half as many steps as the first clips have together: a step is in two clips on average."""
        if self.config.reward == "task":
            return []
        before = {**self._task_state(), "true_return": 0.0}  # the agent's first episode continues from here
        actions = self.recorder.action_space
        actions.seed(self.config.seed)
        self.fixed_length.reset(seed=self.config.seed)
        for _ in range(max(self.fixed_length.steps, self._due(0) * self.config.clip_steps)):
            *_, cut_off, _ = self.fixed_length.step(actions.sample())
            if cut_off:
                self.fixed_length.reset()
        self.fixed_length.reset()  # ends the last episode
        trajectories = self.recorder.take()
        self.fixed_length.returns.clear()
        self._restore_task(before)
        return trajectories

    def _ask(self, trajectories: Sequence[Trajectory], count: int, step: int) -> None:
        if count <= 0:
            return
        pairs = choose_pairs(
            trajectories,
            count,
            self.config.clip_steps,
            features=self.features,
            ensemble=self.learner.ensemble if step and self.config.query == "disagreement" else None,
            candidates=self.config.candidates,
            rng=self.rng,
        )
        first = len(self.comparisons)
        self.comparisons.add(features_of(pairs, self.features), self.generator)
        for number, pair in enumerate(pairs, start=first):
            if self.judge is None:
                self.comparisons.preferred[number] = self.oracle.prefer(number, *pair)
            else:
                self.asked.append(self.judge.ask(pair, number=number, step=step))
        if self.judge is not None:
            self._checkpoint()  # otherwise a run that is killed while it waits would ask for other comparisons

    def _read_answers(self) -> int:
        """Read the judge's answers; return how many comparisons have none yet."""
        if self.judge is None:
            return 0
        answers = self.judge.answers(self.asked)
        self.comparisons.preferred = torch.tensor([math.nan if answer is None else answer for answer in answers])
        return sum(answer is None for answer in answers)

    def _wait(self, due: int) -> None:
        """Wait until there are enough judgements for training to continue.

        Raises:
            TextEnvError: All comparisons were judged, and none of them has a preference.
        """
        announced = False
        while (missing := self._read_answers()) > self.config.lag * due or not len(self.comparisons.judged()):
            if not missing:
                raise TextEnvError(
                    f"None of {len(self.comparisons)} pairs of clips could be told apart. Longer clips (clip_steps) "
                    "show more."
                )
            if not announced:
                announced = True
                print(f"Training waits for judgements of clips: {missing} of {due} are missing.", flush=True)
            time.sleep(_POLL_SECONDS)

    def _fit(self) -> FitReport:
        ensemble, every = self.learner.ensemble, self.comparisons.clips.flatten(0, 2)
        ensemble.fit_input_scale(every)
        report = self.learner.fit(self.comparisons.judged(), self.config.updates, self.generator)
        ensemble.normalize(every, self.config.reward_std)
        relabel_rewards(self.agent, self.reward)
        return report

    def _log(self, trajectories: Sequence[Trajectory], report: FitReport | None) -> None:
        metrics: dict[str, float] = {}
        if self.fixed_length.returns:
            metrics["rollout/true_return"] = float(np.mean(self.fixed_length.returns))
            self.fixed_length.returns.clear()
        if report is not None:
            metrics |= {"labels/asked": len(self.comparisons), "labels/judged": len(self.comparisons.judged())}
            metrics |= {f"reward/{name}": value for name, value in dataclasses.asdict(report).items()}
            if trajectories:
                metrics["reward/correlation"] = self._correlation(trajectories)
        metrics["time/seconds"] = time.perf_counter() - self.began
        assert self.logger is not None
        self.logger.log(self.agent.num_timesteps, metrics)

    def _correlation(self, trajectories: Sequence[Trajectory]) -> float:
        """Return Pearson's correlation of learned and true rewards on these steps; nan if one is constant."""
        true = np.concatenate([trajectory.rewards for trajectory in trajectories])
        learned = np.concatenate(
            [self.reward(trajectory.observations, trajectory.actions) for trajectory in trajectories]
        )
        if np.ptp(true) == 0 or np.ptp(learned) == 0:
            return math.nan
        return float(np.corrcoef(true, learned)[0, 1])

    def _checkpoint(self) -> None:
        tensors, agent = agent_state(self.agent)
        tensors |= self.learner.tensors() | self.comparisons.tensors() | {"random/clips": self.generator.get_state()}
        state = {
            "agent": agent,
            "env": self._task_state(),
            "rng": self.rng.bit_generator.state,
            "next_round": self.next_round,
            "asked": self.asked,
        }
        copies = {name: value.contiguous().clone() for name, value in tensors.items()}
        write_checkpoint(self.config.out / "checkpoints", self.agent.num_timesteps, copies, state)

    def resume(self) -> bool:
        """Go back to the last checkpoint; return whether there is one.

        Raises:
            TextEnvError: The checkpoint does not fit the settings.
        """
        path = latest_checkpoint(self.config.out / "checkpoints")
        if path is None:
            return False
        tensors, state = read_checkpoint(path)
        try:
            self.learner.restore(tensors)
            self.comparisons.restore(tensors)
            self.generator.set_state(tensors["random/clips"])
        except (KeyError, RuntimeError) as error:
            raise TextEnvError(
                f"Checkpoint {path} does not fit: {error}. Delete it to start from the beginning."
            ) from error
        self.rng.bit_generator.state = state["rng"]
        self.next_round, self.asked = state["next_round"], state["asked"]
        self._restore_task(state["env"])
        restore_agent(self.agent, tensors, state["agent"])  # last: it sets the global random number generators
        return True

    def _task_state(self) -> dict[str, Any]:
        """Return where the task stands, as JSON values."""
        return {
            "recorder": self.recorder.state(),
            "left": self.fixed_length.left,
            "true_return": self.fixed_length.true_return,
        }

    def _restore_task(self, state: Mapping[str, Any]) -> None:
        self.learned.observation = self.recorder.restore(state["recorder"])
        self.fixed_length.left, self.fixed_length.true_return = state["left"], state["true_return"]


def _episode_steps(config: ClipsConfig, task: gym.Env[Any, Any]) -> int:
    limit = config.episode_steps or (task.spec and task.spec.max_episode_steps)
    if not limit:
        raise TextEnvError(f"{config.task} has no time limit; give the length of an episode with episode_steps.")
    if limit < config.clip_steps:
        raise TextEnvError(f"clip_steps={config.clip_steps}: expected at most the {limit} steps of an episode.")
    return limit


class _Rounds(BaseCallback):
    """Starts a round between two rollouts, while the agent, its memory and the task do not change."""

    def __init__(self, run: PreferenceRun) -> None:
        super().__init__()
        self._run = run

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._run.next_round:
            self._run.round()

    def _on_step(self) -> bool:
        return True
