"""Shared by the rewards that wrap other rewards: checks, scores and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from textenv.env.scoring import checked_scores
from textenv.types import Reward, TextEnvError, is_stateful


def check_reward(user: str, reward: object) -> None:
    """Refuse what cannot be a reward.

    Raises:
        TextEnvError: If ``reward`` is not callable, or is a class that was not instantiated.
    """
    if isinstance(reward, type) or not callable(reward):
        raise TextEnvError(
            f"{user} wraps a reward and was given {reward!r}; expected a callable, such as make('vader') returns."
        )


def inner_scores(
    reward: Reward,
    /,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    **columns: Sequence[Any],
) -> list[float]:
    """Call a wrapped reward and check its scores, before combining them could hide a NaN or a missing score.

    Returns:
        ``n`` finite floats.

    Raises:
        TextEnvError: As ``textenv.env.scoring.checked_scores``.
    """
    return checked_scores(
        reward, prompts=prompts, completions=completions, completion_ids=completion_ids, columns=columns
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
