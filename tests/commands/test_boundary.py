"""The one boundary of errors: one line for what a user can cause, a traceback for a mistake in a program."""

import errno
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from textenv.commands import cli
from textenv.commands.base import Command
from textenv.commands.cli import main
from textenv.commands.console import tell
from textenv.types import TextEnvError
from textenv.validation import Count


@dataclass(frozen=True)
class Failing(Command):
    error: Exception | None = None
    count: Count = 1

    def run(self) -> int:
        if self.error is not None:
            raise self.error
        for number in range(5_000):
            tell(f"line {number}: é")
        return 0


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_error(error: Exception | None, **settings: Any) -> int:
        monkeypatch.setattr(cli, "_parse", lambda given: Failing(error, **settings))
        return main([])

    return with_error


USERS = {
    "our own": (TextEnvError("This is\nwrong."), "This is wrong."),
    "no file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "x[b]"), "'x[b]': No such file"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "run"), "Make room on the disk"),
    "a limit of size": (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    "a full disk, in safetensors": (SafetensorError("I/O error: File too large"), "Make room on the disk"),
    "a message alone": (OSError("cannot be read"), "cannot be read."),
    "no memory": (MemoryError("8 TiB"), "Take fewer rows"),
    "no memory on a GPU": (torch.OutOfMemoryError("CUDA out of memory"), "Take fewer rows"),
}


@pytest.mark.parametrize("kind", USERS)
def test_what_a_user_can_cause_is_one_line(kind: str, fails: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error, message = USERS[kind]
    assert fails(error) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x"), RuntimeError("x"), IndexError("x")])
def test_a_mistake_in_a_program_keeps_its_traceback(error: Exception, fails: Any) -> None:
    with pytest.raises(type(error), match="x"):
        fails(error)


def test_every_command_is_validated(fails: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(KeyError("not reached"), count=0) == 1
    assert capsys.readouterr().out == "error: count=0: expected a whole number of at least 1.\n"


def test_a_reader_that_is_gone_ends_it_in_silence(
    fails: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            status = fails(None)
        except SystemExit as stopped:  # how rich's consoles end
            status = stopped.code
        monkeypatch.undo()
    assert status in (1, 141)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_without_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    assert main(["sample", "é 基线"]) == 1
    sys.stdout.flush()
    assert rb"\xe9 \u57fa\u7ebf" in output.getvalue()


@pytest.mark.parametrize("text", ["run[v2]", "x[/b]", "<[/a-z]+>", ":smile:", "[bold]"])
def test_what_was_typed_is_shown_as_it_was(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / text.replace("/", "-")).write_text("a file")
    path = tmp_path / text.replace("/", "-")
    assert main(["reward", "data", "--out", str(path)]) == 1
    assert str(path) in capsys.readouterr().out
    assert main(["doctor", "--env", text]) == 1
    assert f"env={text!r}" in capsys.readouterr().out
