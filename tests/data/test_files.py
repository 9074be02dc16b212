"""Files are whole or absent."""

import ast
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_imports import modules
from textenv.data.files import locked, parse_json, read_json, replacing, to_json, write_atomically, write_json
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


def test_a_file_that_another_writes_is_whole_or_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")

    def write_half() -> None:
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert (tmp_path / "file").read_text() == "old"
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pytest.fail("a folder is no file")


def test_the_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomically(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("old", ["old", None])
def test_a_symbolic_link_stays_and_the_file_that_it_leads_to_is_written(old: str | None, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    if old is not None:
        target.write_text(old)
    (tmp_path / "link").symlink_to("elsewhere/file")
    (tmp_path / "link to link").symlink_to("link")
    write_atomically(tmp_path / "link to link", "new")
    assert target.read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link to link").is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("none/file"), "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (os.mkfifo, "Not a regular file"),
        (lambda path: path.symlink_to("/dev/full"), "Not a regular file"),
    ],
)
def test_what_is_no_file_is_neither_written_nor_replaced(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    before = (tmp_path / "x").lstat()
    with pytest.raises(OSError, match=reason):
        write_atomically(tmp_path / "x", "new")
    now = (tmp_path / "x").lstat()
    assert (now.st_mode, now.st_ino, now.st_size, now.st_mtime_ns) == (
        before.st_mode, before.st_ino, before.st_size, before.st_mtime_ns
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_json_round_trips(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ä"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == value
    assert (tmp_path / "x.json").read_text().endswith("}\n")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_has_no_numbers_that_are_none(number: float, tmp_path: Path) -> None:
    value = {"after": {"score": [1.0, {"stderr": number}]}}
    with pytest.raises(TextEnvError, match=rf"value\['after'\]\['score'\]\[1\]\['stderr'\] is {number}"):
        write_json(tmp_path / "x.json", value)
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(TextEnvError, match="value is"):
        to_json(number)


def loose(source: str) -> list[int]:
    """Return the lines that write JSON by themselves and let NaN pass."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("dump", "dumps"):
            strict: Any = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("allow_nan")
            if ast.unparse(node.func.value) == "json" and strict != "False":
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_all_json_is_written_without_nan(module: str) -> None:
    assert loose(modules()[module].read_text("utf-8")) == []


def test_loose_json_is_found() -> None:
    assert loose("json.dumps(x)\njson.dump(x, f, allow_nan=True)\njson.dumps(x, allow_nan=False)") == [1, 2]


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of a folder until it is killed."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom textenv.data.files import locked\n"
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


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": 1', b"\0", b"[]", b"5", b'{"a": "\xff"}', b"[" * 10**5, b'{"a": ' + b"1" * 5000 + b"}", b'{"b": 1}'],
    ids=["empty", "cut", "NUL", "list", "number", "bytes", "deep", "digits", "other"],
)  # fmt: skip
def test_a_damaged_file_of_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(TextEnvError) as caught:
        read_json(path, "a")
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert "\n" not in str(caught.value)
    assert "restore the file" in str(caught.value)


def test_a_whole_file_of_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": "ä"})
    assert read_json(tmp_path / "x.json", "a") == {"a": "ä"}
    with pytest.raises(TextEnvError, match=r"no\.json cannot be read: No such file"):
        read_json(tmp_path / "no.json")
    assert parse_json("[1]", "It") == [1]
