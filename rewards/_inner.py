"""Shared by the rewards that are made of other rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from textenv.env.reward_calls import SERVICES, Batch, Value
from textenv.env.reward_parts import evaluate
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
