"""Files that are either whole or absent."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textenv.types import TextEnvError

__all__ = ["to_json", "write_atomically", "write_json"]


def to_json(
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Return a value as JSON, of which every reader makes the same: without NaN and infinities.

    Args:
        value: Of JSON's types. A figure that does not exist is None, as whoever computes it says.
        indent: As in ``json.dumps``, like the rest.
        sort_keys: Likewise.
        ensure_ascii: Likewise.
        default: Likewise.

    Raises:
        TextEnvError: A number is not finite.
    """
    try:
        return json.dumps(
            value, allow_nan=False, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii, default=default
        )
    except ValueError as error:
        if found := _not_finite(value):
            raise TextEnvError(f"{found}, which JSON does not know; expected a finite number, or None.") from error
        raise


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """Write a value as JSON with ``write_atomically``, and a line break after it.

    Raises:
        TextEnvError: A number is not finite.
    """
    write_atomically(path, to_json(value, indent=indent) + "\n")


def _not_finite(value: Any, where: str = "value") -> str:
    """Return where a number stands that is not finite, and what it is; ``""`` if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{where} is {value}"
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    inside = value.items() if isinstance(value, Mapping) else ()
    return next(filter(None, (_not_finite(item, f"{where}[{key!r}]") for key, item in inside)), "")


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, or a run killed in the middle, finds the old content or the new, never a part.

    Args:
        path: The file; its folder exists.
        data: Its new content; text is written as UTF-8.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask, as of any other file
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
