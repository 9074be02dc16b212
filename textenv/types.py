"""Frozen data and protocols that every part of textenv agrees on.

This module imports numpy and nothing of ours, so that a reward or an agent written elsewhere can depend on it
without pulling in a language model.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_COMPLETIONS",
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
    "TrainerState",
    "Turn",
    "TurnEnd",
    "World",
    "WorldAnswer",
    "as_annotator",
    "as_completions",
    "as_conversation",
    "as_margin",
    "as_number",
    "as_prompt",
    "as_ranks",
    "as_text",
    "in_one_line",
    "is_stateful",
    "short",
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
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
MOST_COMPLETIONS = 9
"""Completions that one ranking may hold: each has a digit key on the page where people rank them."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_EXAMPLE = "[{'role': 'user', 'content': 'Hello'}]"


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
        token_rewards: What each token earned: ``-kl_coef * kl``, at the last of a turn what the world paid, at the last
            the score, or of a reward of tokens at each its own, and ``shaping``; shape ``(T,)``.
        score: The reward model's score, a missing end-of-sequence penalty included; 0 where the world truncated it.
        stop_reason: Why it ended, see ``StopReason``.
        turns: The turns, where a world answers; without a world none.
        truncated: Whether the world cut it off, so that it has no score and an agent has to bootstrap.
        token_scores: What the score is the sum of, where the reward said it token by token, shape ``(T,)``; else empty.
        scores: What each part of the reward said, before its weight, by name; None where it did not apply. Empty for a
            reward without parts.
        logged: What the reward has logged of this episode (``log_extra``), by name.
        metrics: What the reward has logged of the batch that this episode was scored in (``log_metric``), by name.
        shaping: What shaping by a potential paid for each token, shape ``(T,)``; empty without a potential.
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
    token_scores: tuple[float, ...] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    shaping: tuple[float, ...] = ()

    @property
    def world_reward(self) -> float:
        """What the world has paid in all turns together."""
        return math.fsum(turn.reward for turn in self.turns)

    @property
    def earned(self) -> float:
        """The score, and what the world has paid: the return without the KL penalty and shaping."""
        return self.score + self.world_reward

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

    The values are checked by the functions at the end of this module, wherever they come from: files, a store of
    feedback or Python. Lists become tuples.

    Attributes:
        prompt: A text, or a conversation.
        completions: Two to nine texts; of a conversation, what the assistant says. They may be empty, and equal.
        ranks: Rank of each completion, 0 being the best; equal ranks are ties. None for one that is below all that
            have a rank, in no known order: in a choice of the best of four, one has rank 0 and three have None.
        annotator: Who judged, ``""`` where nobody is named.
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
            TextEnvError: A value is not what is expected.
        """
        completions = as_completions(self.completions)
        checked = {
            "prompt": as_prompt(self.prompt),
            "completions": completions,
            "ranks": as_ranks(self.ranks, len(completions)),
            "annotator": as_annotator(self.annotator),
            "margin": as_margin(self.margin),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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


@dataclass(frozen=True, slots=True)
class TrainerState:
    """How far a training is, for rewards that change with it: they take it as ``trainer_state``.

    The names are those of ``transformers.TrainerState``, which TRL hands over. Where no agent is training, it is that
    of a training that has not begun.

    Attributes:
        global_step: Iterations that the agent has finished: it has learned from so many batches of episodes.
        max_steps: Iterations that the training will have, as far as the lengths of the texts so far tell.
        epoch: Share of the training that is done, from 0 to 1.
        num_train_epochs: 1.
        num_input_tokens_seen: Tokens that the agent has written, in all processes.
    """

    global_step: int = 0
    max_steps: int = 1
    epoch: float = 0.0
    num_train_epochs: int = 1
    num_input_tokens_seen: int = 0


@runtime_checkable
class Reward(Protocol):
    """Scores a batch of ``n`` finished completions; functions written for TRL fit unmodified.

    Prompts come in the form in which they were given. For a text, both it and its completion are texts. For a
    conversation both are lists of messages, the completion being ``[{"role": "assistant", "content": ...}]``.

    A reward that names them, or takes ``**columns``, is also given what TRL's trainers give: ``log_extra(name,
    values)``, which notes a value for each completion, ``log_metric(name, value)``, which notes a number for the batch,
    and ``trainer_state`` (see ``TrainerState``).

    It may be ``async def``: it is awaited, together with other such parts of a mix.

    A class writes ``def __call__(self, /, *, ...)``: without the ``/``, a column cannot be named ``self``.
    """

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Any:
        """Return a sequence with one item for each completion.

        An item is a finite float; or a sequence of them, one for each of its ``completion_ids``, which are the tokens
        that the agent wrote: each is paid at its token, and the score is their sum. Or it is None where a part of a mix
        does not apply.
        """
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

    ``info["tools"]`` of ``reset`` may hold JSON schemas of functions that the agent may call. The chat template writes
    them, if it takes ``tools``, and else a system message does.

    ``info["columns"]`` of ``reset`` or ``step`` may hold what the reward is to be told of the episode, by name: it is
    given them as columns, those of the last step for each name.
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


# What the values of a ranking and of a prompt may be


def as_text(value: Any, name: str) -> str:
    """Return a text, which may be empty: a policy may end its text at once.

    Raises:
        TextEnvError: It is none, or holds half of a surrogate pair, which no file and no tokenizer can take.
    """
    if not isinstance(value, str):
        raise TextEnvError(f"{name} is {short(value)}; expected a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TextEnvError(
            f"{name} is {short(value)}; character {error.start} is half of a surrogate pair, which is no Unicode. "
            "Write the whole character, or remove it."
        ) from error
    return value


def as_conversation(value: Any, name: str = "prompt") -> Conversation:
    """Return a list of messages, not empty; keys of a message without a value are left out.

    Raises:
        TextEnvError: It is none or empty, or a message lacks a known role or a text as content.
    """
    messages = _as_list(value)
    if not messages:
        raise TextEnvError(f"{name} is {short(value)}; expected a list of messages such as {_EXAMPLE}.")
    return tuple(_as_message(message, place, messages, name) for place, message in enumerate(messages))


def as_prompt(value: Any, name: str = "prompt") -> str | Conversation:
    """Return a text or a conversation.

    Raises:
        TextEnvError: It is neither.
    """
    if isinstance(value, str):
        return as_text(value, name)
    if _as_list(value):
        return as_conversation(value, name)
    raise TextEnvError(f"{name} is {short(value)}; expected a text, or a list of messages such as {_EXAMPLE}.")


def as_completions(value: Any, name: str = "completions") -> tuple[str, ...]:
    """Return two texts or more, which may be equal: policies do write the same.

    Raises:
        TextEnvError: It is no list, one of them is no text, or there are fewer.
    """
    texts = _as_list(value)
    if texts is None:
        raise TextEnvError(f"{name} is {short(value)}; expected a list of texts.")
    if len(texts) < 2:
        raise TextEnvError(f"{name} has {len(texts)} texts; expected at least 2.")
    return tuple(as_text(text, f"{name}[{place}]") for place, text in enumerate(texts))


def as_ranks(value: Any, count: int, name: str = "ranks") -> tuple[int | None, ...]:
    """Return one rank for each of ``count`` completions: whole numbers from 0, which is the best, or None.

    Raises:
        TextEnvError: It is no list of so many, one of them is neither None nor a whole number from 0 below ``count``,
            or none is 0; true and false are no numbers.
    """
    ranks = _as_list(value)
    if ranks is None or len(ranks) != count:
        raise TextEnvError(f"{name} is {short(value)}; expected a list of {count} ranks, one for each completion.")
    known = [rank for rank in ranks if rank is not None]
    if not all(_is_whole(rank) and 0 <= rank < count for rank in known) or 0 not in known:
        raise TextEnvError(
            f"{name} is {short(value)}; expected whole numbers from 0, which is the best, to {count - 1}, or null; one "
            "of them 0."
        )
    return tuple(None if rank is None else int(rank) for rank in ranks)


def as_annotator(value: Any, name: str = "annotator") -> str:
    """Return who judged, ``""`` where nobody is named: for None, and for a text that is blank.

    Raises:
        TextEnvError: It is neither a text nor a whole number, such as the id of a user.
    """
    if value is None:
        return ""
    if _is_whole(value) and abs(value) < 2**63:
        return str(int(value))
    if not isinstance(value, str):
        raise TextEnvError(f"{name} is {short(value)}; expected a name: a text, or a whole number, the id of a user.")
    return as_text(value, name) if value.strip() else ""


def as_margin(value: Any, name: str = "margin") -> float | None:
    """Return a margin, in units of score, or None.

    Raises:
        TextEnvError: It is no finite number.
    """
    return None if value is None else as_number(value, name)


def as_number(value: Any, name: str) -> float:
    """Return a finite number.

    Raises:
        TextEnvError: It is none; a text of digits and true and false are none either.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
        raise TextEnvError(f"{name} is {short(value)}; expected a finite number.")
    return float(value)


