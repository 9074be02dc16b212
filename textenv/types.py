"""Frozen data and protocols that every part of textenv agrees on.

This module imports numpy and nothing of ours, so that a reward or an agent written elsewhere can depend on it
without pulling in a language model.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ActionLogProb",
    "Conversation",
    "EnumerableWorld",
    "Episode",
    "FloatArray",
    "FullDistribution",
    "IntArray",
    "KLEstimator",
    "KLMode",
    "Message",
    "Observation",
    "Prompt",
    "Ranking",
    "Reward",
    "StatefulReward",
    "StopReason",
    "TextEnvError",
    "Turn",
    "TurnEnd",
    "World",
    "WorldAnswer",
    "is_stateful",
]

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]
Observation: TypeAlias = dict[str, NDArray[Any]]
TurnEnd: TypeAlias = Literal["eos", "stop", "length"]
"""Why the agent's turn has ended: an end-of-sequence token, a stop string, or the token budget."""
StopReason: TypeAlias = Literal["eos", "stop", "length", "world", "turns", "context"]
"""Why an episode has ended. Without a world it ends with its only turn; with one, because the world says so, or because
the number of turns or the room for tokens is spent."""
KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "full"]
KLMode: TypeAlias = Literal["dense", "lump"]
Message: TypeAlias = Mapping[str, Any]
"""``role`` and ``content``, both texts, and whatever else a chat template reads."""
Conversation: TypeAlias = tuple[Message, ...]


class TextEnvError(ValueError):
    """The one error class: says what was given, what was expected, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the agent wrote until a world answered, and the answer.

    Attributes:
        text: What the agent wrote, as the world was given it: without special tokens, cut before a stop string.
        tokens: Number of tokens that the agent wrote in it.
        end: Why the turn ended.
        answer: The world's answer, a text or messages; of the last turn of an episode, nobody reads it.
        answer_ids: Token ids of the answer, as the model reads them before the next turn; empty where none follows.
        reward: What the world paid.
    """

    text: str
    tokens: int
    end: TurnEnd
    answer: str | Conversation
    answer_ids: tuple[int, ...]
    reward: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an episode starts from.

    Attributes:
        text: The prompt as the model reads it: with a chat template, what the template made of it.
        ids: Its token ids, never empty, shape ``(prompt_length,)``.
        columns: The other columns of the prompt data set, handed to the reward as they are.
        given: What a chat template made the text of, a conversation or a user's message; None without a template.
    """

    text: str
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    given: str | Conversation | None = None

    def for_reward(self, completion: str, turns: Sequence[Turn] = ()) -> tuple[Any, Any]:
        """Return the prompt and a completion as a reward gets them, in the form in which the prompt was given.

        A text is a text. A conversation is a list of messages, and so is the completion: one message of the assistant,
        which holds the beginning too where the conversation gave one; with turns, its messages and the answers between
        them. It is the form of TRL's trainers.

        Args:
            completion: The text.
            turns: The turns that it is made of, where a world answered.
        """
        if self.given is None or isinstance(self.given, str):
            return self.text if self.given is None else self.given, completion
        messages = [copy.deepcopy(dict(message)) for message in self.given]  # a reward may change them
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        if not turns:
            return messages, [{"role": "assistant", "content": begun + completion}]
        said = [{"role": "assistant", "content": begun + turns[0].text}]
        for before, turn in itertools.pairwise(turns):
            answer = before.answer
            said += [{"role": "user", "content": answer}] if isinstance(answer, str) else map(dict, answer)
            said.append({"role": "assistant", "content": turn.text})
        return messages, copy.deepcopy(said)


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode, token by token, and what it was paid. ``T`` is the number of tokens that the agent wrote.

    Attributes:
        start: What it started from: the prompt, and the columns that the reward was given.
        completion: The text that was scored: without special tokens, cut before a stop string.
        completion_ids: Token ids of the completion as sampled, the end-of-sequence token included, shape ``(T,)``.
        completion_tokens: The text of each token of ``completion_ids``.
        log_probs: log pi of each token in nats as the reward took it, shape ``(T,)``; 0 where no policy was known.
        ref_log_probs: The same of the reference, shape ``(T,)``.
        kl: KL penalty per token in nats, before the coefficient, shape ``(T,)``.
        token_rewards: What each token earned: ``-kl_coef * kl``, at the last of a turn what the world paid, and at the
            last the score; shape ``(T,)``.
        score: The reward model's score, a missing end-of-sequence penalty included; 0 where the world truncated it.
        stop_reason: Why it ended, see ``StopReason``.
        turns: The turns, where a world answers; without a world none.
        truncated: Whether the world cut it off, so that it has no score and an agent has to bootstrap.
    """

    start: Prompt
    completion: str
    completion_ids: tuple[int, ...]
    completion_tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    ref_log_probs: tuple[float, ...]
    kl: tuple[float, ...]
    token_rewards: tuple[float, ...]
    score: float
    stop_reason: StopReason
    turns: tuple[Turn, ...] = ()
    truncated: bool = False

    @property
    def world_reward(self) -> float:
        """What the world has paid in all turns together."""
        return math.fsum(turn.reward for turn in self.turns)

    @property
    def prompt(self) -> str:
        """The prompt's text, as the model reads it."""
        return self.start.text

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of the prompt."""
        return self.start.ids

    @property
    def columns(self) -> Mapping[str, Any]:
        """The other columns of the prompt data set, as the reward was given them."""
        return self.start.columns


@dataclass(frozen=True, slots=True)
class Ranking:
    """One judgment of several completions of a prompt: what a reward model learns from. A comparison ranks two.

    Attributes:
        prompt: A text, or a conversation.
        completions: Two or more texts; of a conversation, what the assistant says.
        ranks: Rank of each completion, 0 being the best; equal ranks are ties. None for one that is below all that
            have a rank, in no known order: in a choice of the best of four, one has rank 0 and three have None.
        annotator: Who judged.
        margin: How much better the best is than the worst, in units of score; None where nobody said.
    """

    prompt: str | Conversation
    completions: tuple[str, ...]
    ranks: tuple[int | None, ...]
    annotator: str = ""
    margin: float | None = None

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            TextEnvError: There are not two completions, or not one rank for each, a rank is no whole number below the
                number of completions, none of them is the best, or the margin is no finite number.
        """
        if len(self.completions) < 2 or len(self.ranks) != len(self.completions):
            raise TextEnvError(
                f"A ranking of {len(self.completions)} completions has the ranks {list(self.ranks)}: expected at least "
                "two completions, and one rank for each."
            )
        known = [rank for rank in self.ranks if rank is not None]
        whole = all(isinstance(rank, Integral) and not isinstance(rank, bool) for rank in known)
        if not whole or min(known, default=-1) != 0 or max(known) >= len(self.ranks):
            raise TextEnvError(
                f"ranks={list(self.ranks)}: expected whole numbers from 0, which is the best, to "
                f"{len(self.ranks) - 1}, or None; one of them 0."
            )
        if self.margin is not None and (
            not isinstance(self.margin, Real) or isinstance(self.margin, bool) or not math.isfinite(self.margin)
        ):
            raise TextEnvError(f"margin={self.margin!r}: expected a finite number, or None.")

    def pairs(self) -> list[tuple[int, int, bool]]:
        """Return ``(better, worse, tied)``, indices of completions, for each pair whose order is known."""
        found = []
        for first in range(len(self.ranks)):
            for second in range(first + 1, len(self.ranks)):
                one, other = self.ranks[first], self.ranks[second]
                if one is None and other is None:
                    continue
                if other is None or (one is not None and one <= other):
                    found.append((first, second, one == other))
                else:
                    found.append((second, first, False))
        return found


