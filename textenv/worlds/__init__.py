"""Worlds: what answers the agent, a text-level environment (``textenv.types.World``), one a file.

A file ``my_world.py`` in this folder that defines the class ``MyWorld`` is the world named ``my_world``. A file
``my_package.py`` in ``adapters/`` that defines ``MyPackage`` makes worlds of what another package has: the world
``my_package:NAME`` is ``MyPackage("NAME")``. Neither needs an entry anywhere else.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from textenv import plugins
from textenv.types import TextEnvError, World, short
from textenv.validation import did_you_mean
from textenv.worlds._resolve import check_makes

__all__ = ["find", "names"]

_ADAPTERS = f"{__name__}.adapters"


def names() -> tuple[str, ...]:
    """Return the names of the built-in worlds, sorted."""
    return tuple(plugins.built_in(__name__))


def find(spec: str | Mapping[str, Any] | Callable[[], World] | World) -> tuple[str, Callable[[], World]]:
    """Return what a world is called, and a function that makes one.

    - ``"guess_number"``: a built-in world, see ``names``.
    - ``"gymnasium:MyEnv-v0"``: one of another package, by an adapter.
    - ``"package.module:Class"``: your own, or a function annotated to return one; nothing else is called.
    - ``{"name": "guess_number", "high": 20}``: each of these with arguments.
    - A class, or a function that returns a new world each time. A world itself serves an environment of one row.

    Args:
        spec: The specification.

    Raises:
        TextEnvError: There is no such world, or it does not take these arguments.
    """
    arguments: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        arguments = dict(spec)
        spec = arguments.pop("name", None)
        if not isinstance(spec, str):
            raise TextEnvError(f"world={arguments!r} has no name; expected {{'name': 'guess_number', ...}}.")
    if isinstance(spec, str):
        if spec.lstrip().startswith(("{", "[")):
            raise TextEnvError(
                f"The world {short(spec)} is JSON; expected the object itself: json.loads of it, or a mapping such as "
                "{'name': 'guess_number', 'high': 20}."
            )
        return spec, _maker(spec, arguments)
    if callable(spec):
        return getattr(spec, "__name__", repr(spec)), spec
    if isinstance(spec, World):
        return type(spec).__name__, lambda: spec
    raise TextEnvError(
        f"world={spec!r}: expected a name such as 'guess_number', a mapping like {{'name': 'guess_number', "
        "'high': 20}, 'package.module:Class', a class or function that makes worlds, or a world with reset and step."
    )


def _maker(name: str, arguments: Mapping[str, Any]) -> Callable[[], World]:
    prefix, colon, rest = name.partition(":")
    adapters = plugins.built_in(_ADAPTERS)
    if colon and prefix in adapters:
        adapter = getattr(importlib.import_module(f"{_ADAPTERS}.{prefix}"), adapters[prefix])
        _check_arguments(name, adapter, (rest,), arguments)
        return functools.partial(adapter, rest, **arguments)
    found = plugins.find("world", __name__, name)
    check_makes("world", name, found, ("reset", "step"))
    _check_arguments(name, found, (), arguments)
    return functools.partial(found, **arguments)


def _check_arguments(name: str, make: Callable[..., Any], given: tuple[Any, ...], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a world does not take."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # a builtin, which says nothing of itself
        return
    try:
        signature.bind(*given, **arguments)
    except TypeError as error:
        known = [each for each in signature.parameters if each not in ("self", "name")]
        unknown = next((each for each in arguments if each not in known), "")
        raise TextEnvError(
            f"The world {name!r} cannot be made with the arguments {sorted(arguments)}: {error}."
            f"{did_you_mean(unknown, known)} It takes {', '.join(known) or 'none'}."
        ) from error
