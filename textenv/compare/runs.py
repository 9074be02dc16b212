"""One run of a comparison, and what a task is measured against. Both are done in worker processes, into files."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
import transformers
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from scipy.special import logsumexp

import textenv
from textenv import plugins
from textenv.analysis.exact import LogProbs, Policy, Tree, model_log_probs
from textenv.analysis.frontier import COUNTS, best_of_n_kl, sample_frontier
from textenv.compare.plan import Budget, ComparedTask, Run
from textenv.data.files import read_json, to_json, write_atomically, write_json
from textenv.data.values import as_mapping, as_number
from textenv.env.registry import make_envs, record_of
from textenv.env.render import prompt_lines
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import episode_starts, sample_episodes, text_env
from textenv.rollouts.runs import check_settings, summary
from textenv.types import Episode, IntArray

__all__ = [
    "SAMPLES",
    "Evaluator",
    "Measurable",
    "Measurement",
    "finished",
    "measure_task",
    "run_folder",
    "task_file",
    "train_run",
    "versions",
]

_PROMPTS = 64  # held-out ones that a task is measured on, at most: its frontier takes many completions of each
SAMPLES = 256
"""Completions of each prompt that the reference and best-of-n are measured on, where texts cannot be enumerated."""
_SHOWN = 8  # completions that the report shows
_AT_ONCE = 4096  # states that a mask is computed for at a time


@dataclass(frozen=True, slots=True)
class Measurement:
    """What an agent comes to: mean score, KL from the reference in nats, ``value = score - kl_coef * kl``.

    ``stderr`` is the standard error of the score: 0 where the figures are ``exact``, computed from all texts and not
    sampled, None where it is not known.
    """

    score: float
    kl: float
    value: float
    stderr: float | None
    exact: bool


class Measurable(Protocol):
    """An agent as a comparison measures it: it writes samples. How it draws them is told by attributes it may have.

    On a task whose texts can be enumerated its figures are exact if one of these is there; else they are those of its
    samples.

    - ``policy``: a ``TextPolicy`` (no class derived from it) that it draws tokens from, within ``mask``: an
      ``ActionMask``, or None.
    - ``best_of``: it writes the best one of so many samples of the reference; None for an agent that does not.
    - ``learns``: False for an agent that does not learn, and so is not trained; True if there is no such attribute.
    """

    def sample(
        self, env: VectorEnv[Any, Any, Any], prompts: Sequence[Any], *, generator: torch.Generator | None = None
    ) -> list[Episode]:
        """Write one episode from each prompt; ``textenv.agents.actor.Actor.sample`` has the arguments."""
        ...


class Evaluator:
    """Measures agents on a task, exactly or on fresh completions (see ``Measurable``).

    Attributes:
        tree: All texts of the task; None if they cannot be enumerated.
        kl_coef: The weight of the KL in ``value``: that of the task at its beginning.
        envs: The environment that completions are written in.
        prompts: Those that it measures on; none where a world begins episodes by itself, from the same seeds for every
            agent.
    """

    def __init__(self, task: ComparedTask, budget: Budget, model: Any = None) -> None:
        """Make the environment to measure in, with a reference model that is loaded already if one is given."""
        shared = {} if model is None else {"model": model}
        keywords = {**task.keywords(held_out=True), **shared}
        for name in () if model is None else ("device", "torch_dtype"):
            keywords.pop(name, None)
        self.envs: Any = make_envs(task.env, budget.num_envs, **keywords)
        base = text_env(self.envs)
        self.kl_coef = base.settings.kl_coef
        self.tree = Tree.of(self.envs) if record_of(task.env).enumerable else None
        step = max(1, len(base.prompts) // _PROMPTS)
        self.prompts = list(base.prompts[::step][:_PROMPTS])
        self._eval_prompts = episode_starts(self.prompts, budget.eval_episodes)

    def measure(self, agent: Measurable) -> Measurement:
        """Return what an agent comes to."""
        policy, best_of = getattr(agent, "policy", None), getattr(agent, "best_of", None)
        if self.tree is not None:
            outcome = None
            if best_of is not None:
                outcome = self.tree.best_of_n(best_of)
            elif type(policy) is TextPolicy:  # one derived from it may draw from something else
                outcome = self.tree.evaluate(_masked(policy, getattr(agent, "mask", None), self.tree))
            if outcome is not None:
                return Measurement(outcome.score, outcome.kl, outcome.value, stderr=0.0, exact=True)
        about = summary(self.sample(agent))
        score, stderr = about["score"]["mean"], about["score"]["stderr"]
        # The best of n samples has the log-probabilities of the reference; its divergence is in the choice.
        kl = about["kl"]["mean"] if best_of is None else float(best_of_n_kl(best_of))
        return Measurement(score, kl, score - self.kl_coef * kl, stderr, exact=False)

    def sample(self, agent: Measurable, episodes: int | None = None) -> list[Episode]:
        """Return completions by an agent, the same random numbers every time."""
        return agent.sample(self.envs, self._eval_prompts[:episodes], generator=_generator(self.envs))

    def reference(self) -> list[Episode]:
        """Return completions by the reference, by the same random numbers."""
        base = text_env(self.envs)
        policy = TextPolicy.of_reference(base)
        return sample_episodes(self.envs, policy, _generator(self.envs), self._eval_prompts)


def measure_task(task: ComparedTask, budget: Budget, out: Path, threads: int) -> None:
    """Write what a task's runs are measured against: the reference, the optimum if known, best-of-n."""
    path = task_file(out, task)
    about = _plain({"task": dataclasses.asdict(task), "budget": dataclasses.asdict(budget)})
    if path.exists() and read_json(path, "about")["about"] == about:
        return
    torch.set_num_threads(threads)
    evaluator = Evaluator(task, budget)
    found: dict[str, Any] = {"about": about, "label": task.label, "kl_coef": evaluator.kl_coef, "optimum": None}
    tree, written = evaluator.tree, evaluator.reference()
    if tree is not None:
        found["reference"] = dataclasses.asdict(tree.reference)
        found["optimum"] = dataclasses.asdict(tree.optimum)
    if text_env(evaluator.envs).worlds is not None:  # of its answers nobody can take the best of n
        found["frontier"] = {"n": [], "kl": [], "score": []}
    elif tree is not None:
        best = [tree.best_of_n(n) for n in COUNTS]
        found["frontier"] = {"n": COUNTS, "kl": [b.kl for b in best], "score": [b.score for b in best]}
    else:
        frontier = sample_frontier(evaluator.envs, SAMPLES, prompts=evaluator.prompts)
        found["frontier"] = {name: getattr(frontier, name).tolist() for name in ("n", "kl", "score")}
    if tree is None:
        score = found["frontier"]["score"][0] if found["frontier"]["score"] else summary(written)["score"]["mean"]
        found["reference"] = {"score": score, "kl": 0.0, "value": score}
    found |= {"samples": _shown(written), **_parts(written)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found, indent=1)


