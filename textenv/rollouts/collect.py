"""Episodes collected through ``reset`` and ``step`` of a vector environment, as arrays to learn from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from textenv.env.kl import AdaptiveKL
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.rollouts.distributed import ALONE, Processes
from textenv.rollouts.rollout import Rollout, RolloutBuffer, join
from textenv.rollouts.runtime import return_memory
from textenv.types import Episode, IntArray, Observation, Prompt, TextEnvError, short
from textenv.validation import Count, NonNegativeInt, validated

__all__ = [
    "ActionMask",
    "Rollout",
    "collect",
    "episode_starts",
    "refuse_single_rows",
    "sample_episodes",
    "text_env",
    "vectorize",
]


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


def vectorize(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> VectorEnv[Any, Any, Any]:
    """Return a vector environment whose finished rows wait for a reset; a single environment becomes one of one row.

    Raises:
        TextEnvError: It is no environment, resets its rows by itself, or its rows are environments of their own.
    """
    if isinstance(env, gym.Env):
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
    refuse_single_rows(env)
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.DISABLED:
        raise TextEnvError(
            f"The vector environment has autoreset_mode={mode}; this agent collects whole episodes and resets by "
            "itself. Make it with gymnasium.make_vec(..., autoreset_mode=AutoresetMode.DISABLED)."
        )
    return env


def refuse_single_rows(envs: Any) -> None:
    """Refuse what is no vector environment, and one that steps single text environments one by one.

    Raises:
        TextEnvError: It is either.
    """
    if isinstance(envs, gym.Env):
        raise TextEnvError(
            f"{short(envs)} is a single environment; expected a vector one: gymnasium.make_vec(..., num_envs=8)."
        )
    if not isinstance(envs, VectorEnv):
        raise TextEnvError(
            f"{short(envs)} is no environment; expected what gymnasium.make or gymnasium.make_vec returns for an id "
            "such as 'textenv/MovieReview-v0'."
        )
    base = envs.unwrapped
    space = base.single_observation_space
    of_texts = isinstance(space, gym.spaces.Dict) and "input_ids" in space.spaces
    if of_texts and (isinstance(base, AsyncVectorEnv) or (isinstance(base, SyncVectorEnv) and len(base.envs) > 1)):
        spec = base.spec
        id = "my/Env-v0" if spec is None else spec.id
        what_to_do = (
            f"Register {id!r} with a vector_entry_point, which makes a TextVectorEnv of the same settings: "
            f"textenv.register({id!r}, entry_point=..., vector_entry_point=...)."
            if spec is None or spec.vector_entry_point is None
            else "Leave vectorization_mode out of gymnasium.make_vec."
        )
        raise TextEnvError(
            f"{type(base).__name__} steps {base.num_envs} single environments one by one, each with a model of its "
            f"own, and no policy writes in them together. {what_to_do} Or give one environment alone: "
            f"gymnasium.make({id!r})."
        )


def text_env(envs: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> TextVectorEnv:
    """Return the text environment inside wrappers; of a single one, the vector environment of its one row.

    Raises:
        TextEnvError: There is none.
    """
    base: Any = getattr(envs, "unwrapped", envs)
    if isinstance(base, SyncVectorEnv) and len(base.envs) == 1:
        base = base.envs[0].unwrapped
    base = getattr(base, "batch", base)
    if not isinstance(base, TextVectorEnv):
        raise TextEnvError(
            f"{short(envs)} is no text environment; expected one made from an id that starts with 'textenv/', or from "
            "a TextEnv or TextVectorEnv of your own."
        )
    return base


@validated
def collect(
    envs: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    *,
    episodes: Count | None = None,
    seed: NonNegativeInt | None = None,
    options: dict[str, Any] | None = None,
    processes: Processes = ALONE,
    mask: ActionMask | None = None,
) -> Rollout:
    """Let ``policy`` write an episode in every row, and more in the rows that finish first.

    Several processes write the episodes that one process with all their rows would: they step together, with the
    prompts and random numbers of their own rows out of those of all, and each returns the episodes of all. (With more
    episodes than rows, one process would hand them out in another order.)

    Args:
        envs: A text environment: single, or vectorized with ``AutoresetMode.DISABLED``. The policy is attached to it
            while it writes, and afterwards whatever was before.
        policy: Acts; its caches are emptied first, and so are those of the reference and the mask, so that not even the
            last bits of the numbers depend on what was written before. At the end their memory is freed.
        generator: Source of randomness, in the same state in every process; None for the likeliest tokens.
        episodes: How many this process writes, at least one a row; None for one a row. So many are begun and all are
            finished, so that short ones are not preferred. Rows begin anew a few at a time.
        seed: Seeds the environment, if given.
        options: Handed to ``reset``; a list of prompts has one for each episode.
        processes: The processes that write, each in an environment of as many rows.
        mask: Which tokens the policy may draw; None for all that the environment allows.

    Returns:
        The episodes of all processes, in the order of their ranks, and of their prompts.

    Raises:
        TextEnvError: An argument is not what is expected, there are fewer episodes than rows, or a wrapper changed
            rewards that are paid in a lump (the KL, or the scores of tokens), or kept them from being paid.
    """
    given: Any = policy
    if not isinstance(given, TextPolicy):
        raise TextEnvError(f"policy={short(given)}: expected a TextPolicy, such as an agent's policy.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TextEnvError(f"generator={short(generator)}: expected a torch.Generator, or None.")
    envs = vectorize(envs)
    base = text_env(envs)
    policy.forget()
    base.reference.forget()
    _return_memory(policy)
    if mask is not None:
        mask.forget()
    n = envs.num_envs
    total = n if episodes is None else episodes
    if total < n:
        raise TextEnvError(f"episodes={total}: expected at least {n}, one for each row.")
    coef = base.kl_controller.coef
    buffer = RolloutBuffer(n, total, pad_id=base.reference.pad_id)
    buffer.assign(np.arange(n))
    obs, infos = envs.reset(seed=None if seed is None else seed + processes.rank * n, options=buffer.options(options))
    buffer.begin(base.row_prompts)
    with contextlib.ExitStack() as stack:
        stack.enter_context(base.attached(policy))
        stack.enter_context(policy.unchanged())
        stack.enter_context(base.reference.unchanged())
        later = envs is base and base.can_pay_later  # no wrapper looks at the rewards
        settle = stack.enter_context(base.paying_later()) if later else None
        _write(
            envs, policy, generator, buffer, obs, infos, options=options, kl_coef=coef, processes=processes, mask=mask
        )
        policy.release()
        _return_memory(policy)  # before the reference packs its weights
        if settle is not None:
            buffer.add_scored(settle())
        base.reference.release()
        _return_memory(policy)
    rollout = buffer.rollout(coef, base.settings.turn_discount)
    if settle is not None:
        _spread(rollout)
    elif base.settings.kl_mode == "lump" or any(episode.token_scores for episode in rollout.finished):
        _check_pay(rollout)
        _spread(rollout)
    if processes.size > 1:
        rollout = join(processes.gather(rollout))
        base.kl_controller.coef = coef  # not what the rows of this process have made of it
        _adapt(base.kl_controller, rollout.finished)
    return rollout


def _return_memory(policy: TextPolicy) -> None:
    """Between phases of an iteration, return what is free to the system, unless the model is a small one."""
    if sum(parameter.nbytes for parameter in policy.parameters()) >= _LARGE:
        return_memory()


def _write(  # noqa: PLR0917
    envs: VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    buffer: RolloutBuffer,
    obs: Observation,
    infos: dict[str, Any],
    *,
    options: dict[str, Any] | None,
    kl_coef: float,
    processes: Processes,
    mask: ActionMask | None,
) -> None:
    """Write a buffer's episodes, which have begun with ``obs`` and ``infos``; arguments as those of ``collect``."""
    base, allowed = text_env(envs), _allowed(infos, None)
    while any(writing := processes.counts(int(buffer.writing.sum()))):
        uniform = None if generator is None else _uniform(generator, writing, processes.rank)
        if not buffer.writing.any():  # other processes still write
            continue
        rows = np.flatnonzero(buffer.writing)
        masks = allowed if mask is None else mask(obs, rows, allowed)
        actions, values = policy.act(obs, uniform=uniform, rows=rows, masks=masks)
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        buffer.append(rows, masks, log_probs=policy.action_log_prob(actions), values=values, rewards=rewards)
        allowed = _allowed(infos, allowed)
        if not (terminations | truncations)[rows].any():
            continue
        ended = rows[(terminations | truncations)[rows]]
        own, cut = base.over[ended], ended[~terminations[ended]]  # not own: a wrapper has cut it
        if len(cut):
            if not base.over[cut].all():
                _refuse_truncated_lump(base)
            buffer.bootstrap[buffer.episode[cut]] = policy.values(obs, cut)
        buffer.finish(ended[own], ended[~own], base.written_in, base.last_episodes)
        free = np.flatnonzero(~buffer.writing)
        if buffer.unassigned and len(free) * _AT_ONCE >= envs.num_envs:
            buffer.assign(free[: buffer.unassigned])
            adapted, base.kl_controller.coef = base.kl_controller.coef, kl_coef  # all episodes pay the same for the KL
            obs, infos = envs.reset(options={**buffer.options(options), "reset_mask": buffer.assigned})
            base.kl_controller.coef = adapted
            buffer.begin(base.row_prompts)
            allowed = _allowed(infos, allowed)


