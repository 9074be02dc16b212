"""Episodes collected through ``reset`` and ``step`` of a vector environment, as arrays to learn from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from textenv.distributed import ALONE, World
from textenv.kl import AdaptiveKL
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.types import Episode, FloatArray, IntArray, Observation, TextEnvError
from textenv.vector import TextVectorEnv

__all__ = ["ActionMask", "Rollout", "collect", "sample_episodes", "text_env", "vectorise"]


class ActionMask(Protocol):
    """An agent's own choice of the tokens that it may draw."""

    def forget(self) -> None:
        """Empty what it caches: new episodes begin."""
        ...

    def __call__(self, obs: Observation, rows: IntArray, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Return which tokens may be drawn, shape ``(batch, vocab_size)``, at least one in each of ``rows``.

        Args:
            obs: Observations, batched.
            rows: The rows that count.
            allowed: What the environment allows, same shape, to stay within; None for every token.
        """
        ...


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
        kl_coef: Weight of the KL in the rewards.
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
    kl_coef: float

    def rows(self, picks: IntArray) -> Rollout:
        """Return the episodes of some rows, in the order of ``picks``."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen: dict[str, Any] = {name: array[picks] for name, array in arrays.items() if isinstance(array, np.ndarray)}
        return dataclasses.replace(self, **chosen, episodes=tuple(self.episodes[row] for row in picks.tolist()))

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
    world: World = ALONE,
    mask: ActionMask | None = None,
) -> Rollout:
    """Let ``policy`` write one episode in every row.

    Several processes write the episodes that one process with all their rows would: they step together, with the
    prompts and random numbers of their own rows out of those of all, and each returns the episodes of all.

    Args:
        envs: From ``vectorise``; the policy is attached to it.
        policy: Acts; its caches are emptied first.
        generator: Source of randomness, in the same state in every process; None for the likeliest tokens.
        seed: Seeds the environment, if given.
        options: Handed to ``reset``.
        world: The processes that write, each in an environment of as many rows.
        mask: Which tokens the policy may draw; None for all that the environment allows.

    Returns:
        The episodes of all processes, in the order of their ranks.

    Raises:
        TextEnvError: A wrapper changed rewards that are paid in a lump, or kept them from being paid.
    """
    base = text_env(envs)
    base.attach_policy(policy)
    policy.forget()
    if mask is not None:
        mask.forget()
    n = envs.num_envs
    coef = base.kl_controller.coef
    obs, infos = envs.reset(seed=None if seed is None else seed + world.rank * n, options=options)
    starts = observation_arrays(obs)[1]
    columns: dict[str, list[Any]] = {"log_probs": [], "values": [], "rewards": [], "mask": [], "action_masks": []}
    bootstrap = np.zeros(n, dtype=np.float32)
    episodes: list[Episode | None] = [None] * n
    alive = np.ones(n, dtype=bool)
    while any(writing := world.counts(int(alive.sum()))):
        uniform = None if generator is None else _uniform(generator, writing, world.rank)
        if not alive.any():  # others still write
            continue
        rows = np.flatnonzero(alive)
        allowed = infos["action_mask"].astype(bool) if "action_mask" in infos else None
        if mask is not None:
            allowed = mask(obs, rows, allowed)
        actions, values = policy.act(obs, uniform=uniform, rows=rows, masks=allowed)
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
    rollout = Rollout(
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
        kl_coef=coef,
    )
    if world.size > 1:
        rollout = _joined(world.gather(rollout))
        base.kl_controller.coef = coef  # not what the rows of this process have made of it
        _adapt(base.kl_controller, rollout.finished)
    return rollout


def sample_episodes(
    envs: VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    prompts: Sequence[Any],
    *,
    world: World = ALONE,
    mask: ActionMask | None = None,
) -> list[Episode]:
    """Let ``policy`` write one episode from each prompt, in the rows of all processes group by group.

    A prompt is whatever ``reset(options={"prompt": ...})`` takes for a row.
    """
    episodes: list[Episode] = []
    size = envs.num_envs * world.size
    for begin in range(0, len(prompts), size):
        group = list(prompts[begin : begin + size])
        filled = world.own(group + [group[-1]] * (size - len(group)))
        rollout = collect(envs, policy, generator, options={"prompt": list(filled)}, world=world, mask=mask)
        episodes += rollout.finished[: len(group)]
    return episodes


def _uniform(generator: torch.Generator, rows: Sequence[int], rank: int) -> torch.Tensor:
    """Return the numbers that one process draws for the rows of all, those of ``rank`` alone, ``(rows[rank], 1)``."""
    drawn = torch.rand(sum(rows), 1, generator=generator, device=generator.device)
    return drawn[sum(rows[:rank]) :][: rows[rank]]


def _joined(parts: Sequence[Rollout]) -> Rollout:
    """Return the episodes of several processes as those of one."""

    def stacked(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        if arrays[0].ndim > 1:  # a column a token or a step, of which the longest texts have the most
            width = max(array.shape[1] for array in arrays)
            around = [(0, 0)] * (arrays[0].ndim - 2)
            arrays = [np.pad(array, [(0, 0), (0, width - array.shape[1]), *around]) for array in arrays]
        return np.concatenate(arrays)

    names = {field.name for field in dataclasses.fields(Rollout)} - {"episodes", "kl_coef"}
    episodes = tuple(episode for part in parts for episode in part.episodes)
    return Rollout(**{name: stacked(name) for name in names}, episodes=episodes, kl_coef=parts[0].kl_coef)


def _adapt(controller: AdaptiveKL, episodes: Sequence[Episode]) -> None:
    """Move the KL coefficient as one environment with these rows does: as they end, those of a step at a time."""
    for length in sorted({len(episode.completion_ids) for episode in episodes}):
        totals = [float(np.sum(episode.kl)) for episode in episodes if len(episode.completion_ids) == length]
        controller.update(float(np.mean(totals)), len(totals))


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