def train_run(run: Run, budget: Budget, out: Path, threads: int) -> None:
    """Do a run, or go on with it; ``results.json`` in its folder says that it is finished.

    Raises:
        TextEnvError: Its folder holds a run with other settings, or an agent or environment refuses.
    """
    folder = run_folder(out, run)
    config = run.described(budget)
    check_settings(folder, config)
    if finished(out, run):
        return
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    envs: Any = make_envs(run.task.env, budget.num_envs, **run.task.keywords())
    agent = plugins.agents().find(run.agent.name)(envs, run.agent_config())
    evaluator = Evaluator(run.task, budget, text_env(envs).reference)
    write_json(folder / "config.json", config)
    if not getattr(agent, "learns", True):
        figures = dataclasses.asdict(evaluator.measure(agent))
        curve = _Curve(folder / "curve.jsonl", 0)
        for steps in (0, budget.total_steps):
            curve.add({"steps": steps, "seconds": 0.0, **figures})
    else:
        curve = _train(agent, evaluator, budget, folder)
    parts = bool(text_env(evaluator.envs).scorer.part_names)
    after = evaluator.sample(agent, None if parts else _SHOWN)
    told = {"samples": _shown(after), **_parts(after), "threads": threads, "versions": versions()}
    results = {**curve.rows[-1], "curve": curve.rows, **told}
    write_json(folder / "results.json", results, indent=1)


