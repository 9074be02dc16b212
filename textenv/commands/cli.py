"""``textenv``, the command line: finds the command that is named, reads its flags, and runs it.

The commands are the files of this folder, see ``textenv.commands.base``. Only that of the command that is named is
imported, so that help comes at once.

Here is the one boundary of errors: what a user can cause ends in one line, and any other exception, a mistake in a
program, in its traceback.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import io
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union

import tyro
from rich.table import Table
from rich.text import Text

import textenv
from textenv.commands.base import Command
from textenv.commands.console import console
from textenv.data.outputs import check_outputs
from textenv.data.values import short
from textenv.env.render import color_is_shown
from textenv.plugins import built_in
from textenv.rollouts.runtime import keep_memory, stopped_by_signals
from textenv.types import TextEnvError
from textenv.validation import unknown_name, validate

__all__ = ["entry", "main"]

_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Its arguments, ``sys.argv[1:]`` unless given.

    Returns:
        The exit status: 2 where the arguments are not those of a command, 128 and the signal's number where SIGTERM,
        SIGINT or the end of a pipe has ended it.
    """
    given = list(sys.argv[1:] if args is None else args)
    command: Command | None = None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may have no letters for a text
    tyro._experimental_options["ansi_codes"] = color_is_shown()
    try:
        with stopped_by_signals():
            command = _parse(given)
            validate(command)
            check_outputs(command)
            if command.keeps_memory:
                keep_memory()
            status = command.run()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as error:
        console.print("\nStopped.", (command or Command).after_signal, soft_wrap=True)
        return 128 + getattr(error, "number", int(signal.SIGINT))
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 128 + int(getattr(signal, "SIGPIPE", 13))
    except _user_errors() as error:
        console.quiet = False
        message = " ".join(_told(error).split("\n"))
        console.print(Text("error:", style="bold red"), message, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, _UsageError) else 1


class _UsageError(TextEnvError):
    """The arguments are not those of a command."""


def _user_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a user can cause; what is not loaded has raised none."""
    errors: list[type[Exception]] = [TextEnvError, OSError, MemoryError]
    for module, name in (("torch", "OutOfMemoryError"), ("safetensors", "SafetensorError")):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _told(error: Exception) -> str:
    """Return what to tell of an error that a user can cause."""
    if isinstance(error, TextEnvError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{os.fspath(error.filename)!r}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        return f"{where}{error.strerror or error}. {_REMEDIES.get(error.errno or 0, _GIVE_ANOTHER)}"
    if type(error).__name__ == "SafetensorError":
        return f"A file of weights could not be written or read: {error}. {_REMEDIES[errno.ENOSPC]}"
    return f"The memory does not suffice ({error}). Take fewer rows or episodes at once, or a smaller model."


_GIVE_ANOTHER = "Name another file or folder, or change who may read and write it."
_REMEDIES = {
    errno.ENOSPC: "Make room on the disk; the same command then goes on, or starts anew.",
    errno.EFBIG: "Files may not grow so large here (ulimit -f); the same command goes on, or starts anew, with more.",
    errno.EDQUOT: "Make room within your quota; the same command then goes on, or starts anew.",
}


def _reader_is_gone() -> bool:
    """Tell whether nobody reads the standard output any more; it then goes nowhere, so that Python ends without error.

    Another pipe may have broken: that of a worker process, say.
    """
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def entry() -> NoReturn:
    """Run the command line as a program, and end the process.

    After a signal it ends at once: to free what torch and transformers hold takes seconds, and everything that a
    command has to put away is put away when ``main`` returns.
    """
    status = main()
    if status > 128:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command, or a group of commands.

    Attributes:
        module: Its import name.
        path: Its file: of a group, that of its package.
        class_name: Of the command; None for a group.
    """

    module: str
    path: Path
    class_name: str | None = None

    @property
    def doc(self) -> str:
        """The first line of its help, read from the file so that the module is not imported."""
        tree = ast.parse(self.path.read_text("utf-8"))
        found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == self.class_name]
        return (ast.get_docstring(found[0] if found else tree) or "").partition("\n")[0]

    def load(self, arguments: Sequence[str]) -> Any:
        """Import the command; return its class, with the flags that depend on the arguments."""
        return getattr(importlib.import_module(self.module), str(self.class_name)).with_flags(arguments)

    def entries(self) -> dict[str, _Entry]:
        """Return the commands and groups of a group by name: those of ``import_.py`` is ``import``."""
        folder, found = self.path.parent, {}
        for name, class_name in built_in(self.module).items():
            found[name.rstrip("_").replace("_", "-")] = _Entry(
                f"{self.module}.{name}", folder / f"{name}.py", class_name
            )
        for module in pkgutil.iter_modules([str(folder)]):
            if module.ispkg:
                found[module.name] = _Entry(f"{self.module}.{module.name}", folder / module.name / "__init__.py")
        return dict(sorted(found.items()))


_ROOT = _Entry(__name__.rpartition(".")[0], Path(__file__).with_name("__init__.py"))


