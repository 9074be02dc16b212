"""Import an optional package when a world needs it."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from textenv.types import TextEnvError


def require(module: str, *, world: str, install: str) -> ModuleType:
    """Import a module; if it is missing, raise an error that says how to install it.

    Some packages set up the logging of the whole process when they are imported; it is left as it was.

    Args:
        module: Full name of the module.
        world: The world that needs it, for the message.
        install: What to hand to ``pip install``.

    Raises:
        TextEnvError: The module, or one that it needs itself, is not installed.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TextEnvError(
            f"The world {world!r} needs {module!r}, which cannot be imported ({error}). Run: pip install '{install}'"
        ) from error
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
