"""Files that are either whole or absent, and folders that one process at a time writes."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from textenv.types import TextEnvError, short

if sys.platform != "win32":
    import fcntl

__all__ = [
    "locked",
    "make_folder",
    "parse_json",
    "parse_name_or_json",
    "read_json",
    "replacing",
    "to_json",
    "write_atomically",
    "write_json",
]

_LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have none


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


def json_state(state: Any, of: str) -> dict[str, Any]:
    """Return what a ``state_dict`` of a user's own has returned, if a checkpoint can hold it.

    Args:
        state: What it has returned.
        of: What it is the state of, for the message: ``"the reward Normalize"``.

    Raises:
        TextEnvError: It holds anything but JSON values.
    """
    try:
        to_json(state)
    except (TypeError, ValueError) as error:
        raise TextEnvError(
            f"The state of {of} cannot be saved with a run: {error}. Expected state_dict() to return JSON values "
            "(numbers, texts, lists, mappings); turn tensors into lists there and back in load_state_dict()."
        ) from error
    return dict(state)


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """Write a value as JSON with ``write_atomically``, and a line break after it.

    Raises:
        TextEnvError: A number is not finite.
    """
    write_atomically(path, to_json(value, indent=indent) + "\n")


def parse_json(text: str | bytes, what: str) -> Any:
    """Return the value of a JSON text, which may have come from anywhere.

    Args:
        text: The text; bytes are UTF-8.
        what: What it is, as the beginning of a message.

    Raises:
        TextEnvError: It is no JSON; or too deep, or with a number of too many digits.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except ValueError as error:  # also of a number with more digits than Python reads, and of bytes that are no UTF-8
        raise TextEnvError(f"{what} is no JSON ({error}).") from error
    except RecursionError as error:
        raise TextEnvError(f"{what} is nested too deeply.") from error


def parse_name_or_json(text: str, what: str, *, lists: bool = False) -> Any:
    """Return what a typed text stands for: the value of a JSON object, or else a name, which is the text itself.

    Args:
        text: The text.
        what: What it is, as the beginning of a message.
        lists: Whether it may be a JSON list too.

    Raises:
        TextEnvError: It begins like a JSON object, or list, and is none.
    """
    kinds = {"{": "object", "[": "list"} if lists else {"{": "object"}
    kind = kinds.get(text.lstrip()[:1])
    return text if kind is None else parse_json(text, f"{what} {short(text)} begins like a JSON {kind}, and")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Return the JSON object in a file that textenv wrote.

    Args:
        path: The file.
        *keys: Keys that it has.

    Raises:
        TextEnvError: It has been damaged, cut short for example, or lacks a key.
    """
    try:
        found: Any = parse_json(path.read_bytes(), str(path))
    except (OSError, ValueError) as error:  # a ValueError for a path with a NUL, or for what is no JSON
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TextEnvError(f"{path} cannot be read: {reason} {_RESTORE}") from error
    if not isinstance(found, dict):
        raise TextEnvError(f"{path} cannot be read: it is no JSON object. {_RESTORE}")
    if missing := [key for key in keys if key not in found]:
        raise TextEnvError(f"{path} cannot be read: it lacks {', '.join(missing)}. {_RESTORE}")
    return found


_RESTORE = "Expected it as textenv writes it: restore the file, or begin again in another folder."


def _not_finite(value: Any, where: str = "value") -> str:
    """Return where a number stands that is not finite, and what it is; ``""`` if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{where} is {value}"
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    inside = value.items() if isinstance(value, Mapping) else ()
    return next(filter(None, (_not_finite(item, f"{where}[{key!r}]") for key, item in inside)), "")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; one that is there stays as it is.

    Raises:
        TextEnvError: There is a file of that name, or the system refuses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a ValueError for a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise TextEnvError(f"{str(path)!r} cannot be made ({reason}); expected the path of a folder.") from error


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, or a run killed in the middle, finds the old content or the new, never a part.

    Args:
        path: The file, or a symbolic link to it, which stays; its folder exists.
        data: Its new content; text is written as UTF-8.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    path = _target(path)
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file under, which becomes the file when the context is left without an error.

    Args:
        path: As in ``write_atomically``, for a file that is too large for the memory or written by another library.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    path = _target(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Return the file that a path leads to: to rename a file to a symbolic link would replace the link."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if target.exists() and not target.is_file():  # a device, which would be replaced too
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return target


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing a run's folder at the same time.

    The system holds the lock for as long as this process lives: one that was killed leaves a file, and no lock. On
    Windows, and with a warning on file systems without locks, nothing is locked.

    Args:
        folder: Of the run; made if it is missing, and removed again where nothing was written into it.
        wait: Wait for another process that holds the lock.

    Raises:
        TextEnvError: Another run holds the lock.
    """
    path = folder / _LOCK_FILE
    file = _acquire(path, wait=wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            path.unlink()  # before the lock ends, or it might be another's
        os.close(file)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it is empty


def _acquire(path: Path, *, wait: bool) -> int:
    """Return the open file that holds the lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # whoever held the lock may have removed it
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # or has done so since
            continue
        try:
            _lock(file, path, wait=wait)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):  # else its holder removed it in the meantime
                    os.truncate(file, 0)
                    os.write(file, to_json({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path, *, wait: bool) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        try:
            holder = json.loads(os.pread(file, 1000, 0))
            who = f"process {holder['pid']} on {holder['host']}"
        except (ValueError, KeyError, TypeError):  # it has not written its name yet
            who = "another process"
        raise TextEnvError(
            f"{path.parent} is being written by {who}; expected a folder that no other run uses. Wait for that run or "
            "stop it, or give this one another folder."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent} is on a file system without locks ({error}): see to it that no other run writes it.",
            stacklevel=4,
        )
