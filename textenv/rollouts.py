"""Episodes collected through ``reset`` and ``step`` of a vector environment, as arrays to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from textenv.models.policy import TextPolicy, observation_arrays
from textenv.types import Episode, FloatArray, IntArray, TextEnvError
from textenv.vector import TextVectorEnv

__all__ = ["Rollout", "collect", "sample_episodes", "text_env", "vectorise"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished episode a row; ``time`` is the longest completion.

    Attributes:
        input_ids: Prompts and completions, padded on the right, ``(batch, width)``.
        lengths: Tokens of each row, ``(batch,)``.
        starts: Tokens of each row's prompt, ``(batch,)``.
        log_probs: log pi of the tokens when they were drawn, in nats, ``(batch, time)``.
        values: ``V(s)`` when they were drawn, ``(batch, time)``.
        rewards: What each token earned, ``(batch, time)``.
        mask: True at tokens that the agent wrote, ``(batch, time)``.
        bootstrap: ``V`` of the last state where an outer wrapper truncated the episode, else 0, ``(batch,)``.
        action_masks: Which tokens could be drawn, packed bits, ``(batch, time, ceil(vocab_size / 8))``; or None.
        episodes: Each episode as the environment tells it; None where a wrapper truncated it before it was scored.
    """

    input_ids: IntArray
    lengths: IntArray
    starts: IntArray
    log_probs: FloatArray
    values: FloatArray
    rewards: FloatArray
    mask: NDArray[np.bool_]
    bootstrap: FloatArray
    action_masks: NDArray[np.uint8] | None
    episodes: tuple[Episode | None, ...]

    @property
    def finished(self) -> list[Episode]:
        """The episodes that were scored."""
        return [episode for episode in self.episodes if episode is not None]

    @property
    def tokens(self) -> int:
        """Number of tokens that the agent wrote."""
        return int(self.mask.sum())


def vectorise(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> VectorEnv[Any, Any, Any]:
    """Return a vector environment whose finished rows wait for a reset; a single environment becomes one of one row.

    Raises:
        TextEnvError: It resets its rows by itself.
    """
    if isinstance(env, gym.Env):
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.DISABLED:
        raise TextEnvError(
            f"The vector environment has autoreset_mode={mode}; this agent collects whole episodes and resets by "
            "itself. Make it with gymnasium.make_vec(..., autoreset_mode=AutoresetMode.DISABLED)."
        )
    return env


def text_env(envs: VectorEnv[Any, Any, Any]) -> TextVectorEnv:
    """Return the text environment inside wrappers.

    Raises:
        TextEnvError: There is none.
    """
    base = envs.unwrapped
    if isinstance(base, SyncVectorEnv) and len(base.envs) == 1:
        base = getattr(base.envs[0].unwrapped, "batch", base)
    if not isinstance(base, TextVectorEnv):
        raise TextEnvError(f"{envs} is no text environment; expected one made from an id that starts with 'textenv/'.")
    return base


def collect(
    envs: VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
) -> Rollout:
    """Let ``policy`` write one episode in every row.

    Args:
        envs: From ``vectorise``; the policy is attached to it.
        policy: Acts; its caches are emptied first.
        generator: Source of randomness; None for the likeliest tokens.
        seed: Seeds the environment, if given.
        options: Handed to ``reset``.

    Returns:
        The episodes.

    Raises:
        TextEnvError: A wrapper changed rewards that are paid in a lump, or kept them from being paid.
    """
    base = text_env(envs)
    base.attach_policy(policy)
    policy.forget()
    obs, infos = envs.reset(seed=seed, options=options)
    n = envs.num_envs
    starts = observation_arrays(obs)[1]
    columns: dict[str, list[Any]] = {"log_probs": [], "values": [], "rewards": [], "mask": [], "action_masks": []}
    bootstrap = np.zeros(n, dtype=np.float32)
    episodes: list[Episode | None] = [None] * n
    alive = np.ones(n, dtype=bool)
    while alive.any():
        rows = np.flatnonzero(alive)
        allowed = infos["action_mask"].astype(bool) if "action_mask" in infos else None
        actions, values = policy.act(obs, generator=generator, rows=rows, masks=allowed)
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        columns["log_probs"].append(policy.action_log_prob(actions))
        columns["values"].append(values)
        columns["rewards"].append(np.where(alive, rewards, 0.0))
        columns["mask"].append(alive.copy())
        if allowed is not None:
            columns["action_masks"].append(np.packbits(allowed, axis=1))
        for row in np.flatnonzero(alive & terminations):
            episodes[row] = base.last_episodes[row]
        cut = np.flatnonzero(alive & truncations & ~terminations)
        if len(cut) and base.settings.kl_mode == "lump":
            raise TextEnvError(
                "A wrapper truncated an episode whose KL is paid in a lump at its end, so it would never be paid. Use "
                "kl_mode='dense', where every token is paid at once."
            )
        if len(cut):
            bootstrap[cut] = policy.values(obs, cut)
        alive &= ~(terminations | truncations)
    ids, lengths = observation_arrays(obs)
    rewards = np.stack(columns["rewards"], axis=1).astype(np.float32)
    if base.settings.kl_mode == "lump":
        _spread(rewards, episodes)
    return Rollout(
        input_ids=ids[:, : int(lengths.max())].copy(),
        lengths=lengths,
        starts=starts,
        log_probs=np.stack(columns["log_probs"], axis=1),
        values=np.stack(columns["values"], axis=1),
        rewards=rewards,
        mask=np.stack(columns["mask"], axis=1),
        bootstrap=bootstrap,
        action_masks=np.stack(columns["action_masks"], axis=1) if columns["action_masks"] else None,
        episodes=tuple(episodes),
    )


def sample_episodes(
    envs: VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    prompts: Sequence[Any],
) -> list[Episode]:
    """Let ``policy`` write one episode from each prompt, in the environment's rows group by group.

    A prompt is whatever ``reset(options={"prompt": ...})`` takes for a row.
    """
    episodes: list[Episode] = []
    for begin in range(0, len(prompts), envs.num_envs):
        group = list(prompts[begin : begin + envs.num_envs])
        filled = group + [group[-1]] * (envs.num_envs - len(group))
        episodes += collect(envs, policy, generator, options={"prompt": filled}).finished[: len(group)]
    return episodes


def _spread(rewards: FloatArray, episodes: Sequence[Episode | None]) -> None:
    """Put rewards that were paid at the end of an episode where they were earned."""
    for row, episode in enumerate(episodes):
        if episode is None:
            continue
        paid, earned = float(rewards[row].sum()), math.fsum(episode.token_rewards)
        if abs(paid - earned) > 1e-4 * max(1.0, abs(paid)):
            raise TextEnvError(
                f"An episode was paid {paid:.6g}, but its tokens earned {earned:.6g}: a wrapper changes the reward. "
                "Use kl_mode='dense', where every token is paid at once."
            )
        rewards[row, : len(episode.token_rewards)] = episode.token_rewards