def in_one_line(error: BaseException) -> str:
    """Return the type of an exception of somebody else's code, and the beginning of what it says; ours says it all."""
    text = " ".join(_COLOR.sub("", str(error)).split())
    return text if isinstance(error, TextEnvError) else f"{type(error).__name__}: {text:.300}"


def short(value: object) -> str:
    """Return how a value is shown in a message: its ``repr`` on one line, cut in the middle where it is long."""
    try:
        text = " ".join(repr(str(value) if isinstance(value, PurePath) else value).split())
    except (ValueError, RecursionError):  # numbers of thousands of digits, and lists nested as deep
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= 120 else f"{text[:70]}…{text[-45:]}"


def _as_message(message: Any, place: int, messages: Sequence[Any], name: str) -> Message:
    where = f"{name} is {short(messages)}; message {place}"
    if not isinstance(message, Mapping):
        raise TextEnvError(f"{where} is {short(message)}, expected a mapping with 'role' and 'content'.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise TextEnvError(f"{where} has the role {short(role)}, expected one of {list(_ROLES)}.")
    as_text(message.get("content"), f"the content of message {place} of {name}")
    for key, item in message.items():
        as_text(key, f"a key of message {place} of {name}")
        if isinstance(item, str):
            as_text(item, f"{short(key)} in message {place} of {name}")
    # Tables give every message every key that one of them has.
    return {key: item for key, item in message.items() if item is not None}


def _as_list(value: Any) -> Sequence[Any] | None:
    """Return a value that is a list, or None; pandas reads lists in parquet as arrays."""
    value = value.tolist() if isinstance(value, np.ndarray) and value.ndim else value
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)) else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above every float
        return False
