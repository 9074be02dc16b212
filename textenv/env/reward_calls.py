"""Calling rewards on a batch of finished completions, and checking what they return.

A score that is NaN or infinite would surface thousands of steps later as a policy that stopped learning. Here it
becomes an error that names the reward and the completion.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from textenv.env.awaiting import wait_for_all
from textenv.types import TextEnvError, TrainerState, as_number

__all__ = [
    "LARGEST",
    "SERVICES",
    "Batch",
    "Call",
    "Value",
    "call_all",
    "reward_name",
    "signature_mismatch",
    "total",
]

Value: TypeAlias = float | tuple[float, ...] | None
"""What a reward says of a completion: a score, one for each of its tokens, or None where it does not apply."""

SERVICES = ("log_extra", "log_metric", "trainer_state")
"""What a reward is given beside the columns, if it takes it, under the names that TRL gives it."""

_RESERVED = ("prompts", "completions", "completion_ids", *SERVICES)
_SHOWN = 120  # characters of a text in a message
LARGEST = float(np.finfo(np.float32).max)
"""The largest score."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What rewards are called with, ``n`` items each.

    Attributes:
        prompts: Texts or lists of messages.
        completions: Likewise.
        completion_ids: Their token ids.
        columns: The prompts' other columns.
        trainer_state: How far the training is.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    trainer_state: TrainerState = field(default_factory=TrainerState)

    def __post_init__(self) -> None:
        """Check the names of the columns.

        Raises:
            TextEnvError: One is that of another argument.
        """
        if clashing := sorted(set(self.columns) & set(_RESERVED)):
            raise TextEnvError(
                f"The prompts have columns named {clashing}, which a reward gets from the environment. Rename them."
            )


@dataclass(slots=True, eq=False)
class Call:
    """A reward that is called with a batch.

    Attributes:
        reward: The reward; none that is made of others.
        batch: The batch.
        extra: What it has logged of each completion, by name.
        metrics: What it has logged of the batch, by name: a number for each time.
        values: What it said.
    """

    reward: Callable[..., Any]
    batch: Batch
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Note a value of each completion, under a name.

        Raises:
            TextEnvError: There are more or fewer values than completions.
        """
        found, count = list(values), len(self.batch.completions)
        if len(found) != count:
            raise TextEnvError(
                f"The reward {reward_name(self.reward)} logged {len(found)} values of {column!r} for {count} "
                "completions; expected one for each."
            )
        self.extra[str(column)] = found

    def log_metric(self, name: str, value: float) -> None:
        """Note a number of the batch, under a name.

        Raises:
            TextEnvError: It is no finite number.
        """
        given: Any = value
        plain = given.tolist() if hasattr(given, "tolist") else given
        number = as_number(plain, f"What the reward {reward_name(self.reward)} logged as {name!r}")
        self.metrics.setdefault(str(name), []).append(number)

    @property
    def services(self) -> dict[str, Any]:
        """What the reward is given beside the columns: those of ``SERVICES`` that it takes."""
        given = {
            "log_extra": self.log_extra, "log_metric": self.log_metric, "trainer_state": self.batch.trainer_state
        }  # fmt: skip
        return {name: given[name] for name in _services_of(self.reward)}

    def begin(self) -> Any:
        """Call it; return what it returns, which may have to be awaited."""
        batch = self.batch
        # Lists, because functions written for TRL get lists, and copies, because such a function may change them.
        return self.reward(
            prompts=list(batch.prompts),
            completions=list(batch.completions),
            completion_ids=[list(ids) for ids in batch.completion_ids],
            **{name: list(values) for name, values in batch.columns.items()},
            **self.services,
        )

    def finish(self, returned: Any) -> None:
        """Check what it has returned, and keep it as ``values``.

        Raises:
            TextEnvError: It is none, or it has another length, or holds anything but finite float32 numbers, sequences
                of as many as a completion has tokens, and None.
        """
        batch = self.batch
        values = _as_list(self.reward, returned, len(batch.completions))
        rows = zip(values, batch.prompts, batch.completions, batch.completion_ids, strict=True)
        self.values = [
            _checked(self.reward, value, _row(prompt, completion), len(ids)) for value, prompt, completion, ids in rows
        ]

    def failed(self, error: Exception) -> TextEnvError:
        """Return what to raise where it has raised an exception."""
        batch = self.batch
        return TextEnvError(
            signature_mismatch(self.reward, batch.columns)
            or f"The reward {reward_name(self.reward)} raised {type(error).__name__}: {' '.join(str(error).split())}. "
            f"It was scoring a batch of {len(batch.completions)}, of which the first "
            f"{_row(batch.prompts[0], batch.completions[0])}."
        )


def call_all(rewards: Sequence[Callable[..., Any]], batch: Batch) -> list[Call]:
    """Call rewards, those that are ``async def`` at the same time.

    Args:
        rewards: The rewards; none that is made of others.
        batch: At least one completion.

    Raises:
        TextEnvError: One raises, or does not return what it should.
    """
    calls = [Call(reward, batch) for reward in rewards]
    returned: list[Any] = []
    try:
        for call in calls:
            with _errors_of(call):
                returned.append(call.begin())
    except BaseException:
        for each in filter(inspect.iscoroutine, returned):
            each.close()  # else Python warns that nobody has awaited it
        raise
    places = [place for place, each in enumerate(returned) if inspect.isawaitable(each)]
    outcomes = wait_for_all([returned[place] for place in places]) if places else []
    for place, (result, error) in zip(places, outcomes, strict=True):
        with _errors_of(calls[place]):
            if error is not None:
                raise error
        returned[place] = result
    for call, each in zip(calls, returned, strict=True):
        with _errors_of(call):
            call.finish(each)
    return calls


@contextlib.contextmanager
def _errors_of(call: Call) -> Iterator[None]:
    """Turn what a reward raises inside into an error that names it."""
    try:
        yield
    except TextEnvError:
        raise
    except Exception as error:
        raise call.failed(error) from error


def total(value: float | tuple[float, ...]) -> float:
    """Return the score of a completion: what its tokens got, added up."""
    return math.fsum(value) if isinstance(value, tuple) else value


def _checked(reward: Callable[..., Any], value: Any, row: str, tokens: int) -> Value:
    """Return what a reward says of a completion, checked.

    Args:
        reward: The reward, for the message.
        value: What it says.
        row: The completion, for the message.
        tokens: The number of its tokens.

    Raises:
        TextEnvError: It is neither a finite float32 number, nor a sequence of one for each token, nor None.
    """
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) != tokens:
            raise TextEnvError(
                f"The reward {reward_name(reward)} returned {len(value)} scores for the {tokens} tokens of a "
                f"completion. The {row}. Expected a float, or a list of {tokens}, one for each token that was written."
            )
        plain = [each.tolist() if hasattr(each, "tolist") else each for each in value]
        if wrong := [each for each in plain if not _is_score(each)]:
            raise TextEnvError(
                f"The reward {reward_name(reward)} returned {_shorten(repr(wrong[0]))} for a token. The {row}. "
                "Expected a finite float32 number."
            )
        return tuple(map(float, plain))
    if not _is_score(value):
        raise TextEnvError(
            f"The reward {reward_name(reward)} returned {_shorten(repr(value))}. The {row}. "
            "Expected a finite float32 number. A reward that has no opinion returns 0.0."
        )
    return float(value)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _as_list(reward: Callable[..., Any], returned: Any, count: int) -> list[Any]:
    """Turn what the reward returned into ``count`` Python values, not checked yet."""
    if hasattr(returned, "tolist"):  # arrays and tensors, wherever they are and whether they need a gradient or not
        values = returned.tolist()
    else:
        values = list(returned) if isinstance(returned, Sequence) else returned
    if not isinstance(values, list) or len(values) != count:
        what = f"{len(values)} scores" if isinstance(values, list) else f"{_shorten(repr(returned))}"
        raise TextEnvError(
            f"The reward {reward_name(reward)} returned {what} for {count} completions; "
            "expected a list of floats, one for each completion."
        )
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def reward_name(reward: Callable[..., Any]) -> str:
    """Return what to call a reward in a message: a function's name, otherwise its ``repr``, shortened."""
    name = getattr(reward, "__qualname__", None)
    return name if isinstance(name, str) else _shorten(repr(reward))