def _parse(given: Sequence[str]) -> Command:
    """Return the command that the arguments name.

    Raises:
        TextEnvError: There is none of that name.
        SystemExit: Help, the version or a completion was asked for, and printed; or flags are not what is expected.
    """
    if set(given) & set(_COMPLETION):
        return _print_completion(given)
    entry, names = _ROOT, ["textenv"]
    for word in given:
        if entry.class_name is not None or word.startswith("-"):
            break
        entries = entry.entries()
        if word not in entries:
            raise unknown_name(f"{' '.join(names)} has no command", word, entries)
        entry, names = entries[word], [*names, word]
    left = list(given[len(names) - 1 :])
    if entry.class_name is not None:
        return _read_flags(entry.load(left), left, " ".join(names))
    if left[:1] == ["--version"]:
        sys.stdout.write(f"textenv {textenv.__version__}\n")
        raise SystemExit(0)
    if left and left[0] not in ("-h", "--help"):
        raise unknown_name(f"{' '.join(names)} has no flag", left[0], ("--help", "--version"))
    _print_help(entry, names)
    sys.stdout.flush()
    raise SystemExit(0 if left else 2)


def _read_flags(command: Callable[..., Command], given: Sequence[str], prog: str) -> Command:
    """Return a command with what was typed.

    Raises:
        TextEnvError: A flag is unknown or missing, or its value is not what is expected.
        SystemExit: Help was asked for, and printed.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            found: Command = tyro.cli(command, args=given, prog=prog, registry=_VALUES)
            return found
    except SystemExit as stopped:
        if not stopped.code:
            sys.stdout.flush()
            raise
        # The parser shows errors in a box, those of the command's own settings too, and ends the process.
        cause: BaseException | None = stopped
        while cause is not None and not isinstance(cause, TextEnvError):
            cause = cause.__context__
        raise cause or _UsageError(_without_box(shown.getvalue(), prog)) from None


_VALUES = tyro.constructors.ConstructorRegistry()


@_VALUES.primitive_rule
def _value(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Say how numbers and paths are read; None for other types, which the parser knows how to read."""
    known: dict[Any, tuple[str, Callable[[str], Any]]] = {
        int: ("a whole number", int),
        float: ("a number", float),
        Path: ("a path that is not empty; '.' is this folder", lambda text: Path(text or _refuse())),
    }
    if info.type not in known:
        return None
    expected, make = known[info.type]

    def read(given: list[str]) -> Any:
        try:
            return make(given[0])
        except ValueError as error:
            raise ValueError(f"{short(given[0])}: expected {expected}.") from error

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if info.type is Path else info.type.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, info.type),
        str_from_instance=lambda value: [str(value)],
    )


def _refuse() -> NoReturn:
    raise ValueError  # Path("") would be the working folder


def _without_box(shown: str, prog: str) -> str:
    """Return in one line what the parser says in a box: its first part, and the flag that it suggests."""
    lines = [re.sub("^[│ ] | *[│ ]$", "", line) for line in Text.from_ansi(shown).plain.splitlines()[1:-1]]
    body = "\n".join(
        lines if re.search(r"\w", lines[0]) else lines[1:]
    )  # without the upper edge, where it has no letters
    first, *others = [part.split("\n") for part in re.split(r"\n *[─-]{10,} *\n", body)]
    if first[0].startswith("Missing from"):  # then the names of flags, each with its help below it
        flags = [line.strip() for line in first if re.match(" {4}[^ ]", line)]
        return f"{prog} needs {', '.join(flags)}. See {prog} --help."
    message = " ".join(line.strip() for line in first).rstrip(".: ")
    suggested = next((line.split()[0] for part in others for line in part if line.startswith("    --")), None)
    if message.startswith("Unrecognized") and suggested:
        message += f". Did you mean {suggested}?"
    return f"{message.rstrip('?')}{'?' if message.endswith('?') else '.'} See {prog} --help."


def _print_completion(given: Sequence[str]) -> NoReturn:
    """Print, or write to a file, what completes commands and flags in a shell.

    Raises:
        TextEnvError: No such shell, or no file.
    """
    shells, flag = ("bash", "zsh", "fish", "tcsh"), given[0]
    wanted = {_COMPLETION[0]: 2, _COMPLETION[1]: 3}.get(flag)
    if len(given) != wanted or given[1] not in shells:
        raise _UsageError(
            f"textenv {' '.join(given)}: expected {_COMPLETION[0]} SHELL, or {_COMPLETION[1]} SHELL FILE, of which "
            f"SHELL is one of {', '.join(shells)}."
        )
    tyro.cli(_union(_ROOT, given), args=given, prog="textenv", description=_ROOT.doc)
    raise SystemExit(0)


def _print_help(entry: _Entry, names: Sequence[str]) -> None:
    prog = " ".join(names)
    console.print(f"usage: {prog} [-h] COMMAND ...\n\n{entry.doc}\n", highlight=False, soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, inner in entry.entries().items():
        table.add_row(name, inner.doc)
    console.print(table)
    console.print(f"\nThe flags of each: {prog} COMMAND --help", highlight=False, soft_wrap=True)


def _union(entry: _Entry, given: Sequence[str]) -> Any:
    """Return the type that the parser makes all commands of a group from, which completion needs."""
    options: list[Any] = []
    for name, inner in entry.entries().items():
        made = _union(inner, given) if inner.class_name is None else inner.load(given)
        options.append(Annotated[made, tyro.conf.subcommand(name, description=inner.doc)])
    if len(options) == 1:  # one class alone would not be a subcommand
        options.append(Annotated[None, tyro.conf.Suppress])
    union: Any = Union[tuple(options)]  # noqa: UP007 (as many as there are files)
    return union


if __name__ == "__main__":
    entry()
