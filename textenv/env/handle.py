"""Live objects inside ``gym.make`` keywords.

Gymnasium deep-copies an environment's spec whenever a wrapper asks for it. A model must not be copied along, so the
spec of our environments holds it in a handle whose copy is itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import EnvSpec

__all__ = ["Handle", "unwrap", "with_handles"]


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """Carries an object through ``copy.deepcopy`` uncopied.

    Attributes:
        value: The object.
    """

    value: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return self


def unwrap(value: Any) -> Any:
    """Return what a handle holds, or the value itself."""
    return value.value if isinstance(value, Handle) else value


def with_handles(spec: EnvSpec | None) -> EnvSpec | None:
    """Put the live objects among a spec's keywords into handles; write paths and enumerations as JSON can hold them."""
    if spec is not None:
        spec.kwargs = {key: _storable(value) for key, value in spec.kwargs.items()}
    return spec


def _storable(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value if _is_plain(value) else Handle(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, bool, int, float, Handle))
