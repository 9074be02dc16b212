"""``textenv``, the command line: finds the command that is named, reads its flags, and runs it.

The commands are the files of this folder, see ``textenv.commands.base``. Only that of the command that is named is
imported, so that help comes at once.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union

import tyro
from rich.table import Table
from rich.text import Text

import textenv
from textenv.commands.base import Command
from textenv.commands.console import console
from textenv.plugins import built_in
from textenv.rollouts.runtime import keep_memory, stopped_by_signals
from textenv.types import TextEnvError
from textenv.validation import unknown_name

__all__ = ["entry", "main"]

_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Its arguments, ``sys.argv[1:]`` unless given.

    Returns:
        The exit status: 128 and the signal's number where SIGTERM or SIGINT has ended the command.
    """
    given = list(sys.argv[1:] if args is None else args)
    command: Command | None = None
    try:
        with stopped_by_signals():
            command = _parse(given)
            if command.keeps_memory:
                keep_memory()
            return command.run()
    except TextEnvError as error:
        console.quiet = False
        console.print(Text("error:", style="bold red"), str(error), highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt as error:
        console.print("\nStopped.", (command or Command).after_signal, soft_wrap=True)
        return 128 + getattr(error, "number", int(signal.SIGINT))


def entry() -> NoReturn:
    """Run the command line as a program, and end the process.

    After a signal it ends at once: to free what torch and transformers hold takes seconds, and everything that a
    command has to put away is put away when ``main`` returns.
    """
    status = main()
    if status > 128:
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
        parsed: Command = tyro.cli(_union(_ROOT, given), args=given, prog="textenv", description=_ROOT.doc)
        return parsed
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
        found: Command = tyro.cli(entry.load(left), args=left, prog=" ".join(names))
        return found
    if left[:1] == ["--version"]:
        sys.stdout.write(f"textenv {textenv.__version__}\n")
        raise SystemExit(0)
    if left and left[0] not in ("-h", "--help"):
        raise unknown_name(f"{' '.join(names)} has no flag", left[0], ("--help", "--version"))
    _print_help(entry, names)
    raise SystemExit(0 if left else 2)


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
