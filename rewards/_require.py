"""Import a library at the moment a reward needs it."""

from __future__ import annotations

import importlib
from types import ModuleType

from textenv.types import TextEnvError


def require(module: str, *, user: str, install: str) -> ModuleType:
    """Import ``module``, or say how to get it.

    Args:
        module: Full name of the module.
        user: The reward that needs it, for the message.
        install: What to hand to ``pip install``.

    Raises:
        TextEnvError: If the module, or one that it needs itself, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise TextEnvError(
            f"The reward {user!r} needs {module!r}, which cannot be imported ({error}). Run: pip install '{install}'"
        ) from error
