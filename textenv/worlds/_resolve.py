"""What an import path stands for."""

from __future__ import annotations

import pkgutil
from typing import Any

from textenv.types import TextEnvError


def resolve(kind: str, value: Any) -> Any:
    """Return a callable: the value itself, or what the import path ``package.module:attribute`` stands for.

    Args:
        kind: What it is called in messages, such as ``"tool"``.
        value: The callable or its path.

    Raises:
        TextEnvError: It cannot be imported, or is not callable.
    """
    found = value
    if isinstance(value, str):
        if ":" not in value:
            raise TextEnvError(f"The {kind} {value!r}: expected 'package.module:attribute'.")
        try:
            found = pkgutil.resolve_name(value)
        except (ImportError, AttributeError, ValueError) as error:
            raise TextEnvError(
                f"The {kind} {value!r} cannot be imported ({error}). Expected 'package.module:attribute', the package "
                "installed or in a folder of PYTHONPATH."
            ) from error
    if not callable(found):
        raise TextEnvError(f"The {kind} {value!r} is {found!r:.80}; expected something that can be called.")
    return found
