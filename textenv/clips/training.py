"""Deep RL from human preferences (Christiano et al. 2017): ``train`` runs it from its settings to its results.

Judges see pairs of clips; an ensemble of reward models learns from their preferences; a Stable-Baselines3 agent learns
from the ensemble's reward and never sees the task's own reward. All three take turns, in rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from textenv.clips.clips_config import ClipsConfig
from textenv.clips.measuring import evaluate_returns, plot_returns
from textenv.clips.oracle import Score, true_return
from textenv.clips.preference_run import ClipJudge, PreferenceRun
from textenv.clips.saved import save_policy, save_reward
from textenv.data.files import locked, read_json, to_json, write_json
from textenv.rollouts.tracking import RunLogger
from textenv.types import TextEnvError

if TYPE_CHECKING:
    from textenv.clips.people import People

__all__ = ["train"]


def train(
    config: ClipsConfig, *, judge: ClipJudge | None = None, score: Score = true_return, progress: bool = True
) -> dict[str, Any]:
    """Train an agent on preferences, or on the task's own reward, and measure it by the task's own reward.

    A run that was killed continues from its last round. On a CPU, with a judge who answers at once and a task that is a
    function of its seed and the actions, its results are those of a run that was never killed. With people as judges,
    the results depend on when they answer; the metrics of a round that was interrupted while it waited for them have no
    true return. Torch computes with ``config.threads`` threads until the function returns.

    Args:
        config: Settings.
        judge: Who judges the clips; None for the annotators of the store, or a synthetic judge if the settings name no
            store.
        score: The score of a clip by which the synthetic judge prefers one of two.
        progress: Show a progress bar.

    Returns:
        The content of ``results.json``: the trained policy's true returns, the numbers of labels, the seconds.

    Raises:
        TextEnvError: The task or the agent cannot be made, or the folder holds a run with other settings.
    """
    with locked(config.out), _torch_threads(config.threads), contextlib.ExitStack() as stack:
        described = _check_folder(config)
        people = None
        if judge is None and config.store is not None and config.reward == "learned":
            from textenv.clips.people import People  # noqa: PLC0415 (draws clips, which is slow to import)

            judge = people = People(config.store, config.out, config.task, config.task_settings)
            stack.callback(people.close)
        return _train(config, PreferenceRun(config, judge, score), described, people, progress=progress)


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_folder(config: ClipsConfig) -> dict[str, Any]:
    """Return the settings as ``config.json`` holds them, if the run's folder is free for a run with these settings.

    Raises:
        TextEnvError: The folder holds a finished run, or one with other settings.
    """
    if (config.out / "results.json").exists():
        raise TextEnvError(f"{config.out} holds a finished run; give this one another folder.")
    described = _described(config)
    if not (config.out / "config.json").exists():
        return described
    earlier = read_json(config.out / "config.json")
    changed = [
        f"{name} was {earlier.get(name)!r}, is {now!r}" for name, now in described.items() if earlier.get(name) != now
    ]
    if changed:
        raise TextEnvError(
            f"{config.out} holds an unfinished run with other settings: {', '.join(changed)}. Start it again with "
            "those it was started with, or give this one another folder."
        )
    return described


def _described(config: ClipsConfig) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(to_json(dataclasses.asdict(config), default=str))
    return {name: value for name, value in described.items() if name not in ("out", "against", "eval_episodes")}


def _train(
    config: ClipsConfig, run: PreferenceRun, described: Mapping[str, Any], people: People | None, *, progress: bool
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
    returns = evaluate_returns(run.agent, config.task, config.task_settings, config.eval_episodes)
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
    write_json(config.out / "results.json", results)  # last, because it marks the run as finished
    return results
