"""The usual metrics of an iteration's episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from textenv.rollouts.collect import Rollout
    from textenv.types import Episode

__all__ = ["episode_metrics", "reward_metrics"]


def episode_metrics(rollout: Rollout) -> dict[str, float]:
    """Return the usual metrics of episodes.

    Returns:
        Means over the episodes: their reward and length; of those that were scored also score, with what a world has
        paid, KL from the reference and entropy in nats, and the share that ended with the end-of-sequence token; with a
        world also what it has paid by itself, and the number of turns; with a potential what shaping has paid; and what
        the reward tells, see ``reward_metrics``.
    """
    finished = rollout.finished
    means = {
        "rollout/ep_rew_mean": float(rollout.rewards.sum(axis=1).mean()),
        "rollout/ep_len_mean": float(rollout.mask.sum(axis=1).mean()),
    }
    if finished:
        means["objective/score"] = float(np.mean([episode.earned for episode in finished]))
        if any(episode.turns for episode in finished):
            means["objective/world"] = float(np.mean([episode.world_reward for episode in finished]))
            means["rollout/turns"] = float(np.mean([len(episode.turns) for episode in finished]))
        if any(episode.shaping for episode in finished):
            means["objective/shaping"] = float(np.mean([math.fsum(episode.shaping) for episode in finished]))
        means["objective/kl"] = float(np.mean([math.fsum(episode.kl) for episode in finished]))
        means["objective/entropy"] = -float(rollout.log_probs[rollout.mask].sum() / len(rollout.episodes))
        means["rollout/eos_fraction"] = float(np.mean([episode.stop_reason == "eos" for episode in finished]))
    return {**means, **reward_metrics(finished)}


def reward_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return what a reward tells of episodes: means of its parts' scores, and of what it has logged.

    Returns:
        ``objective/score/NAME`` of each part, over the episodes that it applied to, before its weight; and
        ``reward/NAME`` of each number that was logged for a batch (``log_metric``).
    """
    found: dict[str, list[float]] = {}
    for episode in episodes:
        for name, score in episode.scores.items():
            if score is not None:
                found.setdefault(f"objective/score/{name}", []).append(score)
        for name, value in episode.metrics.items():
            found.setdefault(f"reward/{name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}