def _refuse_truncated_lump(base: TextVectorEnv) -> None:
    """Raise where a wrapper has cut an episode whose KL is paid at its end."""
    if base.settings.kl_mode == "lump":
        raise TextEnvError(
            "A wrapper truncated an episode whose KL is paid in a lump at its end, so it would never be paid. "
            "Use kl_mode='dense', where every token is paid at once."
        )


_LARGE = 2**28
"""Bytes of weights from which asking the system for memory again takes little of the time of an iteration."""
_AT_ONCE = 4
"""Rows begin anew when a quarter of them is over: reading the prompts of few takes nearly as long as those of many."""


def _allowed(infos: dict[str, Any], before: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which tokens the environment allows: infos are of the rows that went on, or began, alone."""
    if "action_mask" not in infos:
        return before
    allowed = np.asarray(infos["action_mask"]).astype(bool)
    return allowed if before is None else np.where(np.asarray(infos["_action_mask"])[:, None], allowed, before)


def episode_starts(prompts: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt | int]:
    """Return what ``count`` episodes begin with, as ``sample_episodes`` takes it.

    Args:
        prompts: Taken in turn. None where a world begins episodes by itself: it is seeded with numbers, then.
        count: How many.
        seed: The first of these numbers.
    """
    return [prompts[place % len(prompts)] if prompts else seed + place for place in range(count)]


def sample_episodes(
    envs: VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    prompts: Sequence[Any],
    *,
    processes: Processes = ALONE,
    mask: ActionMask | None = None,
) -> list[Episode]:
    """Let ``policy`` write one episode from each prompt.

    One process begins a prompt whenever rows are free; several take as many as they have rows, group by group.
    A prompt is whatever ``reset(options={"prompt": ...})`` takes for a row, or a number that seeds a world which begins
    by itself.

    Raises:
        TextEnvError: ``prompts`` is no list, or ``collect`` refuses something.
    """
    envs = vectorize(envs)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TextEnvError(f"prompts={short(prompts)}: expected a list of prompts.")
    name = "world_seed" if all(isinstance(prompt, int) for prompt in prompts) else "prompt"
    episodes: list[Episode] = []
    size = envs.num_envs * processes.size
    step = len(prompts) if processes.size == 1 else size
    for begin in range(0, len(prompts), max(1, step)):
        group = list(prompts[begin : begin + step])
        filled = list(processes.own(group + [group[-1]] * (size - len(group))))
        options = {name: filled}
        rollout = collect(
            envs, policy, generator, episodes=len(filled), options=options, processes=processes, mask=mask
        )
        episodes += rollout.finished[: len(group)]
    return episodes


def _uniform(generator: torch.Generator, rows: Sequence[int], rank: int) -> torch.Tensor:
    """Return the numbers that one process draws for the rows of all, those of ``rank`` alone, ``(rows[rank], 1)``."""
    drawn = torch.rand(sum(rows), 1, generator=generator, device=generator.device)
    return drawn if len(rows) == 1 else drawn[sum(rows[:rank]) :][: rows[rank]]


def _adapt(controller: AdaptiveKL, episodes: Sequence[Episode]) -> None:
    """Move the KL coefficient as one environment with these rows does: as they end, those of a step at a time."""
    for length in sorted({len(episode.completion_ids) for episode in episodes}):
        totals = [float(np.sum(episode.kl)) for episode in episodes if len(episode.completion_ids) == length]
        controller.update(float(np.mean(totals)), len(totals))


def _spread(rollout: Rollout) -> None:
    """Put rewards at the tokens that earned them; they were paid at the end of an episode, or not at all yet."""
    for rewards, episode in zip(rollout.rewards, rollout.episodes, strict=True):
        if episode is not None:
            rewards[: len(episode.token_rewards)] = episode.token_rewards


def _check_pay(rollout: Rollout) -> None:
    """Raise where an episode was not paid what its tokens have earned."""
    for rewards, episode in zip(rollout.rewards, rollout.episodes, strict=True):
        if episode is None:
            continue
        paid, earned = float(rewards.sum()), math.fsum(episode.token_rewards)
        if abs(paid - earned) > 1e-4 * max(1.0, abs(paid)):
            raise TextEnvError(
                f"An episode was paid {paid:.6g}, but its tokens earned {earned:.6g}: a wrapper changes the reward. "
                "Use kl_mode='dense' and a reward with one score a text, where every token is paid at once."
            )
