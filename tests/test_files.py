"""Files are whole or absent."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from textenv.files import locked, write_atomically
from textenv.types import TextEnvError


def test_text_and_bytes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "ä")
    write_atomically(tmp_path / "b", b"\x00")
    assert (tmp_path / "a").read_bytes() == "ä".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomically(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of a folder until it is killed."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom textenv.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)


def test_a_folder_is_locked_by_one_process_for_as_long_as_it_lives(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with hold(folder) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(
                    TextEnvError, match=rf"{folder} is being written by process {other.pid} on .*another folder"
                ),
                locked(folder),
            ):
                pytest.fail("it is held by another process")
        finally:
            other.kill()
    assert (folder / ".lock").exists(), "a process that is killed leaves the file"
    with locked(folder):  # and no lock
        (folder / "written").write_text("by this run")
    assert [path.name for path in folder.iterdir()] == ["written"]


def test_a_lock_is_free_again_after_an_error_and_leaves_no_folder_that_is_empty(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "run"):
            raise KeyError
        assert not (tmp_path / "run").exists()
    with (
        locked(tmp_path / "run"),
        pytest.raises(TextEnvError, match=f"process {os.getpid()} "),
        locked(tmp_path / "run"),
    ):
        pytest.fail("it is held by this process")


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="a file system without locks"), locked(tmp_path / "run"):
        pass
