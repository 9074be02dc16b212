"""Frozen data and protocols that every part of textenv agrees on.

This module imports numpy and nothing of ours, so that a reward or an agent written elsewhere can depend on it
without pulling in a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ActionLogProb",
    "Episode",
    "FloatArray",
    "FullDistribution",
    "IntArray",
    "KLEstimator",
    "KLMode",
    "Observation",
    "Prompt",
    "Reward",
    "StopReason",
    "TextEnvError",
]

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]
Observation: TypeAlias = dict[str, NDArray[Any]]
StopReason: TypeAlias = Literal["eos", "stop", "length"]
KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "full"]
KLMode: TypeAlias = Literal["dense", "lump"]


class TextEnvError(ValueError):
    """The one error class: says what was given, what was expected, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an episode starts from.

    Attributes:
        text: The prompt as people read it.
        ids: Its token ids, never empty, shape ``(prompt_length,)``.
        columns: The other columns of the prompt data set, handed to the reward as they are.
    """

    text: str
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode, token by token. ``T`` is the number of tokens that the agent wrote.

    Attributes:
        prompt: The prompt's text.
        completion: The text that was scored: without special tokens, cut before a stop string.
        prompt_ids: Token ids of the prompt.
        completion_ids: Token ids of the completion as sampled, the end-of-sequence token included, shape ``(T,)``.
        completion_tokens: The text of each token of ``completion_ids``.
        kl: KL penalty per token in nats, before the coefficient, shape ``(T,)``.
        token_rewards: What each token earned: ``-kl_coef * kl`` and, at the last, the score; shape ``(T,)``.
        score: The reward model's score, a missing end-of-sequence penalty included.
        stop_reason: ``"eos"``, ``"stop"`` (a stop string) or ``"length"`` (the token budget).
    """

    prompt: str
    completion: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    completion_tokens: tuple[str, ...]
    kl: tuple[float, ...]
    token_rewards: tuple[float, ...]
    score: float
    stop_reason: StopReason


@runtime_checkable
class Reward(Protocol):
    """Scores a batch of ``n`` finished completions; functions written for TRL fit unmodified."""

    def __call__(
        self,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> Sequence[float]:
        """Return ``n`` finite floats, one for each completion."""
        ...


@runtime_checkable
class ActionLogProb(Protocol):
    """The behaviour policy as the environment sees it."""

    def action_log_prob(self, actions: IntArray) -> NDArray[Any]:
        """Return ``log pi(a|s)`` in nats, shape ``(num_envs,)``, of the actions it has just chosen."""
        ...


@runtime_checkable
class FullDistribution(ActionLogProb, Protocol):
    """A behaviour policy that can also hand over its whole next-token distribution (``kl_estimator="full"``)."""

    def action_log_probs(self) -> NDArray[Any]:
        """Return ``log pi(.|s)`` in nats, shape ``(num_envs, vocab_size)``, at the state it has just acted in."""
        ...
