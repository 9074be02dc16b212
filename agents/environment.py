"""What agents ask of a text environment beyond ``reset`` and ``step``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from textenv.lazy import lazy
from textenv.types import FloatArray, Observation, TextEnvError, short

if TYPE_CHECKING:
    from textenv.env import scoring
    from textenv.env.vector import TextVectorEnv
    from textenv.rollouts.collect import Rollout
    from textenv.rollouts.distributed import Processes
else:
    scoring = lazy("textenv.env.scoring")

__all__ = [
    "as_observations",
    "refuse_no_kl",
    "refuse_other_discount",
    "refuse_processes",
    "refuse_statistics",
    "refuse_unscored",
    "refuse_world",
    "scored_at_the_end",
    "split_kl_penalty",
    "without_shaping",
]


def as_observations(obs: Any, vocab_size: int) -> tuple[Observation, bool]:
    """Return observations of a text environment as a batch, and whether it is a single one.

    Args:
        obs: What was given.
        vocab_size: Number of token ids.

    Raises:
        TextEnvError: They are no observations: token ids, and a mask of those that are written.
    """
    if not isinstance(obs, Mapping) or not {"input_ids", "attention_mask"} <= set(obs):
        raise TextEnvError(
            f"obs={short(obs)}: expected an observation of a text environment, with 'input_ids' and 'attention_mask'."
        )
    try:
        ids, mask = np.asarray(obs["input_ids"]), np.asarray(obs["attention_mask"])
    except ValueError:  # lists of different lengths
        ids = mask = np.zeros(0)
    if ids.dtype.kind not in "iu" or mask.dtype.kind not in "iub" or ids.ndim not in (1, 2) or ids.shape != mask.shape:
        raise TextEnvError(
            f"obs with input_ids of shape {ids.shape} and type {ids.dtype}, attention_mask of shape {mask.shape} and "
            f"type {mask.dtype}: expected whole numbers of the same shape, (length,) or (batch, length)."
        )
    single = ids.ndim == 1
    ids, mask = np.atleast_2d(ids), np.atleast_2d(mask).astype(np.int8)
    if not mask[:, :1].all() or (np.diff(mask, axis=1) > 0).any() or ids.size == 0:
        raise TextEnvError("obs with an attention_mask that is not ones and then zeros: expected at least one token.")
    if (outside := mask.astype(bool) & ((ids < 0) | (ids >= vocab_size))).any():
        raise TextEnvError(f"obs holds the token id {ids[outside][0]}; expected ids from 0 to {vocab_size - 1}.")
    return {**obs, "input_ids": ids, "attention_mask": mask}, single


def split_kl_penalty(base: TextVectorEnv, rollout: Rollout) -> tuple[FloatArray, FloatArray]:
    """Return the KL of each token from the reference, in nats, and its reward without the KL penalty.

    Less this KL, ``rollout.log_probs`` are the reference's log-probabilities.

    Returns:
        Two arrays of shape ``(batch, time)``.

    Raises:
        TextEnvError: The environment estimates the KL in another way than by ``log pi - log pi_ref``, or a wrapper
            changes its rewards.
    """
    if base.settings.kl_estimator != "k1":
        raise TextEnvError(
            f"kl_estimator={base.settings.kl_estimator!r}: this agent reads log pi_ref off the KL, which takes 'k1'."
        )
    kl = np.zeros_like(rollout.rewards)
    for row, episode in enumerate(rollout.episodes):
        earned = None if episode is None else math.fsum(episode.token_rewards)
        if episode is None or earned is None or abs(earned - rollout.rewards[row].sum()) > 1e-4 * max(1.0, abs(earned)):
            raise TextEnvError(
                "A wrapper truncated an episode or changed its reward; this agent learns from the environment's own "
                "score and KL, so leave the wrapper out."
            )
        kl[row, : len(episode.kl)] = episode.kl
    return kl, np.asarray(rollout.rewards + np.float32(rollout.kl_coef) * kl, dtype=np.float32)


def scored_at_the_end(rollout: Rollout) -> Rollout:
    """Return episodes whose scores are paid at their last tokens, also where the reward has scored each token.

    It is for agents that take the score of a text as what it earns, which is then the sum over its tokens.
    """
    rewards = rollout.rewards.copy()
    for row, episode in enumerate(rollout.episodes):
        if episode is not None and episode.token_scores:
            size = len(episode.token_scores)
            rewards[row, :size] -= np.asarray(episode.token_scores, dtype=np.float32)
            rewards[row, size - 1] += episode.score
    return dataclasses.replace(rollout, rewards=rewards)


def without_shaping(rollout: Rollout) -> Rollout:
    """Return episodes with their rewards less what shaping has paid; none of them was cut by a wrapper."""
    rewards = rollout.rewards.copy()
    for row, episode in enumerate(rollout.finished):
        rewards[row, : len(episode.shaping)] -= np.array(episode.shaping, dtype=np.float32)
    return dataclasses.replace(rollout, rewards=rewards)


def refuse_other_discount(base: TextVectorEnv, gamma: float) -> None:
    """Refuse an environment whose rewards are shaped with another discount than an agent's.

    Raises:
        TextEnvError: They are, and the optimum would move.
    """
    settings = base.settings
    if settings.potential is not None and settings.potential_discount != gamma:
        raise TextEnvError(
            f"potential_discount={settings.potential_discount:g}, and the agent discounts by {gamma:g}: shaping leaves "
            f"the optimum where it is with the agent's own discount alone. Give potential_discount={gamma:g}."
        )


def refuse_no_kl(base: TextVectorEnv, agent: str) -> None:
    """Refuse an environment without a KL penalty, for an agent that divides by its weight.

    Raises:
        TextEnvError: ``kl_coef`` is 0.
    """
    if not base.kl_coef > 0:
        raise TextEnvError(f"kl_coef=0: {agent} divides by it; give the environment a kl_coef above 0.")


def refuse_processes(processes: Processes, agent: str) -> None:
    """Refuse several processes, for an agent without weights that they could train together.

    Raises:
        TextEnvError: There are several.
    """
    if processes.size > 1:
        raise TextEnvError(f"{agent} trains no weights that {processes.size} processes could share: start one.")


def refuse_world(base: TextVectorEnv, agent: str) -> None:
    """Refuse an environment with a world, for an agent that has texts scored which no episode has.

    Raises:
        TextEnvError: A world answers in it.
    """
    if base.worlds is not None:
        raise TextEnvError(
            f"{agent} has the reward score texts that it has not written, which no world can answer: leave the world "
            "out, or take an agent that learns from its episodes, such as PPO."
        )


def refuse_unscored(base: TextVectorEnv, agent: str) -> None:
    """Refuse an environment that scores nothing, for an agent that acts by scores.

    Raises:
        TextEnvError: The environment's reward is ``textenv.env.scoring.unscored``.
    """
    if base.reward is scoring.unscored:
        raise TextEnvError(
            f"{agent} chooses what it writes by the reward, and this environment has none; give it one (--reward of "
            "'textenv sample', where 'run' stands for the run's own)."
        )


def refuse_statistics(base: TextVectorEnv) -> None:
    """Refuse a reward that keeps statistics, for an agent that scores texts which no episode has.

    Raises:
        TextEnvError: It keeps statistics of what it scores.
    """
    if base.scorer.keeps_state:
        raise TextEnvError(
            "The reward keeps statistics of what it has scored, and this agent has it score texts that no episode "
            "has; leave the normalization out."
        )