@runtime_checkable
class Reward(Protocol):
    """Scores a batch of ``n`` finished completions; functions written for TRL fit unmodified.

    Prompts come in the form in which they were given. For a text, both it and its completion are texts. For a
    conversation both are lists of messages, the completion being ``[{"role": "assistant", "content": ...}]``.

    A class writes ``def __call__(self, /, *, ...)``: without the ``/``, a column cannot be named ``self``.
    """

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> Sequence[float]:
        """Return ``n`` finite floats, one for each completion."""
        ...


@runtime_checkable
class StatefulReward(Reward, Protocol):
    """A reward whose scores depend on what it has scored before; a run saves its state with its checkpoints."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that ``state_dict`` returned."""
        ...


def is_stateful(reward: object) -> TypeGuard[StatefulReward]:
    """Tell whether a reward has a state that a run saves.

    The ``state_dict`` that every ``torch.nn.Module`` has is no such state: it holds weights, which scoring leaves as
    they are. A module that keeps statistics of what it scores overrides it to return JSON values.
    """
    own = getattr(type(reward), "state_dict", None)
    return isinstance(reward, StatefulReward) and not str(getattr(own, "__module__", "")).startswith("torch.nn.")


@runtime_checkable
class World(Protocol):
    """What answers the agent: a text-level environment, with the methods of ``gymnasium.Env``.

    A text may be a list of messages instead, each a mapping with ``role`` and ``content``, for models with a chat
    template. A world that is a function of its seed alone resumes exactly; one that learns from what it has seen offers
    ``state_dict`` and ``load_state_dict`` (JSON values). One with a classmethod ``step_many(worlds, texts)``, which
    returns what ``step`` returns for each, is asked for all rows at once.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; return the first observation, which is what the agent reads, and an info.

        Args:
            seed: Seeds what is random in it.
            options: Where the environment has prompts of its own, the ``prompt`` and its other columns; else None.
        """
        ...

    def step(self, action: Any, /) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Answer a turn of the agent; return the answer, what is paid, whether that ends or cuts it, and an info."""
        ...


@dataclass(frozen=True, slots=True)
class WorldAnswer:
    """One of the answers that a world may give.

    Attributes:
        chance: Its probability.
        said: The answer.
        reward: What is paid with it.
        terminated: Whether the episode is then over.
    """

    chance: float
    said: str
    reward: float
    terminated: bool


@runtime_checkable
class EnumerableWorld(World, Protocol):
    """A world of texts that can say what it may answer, so that the best there is can be computed.

    ``textenv.analysis.exact`` does so.
    """

    def beginnings(self) -> Sequence[tuple[float, str]]:
        """Return the probability of each of its first observations, and the observation."""
        ...

    def outcomes(self, history: Sequence[str]) -> Sequence[WorldAnswer]:
        """Return what it may answer, of probabilities that sum to 1.

        Args:
            history: What it and the agent have said in turn, from its first observation to the agent's last turn.
        """
        ...


@runtime_checkable
class ActionLogProb(Protocol):
    """The behavior policy as the environment sees it."""

    def action_log_prob(self, actions: IntArray) -> NDArray[Any]:
        """Return ``log pi(a|s)`` in nats, shape ``(num_envs,)``, of the actions it has just chosen."""
        ...


@runtime_checkable
class FullDistribution(ActionLogProb, Protocol):
    """A behavior policy that can also hand over its whole next-token distribution (``kl_estimator="full"``)."""

    def action_log_probs(self) -> NDArray[Any]:
        """Return ``log pi(.|s)`` in nats, shape ``(num_envs, vocab_size)``, at the state it has just acted in."""
        ...