def signature_mismatch(reward: Callable[..., Any], columns: Iterable[str], *, partial: bool = False) -> str | None:
    """Say why a reward cannot be called with columns of these names; ``None`` if it can.

    Args:
        reward: The reward.
        columns: The names.
        partial: Whether there may be further columns, which are not known yet.
    """
    names = ["prompts", "completions", "completion_ids", *columns]
    services = _services_of(reward)
    for call, by_place in _as_called(reward):
        try:
            signature = inspect.signature(call)
        except (TypeError, ValueError):  # a builtin without one
            continue
        try:
            bind = signature.bind_partial if partial else signature.bind
            bind(*by_place, **dict.fromkeys([*names, *services]))
        except TypeError as error:
            return (
                f"The reward {reward_name(reward)}{signature} cannot be called with the keywords {', '.join(names)}: "
                f"{error}. Expected (*, prompts, completions, completion_ids, **columns), columns being the prompts' "
                "other columns. Add **columns to take those that it doesn't use; a column that it needs must be in the "
                "prompts."
            )
    return None


def _services_of(reward: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of ``SERVICES`` a reward takes: those that it names, or all with ``**columns``."""
    try:
        # A module of torch hands everything on to its ``forward``.
        parameters = inspect.signature(getattr(reward, "forward", reward)).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return tuple(name for name in SERVICES if takes_all or name in parameters)


def _as_called(reward: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Yield a reward, and the function behind it with what it is given by position: ``self``, which a column may be."""
    yield reward, ()
    if inspect.ismethod(reward):
        yield reward.__func__, (reward.__self__,)
    elif inspect.isfunction(type(reward).__call__):
        yield type(reward).__call__, (reward,)


def _row(prompt: Any, completion: Any) -> str:
    return f"prompt is {_shorten(repr(prompt))} and the completion {_shorten(repr(completion))}"


def _shorten(text: str) -> str:
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"
