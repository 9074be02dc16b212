"""Episodes collected through ``reset`` and ``step`` of a vector environment, as arrays to learn from."""

from __future__ import annotations

import contextlib
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

from textenv.env.kl import AdaptiveKL
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.rollouts.distributed import ALONE, World
from textenv.types import Episode, FloatArray, IntArray, Observation, Prompt, TextEnvError

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
        prompts: What each began with, its columns included; several may have the same text and other columns.
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
    prompts: tuple[Prompt, ...]
    kl_coef: float

    def rows(self, picks: IntArray) -> Rollout:
        """Return the episodes of some rows, in the order of ``picks``."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen: dict[str, Any] = {name: array[picks] for name, array in arrays.items() if isinstance(array, np.ndarray)}
        episodes, prompts = (
            tuple(column[row] for row in picks.tolist() if column) for column in (self.episodes, self.prompts)
        )
        return dataclasses.replace(self, **chosen, episodes=episodes, prompts=prompts)

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
    episodes: int | None = None,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    world: World = ALONE,
    mask: ActionMask | None = None,
) -> Rollout:
    """Let ``policy`` write an episode in every row, and more in the rows that finish first.

    Several processes write the episodes that one process with all their rows would: they step together, with the
    prompts and random numbers of their own rows out of those of all, and each returns the episodes of all. (With more
    episodes than rows, one process would hand them out in another order.)

    Args:
        envs: From ``vectorise``; the policy is attached to it while it writes, and whatever was before is afterwards.
        policy: Acts; its caches are emptied first, and so are those of the reference and the mask, so that the numbers
            do not depend, in their last bits, on what was before.
        generator: Source of randomness, in the same state in every process; None for the likeliest tokens.
        episodes: How many this process writes, at least one a row; None for one a row. So many are begun and all are
            finished, so that short ones are not preferred. Rows begin anew a few at a time.
        seed: Seeds the environment, if given.
        options: Handed to ``reset``; a list of prompts has one for each episode.
        world: The processes that write, each in an environment of as many rows.
        mask: Which tokens the policy may draw; None for all that the environment allows.

    Returns:
        The episodes of all processes, in the order of their ranks, and of their prompts.

    Raises:
        TextEnvError: There are fewer episodes than rows, or a wrapper changed rewards that are paid in a lump, or kept
            them from being paid.
    """
    base = text_env(envs)
    policy.forget()
    base.reference.forget()
    if mask is not None:
        mask.forget()
    n = envs.num_envs
    total = n if episodes is None else episodes
    if total < n:
        raise TextEnvError(f"episodes={total}: expected at least {n}, one for each row.")
    coef = base.kl_controller.coef
    desk = _Desk(n, total, base)
    desk.take(np.arange(n))
    obs, infos = envs.reset(seed=None if seed is None else seed + world.rank * n, options=desk.options(options))
    desk.begin(obs)
    allowed = _allowed(infos, None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(base.attached(policy))
        stack.enter_context(policy.unchanged())
        stack.enter_context(base.reference.unchanged())
        # where no wrapper looks at the rewards
        settle = stack.enter_context(base.paying_later()) if envs is base and base.can_pay_later else None
        while any(writing := world.counts(int(desk.alive.sum()))):
            uniform = None if generator is None else _uniform(generator, writing, world.rank)
            if not desk.alive.any():  # others still write
                continue
            rows = np.flatnonzero(desk.alive)
            masks = allowed if mask is None else mask(obs, rows, allowed)
            actions, values = policy.act(obs, uniform=uniform, rows=rows, masks=masks)
            obs, rewards, terminations, truncations, infos = envs.step(actions)
            desk.write(rows, masks, log_probs=policy.action_log_prob(actions), values=values, rewards=rewards)
            allowed = _allowed(infos, allowed)
            if not (terminations | truncations)[rows].any():
                continue
            cut = rows[truncations[rows] & ~terminations[rows]]
            if len(cut) and base.settings.kl_mode == "lump":
                raise TextEnvError(
                    "A wrapper truncated an episode whose KL is paid in a lump at its end, so it would never be paid. "
                    "Use kl_mode='dense', where every token is paid at once."
                )
            if len(cut):
                desk.bootstrap[desk.episode[cut]] = policy.values(obs, cut)
            desk.end(rows[terminations[rows]], cut, obs)
            free = np.flatnonzero(~desk.alive)
            if desk.begun < total and len(free) * _AT_ONCE >= n:
                desk.take(free[: total - desk.begun])
                adapted, base.kl_controller.coef = base.kl_controller.coef, coef  # they all pay the same for the KL
                obs, infos = envs.reset(options={**desk.options(options), "reset_mask": desk.taken})
                base.kl_controller.coef = adapted
                desk.begin(obs)
                allowed = _allowed(infos, allowed)
        if settle is not None:
            desk.pay(settle())
    rollout = desk.rollout(coef)
    if base.settings.kl_mode == "lump":
        if settle is None:
            _check_pay(rollout)
        _spread(rollout)
    if world.size > 1:
        rollout = _joined(world.gather(rollout))
        base.kl_controller.coef = coef  # not what the rows of this process have made of it
        _adapt(base.kl_controller, rollout.finished)
    return rollout


_AT_ONCE = 4
"""Rows begin anew when a quarter of them is over: reading the prompts of few takes nearly as long as those of many."""


class _Desk:
    """The episodes of a rollout as they are written, in whichever row.

    Attributes:
        begun: How many rows have taken.
        episode: That of each row.
        taken: Rows that have taken one, and have written nothing of it.
        alive: Rows that write.
        bootstrap: That of each episode.
    """

    def __init__(self, rows: int, total: int, base: TextVectorEnv) -> None:
        self.begun, self._total, self._base = 0, total, base
        self.episode, self._place = np.zeros((2, rows), dtype=np.int64)
        self.taken, self.alive = np.zeros((2, rows), dtype=np.bool_)
        self.bootstrap = np.zeros(total, dtype=np.float32)
        width = base.max_prompt_tokens + base.settings.max_new_tokens
        self._ids = np.full((total, width), base.reference.pad_id, dtype=np.int64)
        self._starts, self._lengths = np.zeros((2, total), dtype=np.int64)
        self._finished: list[Episode | None] = [None] * total
        self._prompts: list[Prompt] = [base.prompts[0]] * total
        self._ended: list[int] = []  # the episodes, in the order in which they did
        self._columns: dict[str, list[NDArray[Any]]] = {}

    def take(self, rows: IntArray) -> None:
        """Give an episode that nobody writes to each of some rows."""
        self.episode[rows] = np.arange(self.begun, self.begun + len(rows))
        self.begun += len(rows)
        self._place[rows], self.taken[rows] = 0, True

    def options(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """Return options for ``reset``, of whose lists of one item an episode each row gets that of its own."""
        return {
            name: [value[episode] for episode in self.episode]
            if isinstance(value, list) and len(value) == self._total
            else value
            for name, value in (given or {}).items()
        }

    def begin(self, obs: Observation) -> None:
        """Take down the prompts of the rows that have taken an episode."""
        self._starts[self.episode[self.taken]] = observation_arrays(obs)[1][self.taken]
        for row in np.flatnonzero(self.taken).tolist():
            self._prompts[self.episode[row]] = self._base.row_prompts[row]
        self.alive |= self.taken
        self.taken = np.zeros_like(self.taken)

    def write(self, rows: IntArray, masks: NDArray[np.bool_] | None, **columns: NDArray[Any]) -> None:
        """Take down a token of each of some rows, and what is known of it, each of shape ``(rows of all,)``."""
        given = {"episode": self.episode, "place": self._place, "mask": self.alive, **columns}
        given |= {} if masks is None else {"action_masks": np.packbits(masks, axis=1)}
        for name, array in given.items():
            self._columns.setdefault(name, []).append(array[rows])
        self._place[rows] += 1

    def end(self, terminated: IntArray, cut: IntArray, obs: Observation) -> None:
        """Take down the texts of rows that are over; those that were cut have no score."""
        over = np.concatenate((terminated, cut))
        if not len(over):
            return
        self.alive[over] = False
        texts, lengths = observation_arrays(obs)
        self._ids[self.episode[over]], self._lengths[self.episode[over]] = texts[over], lengths[over]
        self._ended += self.episode[terminated].tolist()
        for row in terminated:
            self._finished[self.episode[row]] = self._base.last_episodes[row]

    def pay(self, episodes: Sequence[Episode]) -> None:
        """Take down episodes that have ended without being paid, in the order in which they did."""
        for place, episode in zip(self._ended, episodes, strict=True):
            self._finished[place] = episode

    def rollout(self, kl_coef: float) -> Rollout:
        """Return what was taken down, episode by episode."""
        columns = {name: np.concatenate(arrays) for name, arrays in self._columns.items()}
        where = columns.pop("episode"), columns.pop("place")
        time = int(where[1].max()) + 1
        laid_out: dict[str, Any] = {"action_masks": None}
        for name, column in columns.items():
            dtype = np.float32 if column.dtype.kind == "f" else column.dtype
            laid_out[name] = np.zeros((self._total, time, *column.shape[1:]), dtype=dtype)
            laid_out[name][where] = column
        return Rollout(
            input_ids=self._ids[:, : int(self._lengths.max())].copy(),
            lengths=self._lengths,
            starts=self._starts,
            bootstrap=self.bootstrap,
            episodes=tuple(self._finished),
            prompts=tuple(self._prompts),
            kl_coef=kl_coef,
            **laid_out,
        )


def _allowed(infos: dict[str, Any], before: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which tokens the environment allows: infos are of the rows that went on, or began, alone."""
    if "action_mask" not in infos:
        return before
    allowed = np.asarray(infos["action_mask"]).astype(bool)
    return allowed if before is None else np.where(np.asarray(infos["_action_mask"])[:, None], allowed, before)


