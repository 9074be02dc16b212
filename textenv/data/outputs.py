"""What a command writes, checked before it does any work: a run that cannot be saved is not begun.

A field of a command says that it names something to be written by its type, ``OutputFolder`` or ``OutputFile``.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from textenv.types import TextEnvError

__all__ = ["OutputFile", "OutputFolder", "check_outputs"]


@dataclass(frozen=True, slots=True)
class _Output:
    """A mark of fields whose path is written to.

    Attributes:
        kind: A ``"folder"``, which is made with those above it; or a ``"file"``, whose folder exists.
    """

    kind: Literal["folder", "file"]


OutputFolder = Annotated[Path, _Output("folder")]
OutputFile = Annotated[Path, _Output("file")]


def check_outputs(command: Any) -> None:
    """Check that every path that a command, a dataclass, is to write can be written. Nothing is left behind.

    Raises:
        TextEnvError: One cannot be: a folder is a file, say, or its disk takes no files.
    """
    hints = get_type_hints(type(command), include_extras=True)
    for field in fields(command):
        path = getattr(command, field.name)
        for output in _marks(hints[field.name]):
            if path is not None:
                _check(f"{field.name}={str(path)!r}", Path(path), output.kind)


def _marks(hint: Any) -> list[_Output]:
    """Return the marks anywhere in an annotation."""
    return [hint] if isinstance(hint, _Output) else [mark for part in get_args(hint) for mark in _marks(part)]


def _check(named: str, path: Path, kind: Literal["folder", "file"]) -> None:
    expected = f"{named}: expected a {kind} that can be written"
    try:
        if kind == "file":
            path = Path(os.path.realpath(path))
        there = path if kind == "folder" else path.parent
        while not _is_there(there):
            if kind == "file":
                raise TextEnvError(f"{expected}; there is no folder {str(there)!r}. Make it first.")
            _check_name(there, expected)
            there = there.parent
        if not there.is_dir():
            what = "a link to something that is not there" if not there.exists() else "no folder"
            raise TextEnvError(f"{expected}; {str(there)!r} is {what}. Name another.")
        if kind == "file":
            _check_name(path, expected)
            if path.is_dir() or path.is_symlink():
                what = "a folder. Name a file in it." if path.is_dir() else "a link to itself. Name another."
                raise TextEnvError(f"{expected}; it is {what}")
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, TextEnvError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise TextEnvError(f"{expected}; the system says: {reason}. Name another.") from error


def _is_there(path: Path) -> bool:
    """Tell whether there is something of this name, a link to nothing included.

    Raises:
        OSError: There can be nothing of this name.
        ValueError: Likewise.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_name(path: Path, expected: str) -> None:
    longest = 255 if os.name == "nt" else os.pathconf(Path(path.anchor or "."), "PC_NAME_MAX")
    room = longest - 16  # for what is added to the names of temporary files
    if (size := len(os.fsencode(path.name))) > room:
        raise TextEnvError(f"{expected}; its name takes {size} bytes, and {room} is the most. Name it shorter.")
