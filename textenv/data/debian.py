"""Packages of Debian's archive: data that textenv uses and does not ship.

A package is fetched with ``apt-get download`` and unpacked with ``dpkg-deb``, neither of which installs or runs
anything of it. Single files are kept, and only if they have the SHA-256 that the caller names.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from textenv.data.files import make_folder, write_atomically
from textenv.data.packages import check_sha256
from textenv.data.reviews import cache_folder
from textenv.types import TextEnvError

__all__ = ["fetch_debian_files", "unpack_package"]


def unpack_package(package: str, folder: Path, remedy: str) -> Path:
    """Fetch a package and unpack its files below a folder.

    Args:
        package: Name of the Debian package.
        folder: An empty folder.
        remedy: What to do instead, a sentence for the error.

    Returns:
        The folder that stands for the root of the package's files.

    Raises:
        TextEnvError: The tools are missing or the archive is out of reach.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise TextEnvError(
                f"Fetching the Debian package {package!r} needs {tool}, which is not on this machine. {remedy}"
            )
    result = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False)
    archive = next(folder.glob("*.deb"), None)
    if archive is None:
        problem = " ".join(result.stderr.split())[-300:]
        raise TextEnvError(
            f"apt-get download {package} failed: {problem} Connect to Debian's archive, run 'apt-get update' and try "
            f"again. {remedy}"
        )
    subprocess.run(["dpkg-deb", "--extract", archive, folder / "unpacked"], check=True)
    return folder / "unpacked"


def fetch_debian_files(package: str, name: str, members: Mapping[str, str]) -> dict[str, Path]:
    """Return where files out of a package are kept, fetching them on first use.

    Args:
        package: Name of the Debian package.
        name: Folder of the cache (``textenv.data.reviews.cache_folder``) that they are kept in.
        members: SHA-256 of each file, in hexadecimal, by its path inside the package.

    Returns:
        A file in the cache for each member, by its path inside the package.

    Raises:
        TextEnvError: The package cannot be fetched or lacks a file, or a file has another SHA-256.
    """
    folder = cache_folder() / name
    paths = {member: folder / Path(member).name for member in members}
    if not all(path.exists() for path in paths.values()):
        make_folder(folder)
        with tempfile.TemporaryDirectory() as temporary:
            files = ", ".join(Path(member).name for member in members)
            root = unpack_package(package, Path(temporary), f"Or put {files} out of that package into {folder}.")
            for member, path in paths.items():
                if not (root / member).is_file():
                    raise TextEnvError(f"The Debian package {package} has no file {member}; expected one.")
                data = (root / member).read_bytes()
                check_sha256(data, members[member], f"{member} of {package}", "Use the package of Debian 12.")
                write_atomically(path, data)
    for member, path in paths.items():
        check_sha256(path.read_bytes(), members[member], f"{path}", f"Delete {path} and try again.")
    return paths
