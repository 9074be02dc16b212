"""Checks that an environment and the policy in it measure what they claim to: ``textenv doctor``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from scipy import stats
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from textenv.env.registry import make_envs
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.models.probe import LARGEST_ERROR
from textenv.models.rounding import Precision
from textenv.rollouts.collect import Rollout, collect, text_env
from textenv.types import Episode, TextEnvError

__all__ = ["Finding", "examine"]

_DRAWS = 4000
_MAX_PROBABILITIES = 2**22  # numbers that are drawn from at a time
_ROUNDED: tuple[Precision, ...] = ("bfloat16", "int8")
_TEXTS = "prompt and completion are the text of all tokens"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        ok: Whether it holds.
        detail: The figures.
    """

    name: str
    ok: bool
    detail: str


def examine(env_id: str, settings: dict[str, Any], *, num_envs: int = 16, seed: int = 0) -> Iterator[Finding]:
    """Check an environment with a fresh policy, a copy of its reference; yields a finding a check.

    Args:
        env_id: A registered id.
        settings: Keywords of ``gymnasium.make``.
        num_envs: Rows of the vector environment.
        seed: Seeds prompts and tokens.
    """
    envs: Any = make_envs(env_id, num_envs, **settings)
    base = text_env(envs)
    # Loaded once: the weights may be most of the memory. An environment with a model of its own is given none.
    loaded = {**settings, "model": base.reference} if "model" in settings else settings
    yield _checker("gymnasium check_env", lambda: check_env(gym.make(env_id, **loaded).unwrapped))
    yield _checker("stable-baselines3 check_env", lambda: sb3_check_env(gym.make(env_id, **loaded)))
    base.reference.release()
    policy = TextPolicy(base.reference, temperature=base.settings.temperature)
    generator = torch.Generator(policy.lm.device).manual_seed(seed)
    began = time.perf_counter()
    rollout = collect(envs, policy, generator, seed=seed)
    seconds = time.perf_counter() - began

    kl = max(abs(value) for episode in rollout.finished for value in episode.kl)
    yield Finding("KL of the untrained policy is 0", kl <= 1e-4, f"largest |KL_t| {kl:.1e} nats")

    beta = base.settings.kl_coef
    worst = max(
        abs(sum(e.token_rewards) - (e.score + e.world_reward + sum(e.shaping) - beta * sum(e.kl)))
        for e in rollout.finished
    )
    yield Finding("rewards add up to score - beta * KL", worst <= 1e-5, f"largest difference {worst:.1e}")

    off = float(_log_ratios(policy, rollout).expm1().abs().max())
    yield Finding("training forward agrees with the sampler (ratio 1)", off <= 1e-4, f"largest |ratio - 1| {off:.1e}")

    yield _texts(base, rollout.finished)
    yield _ends(base)
    yield _draws(policy, envs, generator, seed)
    for precision in _ROUNDED:
        yield _rounded(policy, envs, precision, seed)
    speed = rollout.tokens / seconds
    yield Finding(
        "throughput", True, f"{speed:,.0f} tokens/s, {num_envs} rows, {rollout.tokens} tokens, values recorded"
    )