def sample_episodes(
    envs: VectorEnv[Any, Any, Any],
    policy: TextPolicy,
    generator: torch.Generator | None,
    prompts: Sequence[Any],
    *,
    world: World = ALONE,
    mask: ActionMask | None = None,
) -> list[Episode]:
    """Let ``policy`` write one episode from each prompt.

    One process begins a prompt whenever rows are free; several take as many as they have rows, group by group.
    A prompt is whatever ``reset(options={"prompt": ...})`` takes for a row.
    """
    episodes: list[Episode] = []
    size = envs.num_envs * world.size
    step = len(prompts) if world.size == 1 else size
    for begin in range(0, len(prompts), max(1, step)):
        group = list(prompts[begin : begin + step])
        filled = list(world.own(group + [group[-1]] * (size - len(group))))
        options = {"prompt": filled}
        rollout = collect(envs, policy, generator, episodes=len(filled), options=options, world=world, mask=mask)
        episodes += rollout.finished[: len(group)]
    return episodes


def _uniform(generator: torch.Generator, rows: Sequence[int], rank: int) -> torch.Tensor:
    """Return the numbers that one process draws for the rows of all, those of ``rank`` alone, ``(rows[rank], 1)``."""
    drawn = torch.rand(sum(rows), 1, generator=generator, device=generator.device)
    return drawn if len(rows) == 1 else drawn[sum(rows[:rank]) :][: rows[rank]]


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

    names = {field.name for field in dataclasses.fields(Rollout)} - {"episodes", "prompts", "kl_coef"}
    episodes = tuple(episode for part in parts for episode in part.episodes)
    prompts = tuple(prompt for part in parts for prompt in part.prompts)
    columns = {name: stacked(name) for name in names}
    return Rollout(**columns, episodes=episodes, prompts=prompts, kl_coef=parts[0].kl_coef)


def _adapt(controller: AdaptiveKL, episodes: Sequence[Episode]) -> None:
    """Move the KL coefficient as one environment with these rows does: as they end, those of a step at a time."""
    for length in sorted({len(episode.completion_ids) for episode in episodes}):
        totals = [float(np.sum(episode.kl)) for episode in episodes if len(episode.completion_ids) == length]
        controller.update(float(np.mean(totals)), len(totals))


def _spread(rollout: Rollout) -> None:
    """Put rewards where they were earned; they were paid at the end of an episode, or not at all yet."""
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
                "Use kl_mode='dense', where every token is paid at once."
            )
