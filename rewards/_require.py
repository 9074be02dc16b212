"""Import an optional library when a reward needs it."""

from __future__ import annotations

import importlib
from types import ModuleType

from textenv.types import TextEnvError


def require(module: str, *, user: str, install: str) -> ModuleType:
    """Import ``module``; if it is missing, raise an error that says how to install it.

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
