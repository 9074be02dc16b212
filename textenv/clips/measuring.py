"""Measuring an agent by the task's own reward, which it does not see in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from textenv.data.pictures import check_picture, save_figure
from textenv.rollouts.tracking import read_metrics
from textenv.types import TextEnvError

__all__ = ["evaluate_returns", "make_task", "plot_returns"]


def make_task(task: str, settings: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Return ``gymnasium.make(task, **settings)``.

    Raises:
        TextEnvError: There is no such task, or it has no such settings.
    """
    try:
        return gym.make(task, **settings)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise TextEnvError(f"gymnasium.make({task!r}, **{dict(settings)}) failed: {error}") from error


def evaluate_returns(
    agent: Any, task: str, settings: Mapping[str, Any], episodes: int, *, seed: int = 20_170
) -> list[float]:
    """Return the true returns of whole episodes by the task's own rules, with the likeliest action at every step.

    Args:
        agent: Anything with Stable-Baselines3's ``predict``.
        task: Registered id.
        settings: Keywords of ``gymnasium.make``.
        episodes: Number of episodes; every agent gets the same initial states.
        seed: Seed of the first episode; the next have the next numbers.

    Returns:
        The return of each episode.
    """
    env = make_task(task, settings)
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


def plot_returns(runs: Mapping[str, Sequence[Path]], path: Path, *, title: str = "") -> None:
    """Plot the true return of training episodes over the agent's steps.

    Args:
        runs: Folders of runs that differ in their seed only, by their name in the legend. For several folders, the mean
            is drawn over a band from the lowest to the highest.
        path: File to write, ``.png`` or ``.svg``.
        title: Title of the figure.

    Raises:
        TextEnvError: A run has no true returns, or the file's kind is another.
    """
    check_picture(path)
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
    save_figure(figure, path)


def _curve(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [row for row in read_metrics(folder) if "rollout/true_return" in row]
    if not rows:
        raise TextEnvError(f"{folder} has no true returns to draw; expected a run in which an episode has ended.")
    return np.array([row["step"] for row in rows]), np.array([row["rollout/true_return"] for row in rows])
