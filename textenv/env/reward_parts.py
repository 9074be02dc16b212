"""Scoring a batch with a reward that may be made of others: every part is called, then what they said is combined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from textenv.env.reward_calls import LARGEST, Batch, Call, Value, call_all, reward_name, total
from textenv.types import Reward, TextEnvError

__all__ = ["CombinedReward", "Evaluation", "evaluate", "leaf_rewards", "part_names", "unique_names"]

T = TypeVar("T")


@runtime_checkable
class CombinedReward(Protocol):
    """A reward that is made of others, and says how, so that those that are ``async def`` are awaited together."""

    @property
    def inner_rewards(self) -> Sequence[Reward]:
        """The rewards that it is made of."""
        ...

    @property
    def part_names(self) -> Sequence[str]:
        """A different name for each, under which its scores are reported; none where they are not reported."""
        ...

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return what it says of ``n`` completions, given what each of ``inner_rewards`` says of them."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a reward says of ``n`` completions.

    Attributes:
        values: Of each a score, or one for each of its tokens.
        parts: The scores of the reward's parts, by name, before their weights; None where one did not apply.
        extra: What was logged of each completion, by name.
        metrics: What was logged of all, by name.
    """

    values: Sequence[float | tuple[float, ...]]
    parts: Mapping[str, Sequence[float | None]]
    extra: Mapping[str, Sequence[Any]]
    metrics: Mapping[str, float]


def evaluate(reward: Callable[..., Any], batch: Batch) -> Evaluation:
    """Score a batch.

    Args:
        reward: The reward, see ``textenv.types.Reward``.
        batch: The completions; if there are none, the reward is not called.

    Raises:
        TextEnvError: A reward raises, or returns anything but a finite float32 number or a sequence of them for each
            completion; or no part of a mix applies to one.
    """
    names = part_names(reward)
    if not batch.completions:
        return Evaluation([], {name: [] for name in names}, {}, {})
    calls = call_all(list(leaf_rewards(reward)), batch)
    parts: dict[str, list[float | None]] = {}
    found = _combined(reward, iter(calls), "", parts)
    values = [_known(reward, value, batch, row) for row, value in enumerate(found)]
    return Evaluation(values, parts, _joined([call.extra for call in calls]), _metrics(calls))


def part_names(reward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of all parts that a reward reports; those of a mix inside a mix are ``OUTER/INNER``."""
    if not isinstance(reward, CombinedReward):
        return ()
    if not reward.part_names:
        return tuple(name for inner in reward.inner_rewards for name in part_names(inner))
    pairs = zip(reward.part_names, reward.inner_rewards, strict=True)
    return tuple(each for name, inner in pairs for each in (name, *(f"{name}/{deep}" for deep in part_names(inner))))


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names of which no two are the same: of equal ones, the second ends in ``_2`` and so on."""
    taken: dict[str, None] = {}
    for name in names:
        number, found = 1, name
        while found in taken or (number > 1 and found in names):
            number += 1
            found = f"{name}_{number}"
        taken[found] = None
    return list(taken)


def leaf_rewards(reward: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield the rewards that are called, those inside others, in their order."""
    if isinstance(reward, CombinedReward):
        for inner in reward.inner_rewards:
            yield from leaf_rewards(inner)
    else:
        yield reward


def _combined(
    reward: Callable[..., Any], calls: Iterator[Call], prefix: str, parts: dict[str, list[float | None]]
) -> list[Value]:
    """Return what a reward says, given the calls of its leaves; add the scores of its parts to ``parts``."""
    if not isinstance(reward, CombinedReward):
        return next(calls).values
    names, said = reward.part_names, []
    for place, inner in enumerate(reward.inner_rewards):
        name = f"{prefix}{names[place]}" if names else None
        if name is not None:
            parts[name] = []  # before those of its own parts
        found = _combined(inner, calls, prefix if name is None else f"{name}/", parts)
        if name is not None:
            parts[name] = [None if value is None else total(value) for value in found]
        said.append(found)
    return reward.combine(said)


def _known(reward: Callable[..., Any], value: Value, batch: Batch, row: int) -> float | tuple[float, ...]:
    """Return what a reward says of a completion, which is not None and finite."""
    where = f"{row + 1} of {len(batch.completions)}"
    shown = f"The prompt is {batch.prompts[row]!r:.120} and the completion, {where}, {batch.completions[row]!r:.120}."
    if value is None:
        mix = part_names(reward)
        raise TextEnvError(
            f"The reward {reward_name(reward)} returned None. {shown} Expected a finite float32 number"
            + (f", of one of the parts {', '.join(mix)} at least." if mix else "; None is for the parts of a mix.")
        )
    if not abs(total(value)) <= LARGEST:
        raise TextEnvError(
            f"The reward {reward_name(reward)} returned {total(value)!r}. {shown} Expected a finite float32 number."
        )
    return value


def _joined(logs: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """Return all that several rewards have logged; where two used one name, the later one's ends in a number."""
    pairs = [pair for log in logs for pair in log.items()]
    return dict(zip(unique_names([name for name, _ in pairs]), [value for _, value in pairs], strict=True))


def _metrics(calls: Sequence[Call]) -> dict[str, float]:
    logs = [{name: sum(values) / len(values) for name, values in call.metrics.items()} for call in calls]
    return _joined(logs)
