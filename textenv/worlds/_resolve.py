"""What an import path stands for, and whether it may be called."""

from __future__ import annotations

from typing import Any, get_origin, get_type_hints

from textenv import plugins
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
        found = plugins.at_path(kind, value)
    if not callable(found):
        raise TextEnvError(f"The {kind} {value!r} is {found!r:.80}; expected something that can be called.")
    return found


def check_makes(kind: str, path: str, found: Any, methods: tuple[str, ...]) -> None:
    """Check that what an import path stands for is there to be called: ``os:system`` is not.

    Args:
        kind: What it is called in messages.
        path: The import path.
        found: What it stands for.
        methods: What an object that it makes has to have.

    Raises:
        TextEnvError: It is neither a class with these methods nor a function whose return annotation is one.
    """
    made = found if isinstance(found, type) else _returned(found)
    if not all(callable(getattr(made, method, None)) for method in methods):
        raise TextEnvError(
            f"The {kind} {path!r} is {found!r:.80}; expected a class with {' and '.join(methods)}, or a function that "
            "makes such an object and says so in its return annotation."
        )


def _returned(function: Any) -> Any:
    """Return the class that a function's annotation says it returns, or None."""
    try:
        hint = get_type_hints(function).get("return")
    except Exception:  # an annotation can name what is not there
        return None
    return get_origin(hint) or hint