def _train(agent: Any, evaluator: Evaluator, budget: Budget, folder: Path) -> _Curve:
    """Train an agent, and measure it on the way."""
    checkpoints = folder / "checkpoints"
    agent.resume(checkpoints, budget.total_steps)
    begun = agent.steps
    curve = _Curve(folder / "curve.jsonl", begun)
    clock = _Curve(folder / "clock.jsonl", begun)  # after every iteration, for a run that was cut off
    spent = clock.rows[-1]["seconds"] if clock.rows else 0.0
    since = time.perf_counter()

    def progress(steps: int, metrics: Mapping[str, float]) -> bool:
        nonlocal spent, since
        told = [metrics.get(f"time/{part}_seconds") for part in ("rollout", "update")]
        # Its own clock leaves out what checkpoints cost.
        spent += sum(part for part in told if part is not None) if None not in told else time.perf_counter() - since
        clock.add({"steps": steps, "seconds": spent})
        over = budget.seconds is not None and spent >= budget.seconds
        due = 1 + int(curve.rows[-1]["steps"] * budget.evaluations / budget.total_steps) if curve.rows else 1
        if over or steps >= budget.total_steps * due / budget.evaluations or steps >= budget.total_steps:
            curve.add({"steps": steps, "seconds": spent, **dataclasses.asdict(evaluator.measure(agent))})
        since = time.perf_counter()
        return not over

    ended = budget.seconds is not None and spent >= budget.seconds
    if agent.steps < budget.total_steps and not ended:
        agent.learn(budget.total_steps, progress=progress, checkpoints=checkpoints, checkpoint_every=20)
    if not curve.rows or curve.rows[-1]["steps"] < agent.steps:
        curve.add({"steps": agent.steps, "seconds": spent, **dataclasses.asdict(evaluator.measure(agent))})
    return curve


class _Curve:
    """Rows in a file, those up to a step kept from an earlier start."""

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        earlier = path.read_text("utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = []
        for number, line in enumerate(earlier, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last, if the run was killed as it wrote it
                break
            where = f"{path}, line {number}:"
            if as_number(as_mapping(row, f"{where} it").get("steps"), f"{where} steps") <= steps and steps:
                self.rows.append(row)
        write_atomically(path, "".join(to_json(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")


def run_folder(out: Path, run: Run) -> Path:
    """Return the folder of a run."""
    return out / "runs" / run.name


def task_file(out: Path, task: ComparedTask) -> Path:
    """Return the file of what a task's runs are measured against."""
    return out / "tasks" / f"{task.slug}.json"


def finished(out: Path, run: Run) -> bool:
    """Return whether a run is finished."""
    return (run_folder(out, run) / "results.json").exists()


def versions() -> dict[str, str]:
    """Return the versions of what the figures come from."""
    packages = {"textenv": textenv, "torch": torch, "transformers": transformers, "gymnasium": gym, "numpy": np}
    return {"python": platform.python_version(), **{name: package.__version__ for name, package in packages.items()}}


def _masked(policy: TextPolicy, mask: Callable[..., NDArray[np.bool_]] | None, tree: Tree) -> Policy:
    """Return a policy that draws only what a mask lets it."""
    if mask is None:
        return policy
    free: LogProbs = model_log_probs(policy.lm, policy.temperature)
    forget: Callable[[], None] = getattr(mask, "forget", lambda: None)

    def log_probs(ids: IntArray) -> NDArray[Any]:
        found = []
        for begin in range(0, len(ids), _AT_ONCE):
            part = ids[begin : begin + _AT_ONCE]
            forget()
            allowed = mask(tree.observations(part), np.arange(len(part)), None)
            values = np.where(allowed, free(part), -np.inf)
            found.append(values - logsumexp(values, axis=1, keepdims=True))
        forget()
        return np.concatenate(found)

    return log_probs


def _generator(envs: Any) -> torch.Generator:
    return torch.Generator(text_env(envs).reference.device).manual_seed(20_260)


def _shown(episodes: list[Episode]) -> list[dict[str, Any]]:
    """Return what the report shows of episodes."""
    return [
        {"prompt": prompt_lines(episode.start), "completion": episode.completion, "score": episode.earned}
        for episode in episodes[:_SHOWN]
    ]


def _parts(episodes: list[Episode]) -> dict[str, Any]:
    """Return the mean score of each part of the reward, as ``parts``; nothing for a reward without parts."""
    found = summary(episodes).get("scores", {})
    return {"parts": {name: figure["mean"] for name, figure in found.items()}} if found else {}


def _plain(value: Any) -> Any:
    return json.loads(to_json(value, default=str))
