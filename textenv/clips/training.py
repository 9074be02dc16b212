"""Deep RL from human preferences: the loop around agent, judges and reward model (Christiano et al. 2017).

Judges see pairs of clips; an ensemble of reward models learns from what they prefer; a Stable-Baselines3 agent learns
from the ensemble's reward and never sees the task's. All three take turns, in rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import safetensors.torch
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError
from stable_baselines3.common.callbacks import BaseCallback

from textenv.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from textenv.clips.agents import Agent, agent_state, make_agent, pay_anew, restore_agent
from textenv.clips.ensemble import Comparisons, FitReport, RewardEnsemble, RewardLearner
from textenv.clips.oracle import Oracle, Score, true_return
from textenv.clips.queries import Pair, choose_pairs, features_of, labels_due
from textenv.clips.segments import Features, Recorder, Trajectory
from textenv.clips.settings import ClipsConfig
from textenv.clips.wrappers import Endless, LearnedReward
from textenv.files import write_atomically
from textenv.tracking import RunLogger, read_metrics
from textenv.types import FloatArray, TextEnvError

__all__ = ["Judge", "StepReward", "evaluate", "load_policy", "load_reward", "plot_returns", "train"]

_PATIENCE = 1.0  # seconds between two looks for judgements


class Judge(Protocol):
    """Who says which of two clips is better, at once or later."""

    def ask(self, number: int, pair: Pair, step: int) -> None:
        """Ask for comparison ``number`` of a run; the same number may be asked for again after a run was cut off."""
        ...

    def answers(self) -> Mapping[int, float]:
        """Return answers: 1 if the first is preferred, 0 if the second, 0.5 for a tie, nan where there is none now."""
        ...

    def waiting(self) -> int:
        """Return how many comparisons nobody has looked at yet."""
        ...


class _OracleJudge:
    """Answers at once."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._answers: dict[int, float] = {}

    def ask(self, number: int, pair: Pair, step: int) -> None:
        self._answers[number] = self._oracle.prefer(number, *pair)

    def answers(self) -> Mapping[int, float]:
        return self._answers

    def waiting(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class StepReward:
    """The reward of an ensemble, of observations and actions as a task has them: what ``LearnedReward`` takes.

    Attributes:
        ensemble: The reward model.
        features: Makes of a step what it reads.
    """

    ensemble: RewardEnsemble
    features: Features

    @torch.no_grad()
    def __call__(self, observations: NDArray[Any], actions: NDArray[Any]) -> FloatArray:
        """Return shape ``(n,)``, float32."""
        return self.ensemble(torch.from_numpy(self.features(observations, actions))).numpy()


def train(
    config: ClipsConfig, *, judge: Judge | None = None, score: Score = true_return, progress: bool = True
) -> dict[str, Any]:
    """Train an agent on preferences, or on the task's own reward, and measure it by the latter.

    A run that was killed goes on from its last round. On a CPU, with a judge who answers at once and a task that is a
    function of its seed and the actions, its numbers are those of a run that was never killed.

    Args:
        config: Settings.
        judge: Who judges; None for a synthetic judge.
        score: What the synthetic judge goes by.
        progress: Show a progress bar.

    Returns:
        What ``results.json`` holds: the trained policy's true return, labels, seconds.

    Raises:
        TextEnvError: The task or the agent cannot be made, or the folder holds a run with other settings.
    """
    if (config.out / "results.json").exists():
        raise TextEnvError(f"{config.out} holds a finished run; give this one another folder.")
    described = _described(config)
    if (config.out / "config.json").exists():
        earlier = json.loads((config.out / "config.json").read_text("utf-8"))
        if changed := [name for name in described if described[name] != earlier.get(name)]:
            raise TextEnvError(
                f"{config.out} holds an unfinished run with other settings: "
                f"{', '.join(f'{name} was {earlier.get(name)!r}, is {described[name]!r}' for name in changed)}. Start it "
                "again with those it was started with, or give this one another folder."
            )
    torch.set_num_threads(config.threads)
    if judge is None:
        judge = _OracleJudge(
            Oracle(
                score,
                error_rate=config.oracle_error_rate,
                temperature=config.oracle_temperature,
                seed=config.seed,
            )
        )
    run = _Run(config, judge)
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out / "config.json", json.dumps(described, indent=2) + "\n")
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
    write_atomically(config.out / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says "finished"
    return results


def _described(config: ClipsConfig) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {name: value for name, value in described.items() if name not in ("out", "against", "eval_episodes")}


class _Run:
    """Everything of a run that changes while it goes on."""

    def __init__(self, config: ClipsConfig, judge: Judge) -> None:
        self.config, self.judge = config, judge
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        task = _make(config.task, config.task_settings)
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
            self._read_answers()
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
        for number, pair in enumerate(pairs, start=len(self.comparisons)):
            self.judge.ask(number, pair, step)
        self.comparisons.add(features_of(pairs, self.features), self.generator)

    def _read_answers(self) -> None:
        for number, preferred in self.judge.answers().items():
            self.comparisons.preferred[number] = preferred

    def _wait(self, due: int) -> None:
        """Wait until people have judged enough for training to go on."""
        told = False
        while (waiting := self.judge.waiting()) > self.config.lag * due or not len(self.comparisons.judged()):
            if not waiting:
                raise TextEnvError(
                    f"None of {len(self.comparisons)} pairs of clips could be told apart. Give longer clips with clip_steps."
                )
            if not told:
                told = True
                print(f"Training waits for judgements of clips: {waiting} of {due} are missing.", flush=True)
            time.sleep(_PATIENCE)
            self._read_answers()

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
        """Return Pearson's correlation of learned and true rewards on the steps of this round; nan if one is constant."""
        true = np.concatenate([trajectory.rewards for trajectory in trajectories])
        learned = np.concatenate([self.reward(trajectory.observations, trajectory.actions) for trajectory in trajectories])
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
            raise TextEnvError(f"Checkpoint {path} does not fit: {error}. Delete it to start from the beginning.") from error
        for index, parameter in enumerate(ensemble.parameters()):
            prefix = f"optimizer/{index}/"
            moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if moments:
                self.learner.optimizer.state[parameter] = moments
        self.rng.bit_generator.state = state["rng"]
        self.next_round = state["next_round"]
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


def evaluate(agent: Any, task: str, settings: Mapping[str, Any], episodes: int, *, seed: int = 20_170) -> list[float]:
    """Return the true returns of whole episodes by the task's own rules, with the likeliest action at every step.

    Args:
        agent: Anything with Stable-Baselines3's ``predict``.
        task: Registered id.
        settings: Keywords of ``gymnasium.make``.
        episodes: How many; all agents get the same beginnings.
        seed: Of the first.
    """
    env = _make(task, settings)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        total, done = 0.0, False
        while not done:
            action, _ = agent.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def _make(task: str, settings: Mapping[str, Any]) -> gym.Env[Any, Any]:
    try:
        return gym.make(task, **settings)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise TextEnvError(f"gymnasium.make({task!r}, **{dict(settings)}) failed: {error}") from error


def save_policy(folder: Path, agent: Agent, config: ClipsConfig) -> None:
    """Write an agent's networks (safetensors) and how to make it again (JSON)."""
    about = {"agent": config.agent, "task": config.task, "task_settings": dict(config.task_settings)}
    about["agent_settings"] = dict(config.agent_settings)
    _save(folder, agent.policy.state_dict(), about)


def load_policy(folder: Path) -> Agent:
    """Return an agent that acts as the saved one; it can be trained on, from an empty memory.

    Raises:
        TextEnvError: The folder holds no policy.
    """
    weights, about = _load(folder, "a policy of 'textenv clips train'", "agent", "task", "task_settings", "agent_settings")
    env = _make(about["task"], about["task_settings"])
    agent = make_agent(about["agent"], env, seed=0, buffer_size=1, settings=about["agent_settings"])
    _fill(agent.policy, weights, folder)
    return agent


def save_reward(folder: Path, ensemble: RewardEnsemble) -> None:
    """Write a reward model (safetensors and JSON)."""
    members, features, hidden = ensemble.weights[0].shape
    _save(folder, ensemble.state_dict(), {"members": members, "features": features, "hidden": hidden})


def load_reward(folder: Path, env: gym.Env[Any, Any]) -> StepReward:
    """Return the reward that a run has learnt, for ``LearnedReward(env, load_reward(folder, env))``.

    Raises:
        TextEnvError: The folder holds no reward model, or it is one of a task with other spaces.
    """
    weights, about = _load(folder, "a reward model of 'textenv clips train'", "members", "features", "hidden")
    features = Features(env.observation_space, env.action_space)
    if features.size != about["features"]:
        raise TextEnvError(
            f"{folder}: the reward model reads {about['features']} numbers a step, and the task has {features.size}."
        )
    ensemble = RewardEnsemble(about["features"], members=about["members"], hidden=about["hidden"])
    _fill(ensemble, weights, folder)
    return StepReward(ensemble, features)


def _save(folder: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    copies = {name: value.detach().contiguous().clone() for name, value in weights.items()}
    write_atomically(folder / "model.safetensors", safetensors.torch.save(copies))
    write_atomically(folder / "config.json", json.dumps(about, indent=2) + "\n")


def _load(folder: Path, what: str, *keys: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        about: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        missing = [key for key in keys if key not in about]
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TextEnvError(f"{folder}: expected {what} ({error}).") from error
    if missing:
        raise TextEnvError(f"{folder}: expected {what}; its config.json has no {missing}.")
    return weights, about


def _fill(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise TextEnvError(f"{folder}: the weights do not fit its config.json: {error}") from error


def plot_returns(runs: Mapping[str, Sequence[Path]], path: Path, *, title: str = "") -> None:
    """Draw the true return of episodes in training over the agent's steps.

    Args:
        runs: Folders of runs that differ in their seed only, by the name in the legend. Of several, the mean is drawn, and
            their range behind it.
        path: ``.png`` or ``.svg`` to write.
        title: Of the picture.

    Raises:
        TextEnvError: A run has no true returns, or the picture's kind is another.
    """
    if path.suffix not in (".png", ".svg"):
        raise TextEnvError(f"{path}: expected a name that ends in .png or .svg.")
    figure = Figure(figsize=(6, 3.6), dpi=130, layout="constrained")
    panel = figure.subplots()
    for place, (name, folders) in enumerate(runs.items()):
        curves = [_curve(folder) for folder in folders]
        steps = np.unique(np.concatenate([curve[0] for curve in curves]))
        values = np.array([np.interp(steps, *curve) for curve in curves])
        if len(curves) > 1:
            panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=f"C{place}", alpha=0.2, linewidth=0)
        panel.plot(steps, values.mean(axis=0), color=f"C{place}", linewidth=2, label=name)
    panel.set(xlabel="steps of the agent", ylabel="true return of an episode", title=title)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        panel.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:])
    write_atomically(path, picture.getvalue())


def _curve(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [row for row in read_metrics(folder) if "rollout/true_return" in row]
    if not rows:
        raise TextEnvError(f"{folder} has no true returns to draw; expected a run in which an episode has ended.")
    return np.array([row["step"] for row in rows]), np.array([row["rollout/true_return"] for row in rows])