def _checker(name: str, check: Callable[[], object]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check()
        return Finding(name, True, "no warnings")
    except Exception as error:
        return Finding(name, False, f"{type(error).__name__}: {error}")


def _rounded(policy: TextPolicy, envs: Any, precision: Precision, seed: int) -> Finding:
    """How far the policy is from its rounded copy: what ``rollout_precision`` asks the agent to correct for."""
    name = f"rollouts in {precision}"
    generator = torch.Generator(policy.lm.device).manual_seed(seed)
    try:
        with policy.rounded(precision):
            rollout = collect(envs, policy, generator, seed=seed)
    except TextEnvError as error:
        return Finding(name, True, f"not here: {error}")
    log_ratios = _log_ratios(policy, rollout)
    mean, largest = float(log_ratios.abs().mean()), float(log_ratios.abs().max())
    kl = float(np.mean([sum(episode.kl) for episode in rollout.finished]))
    advice = "" if mean <= LARGEST_ERROR else f"not advised, mean |log ratio| above {LARGEST_ERROR}: "
    return Finding(
        name,
        True,
        f"{advice}first ratio {float(log_ratios.exp().mean()):.4f}, |log ratio| mean {mean:.1e}, largest "
        f"{largest:.1e}; first KL {kl:.1e} nats an episode",
    )


def _log_ratios(policy: TextPolicy, rollout: Rollout) -> torch.Tensor:
    """Return log pi of every token written, as a training forward has it, less that when it was drawn, ``(tokens,)``.

    An episode at a time, so that few logits are in memory.
    """
    masks = None
    if rollout.action_masks is not None:
        bits = np.unpackbits(rollout.action_masks[rollout.mask], axis=1, count=policy.lm.vocab_size)
        masks = torch.from_numpy(bits.astype(bool)).to(policy.lm.device)
    found: list[torch.Tensor] = []
    done = 0
    for row in range(len(rollout.mask)):
        ids, lengths, places, _ = rollout.tensors(np.array([row]), policy.lm.device, policy.lm.vocab_size)
        allowed = None if masks is None else masks[done : done + len(places)]
        with torch.no_grad():
            now = policy.evaluate(ids, lengths, places, allowed, entropy=False)
        found.append(now.log_probs.cpu())
        done += len(places)
    return torch.cat(found) - torch.from_numpy(rollout.log_probs[rollout.mask])


def _texts(base: TextVectorEnv, episodes: Sequence[Episode]) -> Finding:
    """What a reward and people read must be what the model has read and written."""
    lm = base.reference
    read: list[tuple[str, str]] = []  # what the model reads or writes, and what others read of it
    for prompt in base.prompts:
        whole, begun = lm.decode(prompt.ids), lm.prompt(prompt.ids[:-1])
        read.append((whole, begun.text + lm.completion_text(begun, prompt.ids[-1:])))
        if prompt.given is None:  # a chat template's special tokens are decoded to nothing
            read.append((whole, prompt.text))
    for episode in episodes:
        whole = lm.decode((*episode.prompt_ids, *episode.completion_ids))
        text = lm.decode(episode.prompt_ids) + episode.completion
        read.append((whole[: len(text)] if episode.stop_reason == "stop" else whole, text))
    for model, others in read:
        if model != others:
            return Finding(_TEXTS, False, f"{model[-60:]!r} of the model is {others[-60:]!r} to the reward")
    return Finding(_TEXTS, True, f"{len(base.prompts)} prompts, {len(episodes)} completions")


def _ends(base: TextVectorEnv) -> Finding:
    """An end token must end a text and padding must not matter, also where the two share an id."""
    lm = base.reference
    ids = np.array([base.prompts[0].ids], dtype=np.int64)
    length = np.array([ids.shape[1]])
    padded = np.concatenate([ids, np.full((1, 3), lm.pad_id)], axis=1)
    other = np.concatenate([ids, np.full((1, 3), lm.eos_ids[0])], axis=1)
    logits = [lm.next_token_logits(tokens, length) for tokens in (ids, padded, other)]
    same = max(float((logits[0] - row).abs().max()) for row in logits[1:])
    shared = "pad shares an id with it" if lm.pad_id in lm.eos_ids else f"pad {lm.pad_id}"
    return Finding(
        "padding is not read", same <= 1e-4, f"end of sequence {lm.eos_ids}, {shared}, difference {same:.1e}"
    )


def _draws(policy: TextPolicy, envs: Any, generator: torch.Generator, seed: int) -> Finding:
    """Tokens must be drawn with the probabilities that are reported of them (chi-squared test).

    One forward reads the state, and the policy draws from its logits again and again, few times at once.
    """
    obs, infos = envs.reset(seed=seed)
    row = np.zeros(1, dtype=np.int64)
    masks = infos["action_mask"].astype(bool) if "action_mask" in infos else None
    policy.forget()
    policy.act(obs, generator=None, rows=row, masks=masks)
    log_probs = policy.action_log_probs()[0].astype(np.float64)
    counts = np.zeros(policy.lm.vocab_size)
    at_once = max(1, _MAX_PROBABILITIES // policy.lm.vocab_size)
    for begin in range(0, _DRAWS, at_once):
        np.add.at(counts, policy.draw_again(min(at_once, _DRAWS - begin), generator), 1)
    expected = np.exp(log_probs) * _DRAWS
    common = expected >= 5
    observed = [*counts[common], counts[~common].sum()]
    wanted = np.array([*expected[common], expected[~common].sum()])
    if len(wanted) < 2 or wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    if len(wanted) < 2:
        raise TextEnvError("the policy gives one token all probability; nothing to test")
    p = float(stats.chisquare(observed, wanted * (sum(observed) / wanted.sum())).pvalue)
    return Finding("tokens are drawn as often as reported", p > 1e-4, f"chi-squared p = {p:.3f}, {_DRAWS} draws")
