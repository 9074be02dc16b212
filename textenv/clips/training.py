"""Deep RL from human preferences: the loop around agent, judges and reward model (Christiano et al. 2017).

Judges see pairs of clips; an ensemble of reward models learns from what they prefer; a Stable-Baselines3 agent learns
from the ensemble's reward and never sees the task's. All three take turns, in rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from textenv.clips.agents import Agent, agent_state, make_agent, pay_anew, restore_agent
from textenv.clips.ensemble import Comparisons, FitReport, RewardEnsemble, RewardLearner
from textenv.clips.measuring import evaluate, make_task, plot_returns
from textenv.clips.oracle import Oracle, Score, true_return
from textenv.clips.queries import Pair, choose_pairs, features_of, labels_due
from textenv.clips.saved import StepReward, save_policy, save_reward
from textenv.clips.segments import Features, Recorder, Trajectory
from textenv.clips.settings import ClipsConfig
from textenv.clips.wrappers import Endless, LearnedReward
from textenv.data.files import locked, to_json, write_json
from textenv.rollouts.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from textenv.rollouts.tracking import RunLogger
from textenv.types import TextEnvError

if TYPE_CHECKING:
    from textenv.clips.people import People

__all__ = ["Judge", "train"]

_PATIENCE = 1.0  # seconds between two looks for judgements


class Judge(Protocol):
    """Someone who says which of two clips is better, and takes their time."""

    def ask(self, pair: Pair, *, number: int, step: int) -> int:
        """Ask about a pair, comparison ``number`` of the run, made at a step of training; return a number to ask by."""
        ...

    def answers(self, asked: Sequence[int]) -> Sequence[float | None]:
        """Return the answers as they stand, for each number that ``ask`` returned.

        1 if the first clip is preferred, 0 if the second, 0.5 for a tie; nan if they could not tell, and None if nobody
        has looked yet.
        """
        ...


def train(
    config: ClipsConfig, *, judge: Judge | None = None, score: Score = true_return, progress: bool = True
) -> dict[str, Any]:
    """Train an agent on preferences, or on the task's own reward, and measure it by the latter.

    A run that was killed goes on from its last round. On a CPU, with a judge who answers at once and a task that is a
    function of its seed and the actions, its numbers are those of a run that was never killed. Where people judge, the
    numbers depend on when they do; the row of a round that was cut off while it waited has no true return.

    Args:
        config: Settings.
        judge: Who judges; None for the annotators of the store, or a synthetic judge where the settings name none.
        score: What the synthetic judge goes by.
        progress: Show a progress bar.

    Returns:
        What ``results.json`` holds: the trained policy's true return, labels, seconds.

    Raises:
        TextEnvError: The task or the agent cannot be made, or the folder holds a run with other settings.
    """
    with locked(config.out):
        return _started(config, judge, score, progress=progress)


def _started(config: ClipsConfig, judge: Judge | None, score: Score, *, progress: bool) -> dict[str, Any]:
    """Check the folder, and train with whoever judges."""
    if (config.out / "results.json").exists():
        raise TextEnvError(f"{config.out} holds a finished run; give this one another folder.")
    described = _described(config)
    if (config.out / "config.json").exists():
        earlier = json.loads((config.out / "config.json").read_text("utf-8"))
        changed = [
            f"{name} was {earlier.get(name)!r}, is {now!r}"
            for name, now in described.items()
            if earlier.get(name) != now
        ]
        if changed:
            raise TextEnvError(
                f"{config.out} holds an unfinished run with other settings: {', '.join(changed)}. Start it again with "
                "those it was started with, or give this one another folder."
            )
    torch.set_num_threads(config.threads)
    with contextlib.ExitStack() as stack:
        people = None
        if judge is None and config.store is not None and config.reward == "learned":
            from textenv.clips.people import People  # noqa: PLC0415 (draws clips, which needs Pillow)

            judge = people = People(config.store, config.out, config.task, config.task_settings)
            stack.callback(people.close)
        return _train(config, _Run(config, judge, score), described, people, progress=progress)


def _train(
    config: ClipsConfig, run: _Run, described: Mapping[str, Any], people: People | None, *, progress: bool
) -> dict[str, Any]:
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "config.json", described)
    began = time.perf_counter()
    resumed = run.resume()
    with RunLogger(
        config.out,
        total_steps=run.total_steps,
        progress=progress,
        resume_from=run.agent.num_timesteps if resumed else -1,
        unit="steps",
    ) as logger:
        run.learn(logger)
    save_policy(config.out / "policy", run.agent, config)
    if config.reward == "learned":
        save_reward(config.out / "reward", run.learner.ensemble)
    if people is not None:
        people.record(config.out / "reward", config.out / "policy")
    returns = evaluate(run.agent, config.task, config.task_settings, config.eval_episodes)
    results = {
        "true_return": float(np.mean(returns)),
        "true_return_std": float(np.std(returns)),
        "returns": returns,
        "steps": run.agent.num_timesteps,
        "labels_asked": len(run.comparisons),
        "labels_judged": len(run.comparisons.judged()),
        "seconds": time.perf_counter() - began,
        "resumed": resumed,
    }
    runs = {config.reward: [config.out]} | ({config.against.name: [config.against]} if config.against else {})
    plot_returns(runs, config.out / "returns.png")
    write_json(config.out / "results.json", results)  # last: it says "finished"
    return results


def _described(config: ClipsConfig) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(to_json(dataclasses.asdict(config), default=str))
    return {name: value for name, value in described.items() if name not in ("out", "against", "eval_episodes")}


class _Run:
    """Everything of a run that changes while it goes on."""

    def __init__(self, config: ClipsConfig, judge: Judge | None, score: Score) -> None:
        self.config, self.judge = config, judge
        self.oracle = Oracle(
            score,
            error_rate=config.oracle_error_rate,
            temperature=config.oracle_temperature,
            seed=config.seed,
        )
        self.asked: list[int] = []  # what the judge called the comparisons
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        task = make_task(config.task, config.task_settings)
        limit = config.episode_steps or (task.spec and task.spec.max_episode_steps)
        if not limit:
            raise TextEnvError(f"{config.task} has no time limit; give the length of an episode with episode_steps.")
        if limit < config.clip_steps:
            raise TextEnvError(f"clip_steps={config.clip_steps}: expected at most the {limit} steps of an episode.")
        self.features = Features(task.observation_space, task.action_space)
        ensemble = RewardEnsemble(self.features.size, members=config.members, hidden=config.hidden, seed=config.seed)
        self.learner = RewardLearner(ensemble, learning_rate=config.learning_rate, error_rate=config.error_rate)
        self.reward = StepReward(ensemble, self.features)
        self.comparisons = Comparisons.none(config.clip_steps, self.features.size, config.members)
        self.recorder = Recorder(task, config.seed)
        self.endless = Endless(self.recorder, limit)
        self.learned = LearnedReward(self.endless, self.reward)
        env: gym.Env[Any, Any] = self.endless if config.reward == "task" else self.learned
        self.agent: Agent = make_agent(
            config.agent,
            env,
            seed=config.seed,
            buffer_size=config.total_steps,
            settings=config.agent_settings,
        )
        rollout = getattr(self.agent, "n_steps", 1)  # an on-policy agent stops at the end of a rollout only
        self.round_steps = math.ceil(max(config.total_steps / config.rounds, limit) / rollout) * rollout
        self.total_steps = math.ceil(config.total_steps / rollout) * rollout
        self.last_round = (self.total_steps - 1) // self.round_steps * self.round_steps
        self.next_round = 0
        self.began = time.perf_counter()
        self.logger: RunLogger | None = None

    def learn(self, logger: RunLogger) -> None:
        """Train from where the run stands to its end."""
        self.logger = logger
        self._read_answers()
        left = self.total_steps - self.agent.num_timesteps
        if left > 0:
            self.agent.learn(left, callback=_Rounds(self), reset_num_timesteps=False)
        self._log(self.recorder.take(), None)

    def round(self) -> None:
        """Ask, read the answers, let the reward model learn, pay the agent's memory anew; write everything down."""
        config, step = self.config, self.agent.num_timesteps
        trajectories = self.recorder.take() if step else self._random_trajectories()
        report = None
        if config.reward == "learned":
            due = self._due(step)
            if step == 0 or any(len(trajectory) >= config.clip_steps for trajectory in trajectories):
                self._ask(trajectories, due - len(self.comparisons), step)  # else next time
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
        """Act at random for as many steps as half the first clips have, so that a step is in two clips on average."""
        if self.config.reward == "task":
            return []
        state, left = self.recorder.state(), self.endless.left  # of the agent's first episode, which is not touched
        actions = self.recorder.action_space
        actions.seed(self.config.seed)
        self.endless.reset(seed=self.config.seed)
        for _ in range(max(self.endless.steps, self._due(0) * self.config.clip_steps)):
            *_, cut_off, _ = self.endless.step(actions.sample())
            if cut_off:
                self.endless.reset()
        self.endless.reset()  # ends the last episode
        trajectories = self.recorder.take()
        self.endless.returns.clear()
        self._restore_env({"recorder": state, "left": left, "true_return": 0.0})
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
            self._checkpoint()  # or a run killed while it waits would ask anew

    def _read_answers(self) -> int:
        """Return how many comparisons nobody has looked at yet."""
        if self.judge is None:
            return 0
        answers = self.judge.answers(self.asked)
        self.comparisons.preferred = torch.tensor([math.nan if answer is None else answer for answer in answers])
        return sum(answer is None for answer in answers)

    def _wait(self, due: int) -> None:
        """Wait until judgements enough are there for training to go on."""
        told = False
        while (missing := self._read_answers()) > self.config.lag * due or not len(self.comparisons.judged()):
            if not missing:
                raise TextEnvError(
                    f"None of {len(self.comparisons)} pairs of clips could be told apart. Longer clips (clip_steps) "
                    "show more."
                )
            if not told:
                told = True
                print(f"Training waits for judgements of clips: {missing} of {due} are missing.", flush=True)
            time.sleep(_PATIENCE)

    def _fit(self) -> FitReport:
        ensemble, every = self.learner.ensemble, self.comparisons.clips.flatten(0, 2)
        ensemble.read_inputs(every)
        report = self.learner.fit(self.comparisons.judged(), self.config.updates, self.generator)
        ensemble.normalise(every, self.config.reward_std)
        pay_anew(self.agent, self.reward)
        return report

    def _log(self, trajectories: Sequence[Trajectory], report: FitReport | None) -> None:
        metrics: dict[str, float] = {}
        if self.endless.returns:
            metrics["rollout/true_return"] = float(np.mean(self.endless.returns))
            self.endless.returns.clear()
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
        ensemble, optimizer = self.learner.ensemble, self.learner.optimizer
        tensors |= {f"ensemble/{name}": value.detach() for name, value in ensemble.state_dict().items()}
        for index, parameter in enumerate(ensemble.parameters()):
            for name, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
        tensors |= {f"comparisons/{field.name}": getattr(self.comparisons, field.name) for field in _COMPARISON_FIELDS}
        tensors |= {"l2": self.learner.l2, "random/clips": self.generator.get_state()}
        env = {
            "recorder": self.recorder.state(),
            "left": self.endless.left,
            "true_return": self.endless.true_return,
        }
        state = {"agent": agent, "env": env, "rng": self.rng.bit_generator.state, "next_round": self.next_round}
        state["asked"] = self.asked
        copies = {name: value.contiguous().clone() for name, value in tensors.items()}
        write_checkpoint(self.config.out / "checkpoints", self.agent.num_timesteps, copies, state)

    def resume(self) -> bool:
        """Go back to the last checkpoint; return whether there is one."""
        path = latest_checkpoint(self.config.out / "checkpoints")
        if path is None:
            return False
        tensors, state = read_checkpoint(path)
        ensemble = self.learner.ensemble
        try:
            ensemble.load_state_dict({name: tensors[f"ensemble/{name}"] for name in ensemble.state_dict()})
            for field in _COMPARISON_FIELDS:
                setattr(self.comparisons, field.name, tensors[f"comparisons/{field.name}"])
            self.learner.l2 = tensors["l2"]
            self.generator.set_state(tensors["random/clips"])
        except (KeyError, RuntimeError) as error:
            raise TextEnvError(
                f"Checkpoint {path} does not fit: {error}. Delete it to start from the beginning."
            ) from error
        for index, parameter in enumerate(ensemble.parameters()):
            prefix = f"optimizer/{index}/"
            moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if moments:
                self.learner.optimizer.state[parameter] = moments
        self.rng.bit_generator.state = state["rng"]
        self.next_round, self.asked = state["next_round"], state["asked"]
        self._restore_env(state["env"])
        restore_agent(self.agent, tensors, state["agent"])  # last: it sets the global generators
        return True

    def _restore_env(self, state: Mapping[str, Any]) -> None:
        self.learned.observation = self.recorder.restore(state["recorder"])
        self.endless.left, self.endless.true_return = state["left"], state["true_return"]


_COMPARISON_FIELDS = dataclasses.fields(Comparisons)


class _Rounds(BaseCallback):
    """Does a round between two rollouts, when agent, memory and task stand still."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._run.next_round:
            self._run.round()

    def _on_step(self) -> bool:
        return True
