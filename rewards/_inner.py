"""Shared by the rewards that are made of other rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from textenv.env.reward_calls import SERVICES, Batch, Value, reward_name
from textenv.env.reward_parts import CombinedReward, evaluate
from textenv.types import Reward, TextEnvError, TrainerState, is_stateful


class Combined:
    """A reward that is made of others, see ``textenv.env.reward_parts.CombinedReward``."""

    __slots__ = ()

    @property
    def inner_rewards(self) -> Sequence[Reward]:
        """The rewards that it is made of."""
        raise NotImplementedError

    @property
    def part_names(self) -> Sequence[str]:
        """No names: what it is made of is not reported by itself."""
        return ()

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        """Return what it says of ``n`` completions, given what each of ``inner_rewards`` says of them."""
        raise NotImplementedError

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[Any]:
        """Return ``n`` scores, or for each a sequence of those of its tokens.

        Raises:
            TextEnvError: As ``textenv.env.reward_parts.evaluate``.
        """
        services = {name: columns.pop(name) for name in SERVICES if name in columns}
        state = services.get("trainer_state", TrainerState())
        found = evaluate(self, Batch(prompts, completions, completion_ids, columns, state))
        for service, logged in (("log_extra", found.extra), ("log_metric", found.metrics)):
            for name, value in logged.items() if service in services else ():
                services[service](name, value)
        return list(found.values)


class Wrapped(Combined):
    """A reward made of one other, ``reward``, that keeps no state but that one's."""

    __slots__ = ()

    reward: Reward

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped reward's state as JSON values."""
        return {"reward": state_of(self.reward)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that ``state_dict`` returned.

        Raises:
            TextEnvError: If it is another reward's.
        """
        check_state(type(self).__name__, state, {"reward"})
        load_state(self.reward, state["reward"])


Change: TypeAlias = Callable[[Sequence[Any], Sequence[Any], Sequence[Sequence[int]]], tuple[list[Any], list[Any]]]
"""Makes other prompts and completions of prompts, completions and the completions' tokens."""


@dataclass(frozen=True, slots=True)
class _MixOfOthers(Combined):
    """A reward that is made of others, each of other texts."""

    reward: Any
    change: Change

    @property
    def inner_rewards(self) -> list[Reward]:
        return [of_other_texts(inner, self.change) for inner in self.reward.inner_rewards]

    def combine(self, said: Sequence[Sequence[Value]]) -> list[Value]:
        found: list[Value] = self.reward.combine(said)
        return found


def of_other_texts(reward: Reward, change: Change) -> Reward:
    """Return a reward of the texts that ``change`` makes of those it is given; one that has to be awaited stays so.

    The tokens that it is given stay those of the text that was written.
    """
    if isinstance(reward, CombinedReward):
        return _MixOfOthers(reward, change)

    def changed(
        *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **rest: Any
    ) -> Any:
        called: Any = reward
        other, texts = change(prompts, completions, completion_ids)
        return called(prompts=other, completions=texts, completion_ids=completion_ids, **rest)

    made: Any = changed
    made.__wrapped__ = getattr(reward, "forward", reward)  # whose signature says what it is to be given
    made.__qualname__ = reward_name(reward)
    return made  # type: ignore[no-any-return]


def check_reward(user: str, reward: object) -> None:
    """Refuse what cannot be a reward.

    Raises:
        TextEnvError: If ``reward`` is not callable, or is a class that was not instantiated.
    """
    if isinstance(reward, type) or not callable(reward):
        raise TextEnvError(
            f"{user} wraps a reward and was given {reward!r}; expected a callable, such as make('vader') returns."
        )


def state_of(reward: Reward) -> dict[str, Any]:
    """Return the state of a wrapped reward: empty if it keeps none."""
    return dict(reward.state_dict()) if is_stateful(reward) else {}


def load_state(reward: Reward, state: object) -> None:
    """Hand a wrapped reward the state that ``state_of`` returned.

    Raises:
        TextEnvError: If ``state`` holds something and ``reward`` keeps no state.
    """
    if is_stateful(reward) and isinstance(state, Mapping):
        reward.load_state_dict(cast("Mapping[str, Any]", state))
    elif state != {}:
        raise TextEnvError(
            f"The saved state {state!r} does not belong to the wrapped reward {reward!r}; "
            "load it into a reward made from the same specification."
        )


def check_state(user: str, state: Mapping[str, Any], keys: set[str]) -> None:
    """Refuse a state with other keys than ``keys``.

    Raises:
        TextEnvError: If they differ.
    """
    if not isinstance(state, Mapping) or set(state) != keys:
        what = f"the keys {list(state)}" if isinstance(state, Mapping) else repr(state)
        raise TextEnvError(
            f"{user}.load_state_dict was given {what}; expected {sorted(keys)}, "
            "as state_dict of a reward made from the same specification returns them."
        )
