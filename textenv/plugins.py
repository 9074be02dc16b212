"""Agents, rewards and worlds by name: each is a file of its folder, or an import path of one's own.

The only place that imports them by name. A file ``my_reward.py`` in ``rewards/`` that defines the class ``MyReward`` is
the reward ``my_reward``; a file ``my_agent.py`` in ``agents/`` that defines ``MyAgent`` and ``MyAgentConfig`` is the
agent ``my_agent``. Nothing else has to be edited. Names are found by reading the files, so that listing them imports
none of them.

An import path comes from the command line or from Python. One that stands in a file gets here only if the reader trusts
the file (``textenv.env.trust``).
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import Any

from textenv.types import TextEnvError, short
from textenv.validation import did_you_mean

__all__ = ["agents", "at_path", "built_in", "find", "import_module", "rewards", "worlds"]


@functools.cache
def built_in(package: str, *, suffixes: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Return the classes that the files of a package are named after, by file name, sorted.

    Args:
        package: Its import name, such as ``"textenv.rewards"``.
        suffixes: What is appended to the name of the class for each class that the file must define; the first is the
            class that counts.
    """
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = {}
    for path in sorted(path for folder in folders for path in Path(folder).glob("[!_]*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        classes = {node.name.lower(): node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        wanted = [f"{path.stem.replace('_', '')}{suffix.lower()}" for suffix in suffixes]
        if all(name in classes for name in wanted):
            found[path.stem] = classes[wanted[0]]
    return found


def find(kind: str, package: str, name: str, *, suffixes: tuple[str, ...] = ("",)) -> Any:
    """Return the class of a built-in name, or what an import path ``package.module:attribute`` stands for.

    Args:
        kind: What it is called in messages, such as ``"agent"``.
        package: Where the built-in ones are.
        name: The name or the import path.
        suffixes: As in ``built_in``.

    Raises:
        TextEnvError: There is none, or it cannot be imported.
    """
    known = built_in(package, suffixes=suffixes)
    given: object = name
    if not isinstance(given, str):
        raise TextEnvError(f"The name of the {kind} is {short(given)}; expected a text: one of {', '.join(known)}.")
    if name in known:
        return getattr(importlib.import_module(f"{package}.{name}"), known[name])
    if ":" not in name:
        raise TextEnvError(
            f"There is no {kind} named {name!r}.{did_you_mean(name, known)} Expected one of {', '.join(known)}, or the "
            "import path of your own, 'package.module:attribute'."
        )
    return at_path(kind, name)


def at_path(kind: str, path: str) -> Any:
    """Return what an import path ``package.module:attribute`` stands for.

    The module is an installed one, one in a folder of ``PYTHONPATH``, or one in the working folder.

    Args:
        kind: What it is called in messages, such as ``"agent"``.
        path: The import path.

    Raises:
        TextEnvError: It cannot be imported.
    """
    try:
        import_module(path.partition(":")[0])
        return pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:  # a module is a program, which can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ImportError, AttributeError, ValueError)):
            reason = f"{type(error).__name__}: {reason}"
        raise TextEnvError(
            f"The {kind} {path!r} cannot be imported ({reason}). Expected 'package.module:attribute', the package "
            f"installed, in a folder of PYTHONPATH, or in the working folder, {Path.cwd()}."
        ) from error


def import_module(name: str) -> Any:
    """Import a module that was named on the command line or in Python, also from the working folder.

    A script such as ``textenv`` does not look there, unlike ``python -m``. Where the module's package is found nowhere
    else and in the working folder, this is put at the end of ``sys.path`` and stays there: the module may import others
    of the folder later, and other processes of a run have to find it too.

    Args:
        name: Import name of the module.

    Raises:
        Exception: Whatever importing the module raises; an ``ImportError`` where there is none.
    """
    top, here = name.partition(".")[0], Path.cwd()
    missing = top.isidentifier() and top not in sys.modules and importlib.util.find_spec(top) is None
    if missing and ((here / f"{top}.py").is_file() or (here / top).is_dir()):
        sys.path.append(str(here))
        importlib.invalidate_caches()
    return importlib.import_module(name)


def agents() -> Any:
    """Return the package of the agents: its ``find``, ``config_of``."""
    return importlib.import_module("textenv.agents")


def rewards() -> Any:
    """Return the package of the rewards: its ``make``."""
    return importlib.import_module("textenv.rewards")


def worlds() -> Any:
    """Return the package of the worlds: its ``find``."""
    return importlib.import_module("textenv.worlds")
