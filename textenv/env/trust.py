"""What a file may name: nothing in it runs code, or reads an environment variable, unless its reader trusts it.

What was typed on the command line, or given in Python, is the user's own and never comes here. What was read from a
file (the ``config.json`` of a run or of a policy, the TOML of a comparison) may be a stranger's, and goes through a
``Source`` before anything is looked up by it. ``docs/security.md`` says it for users.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from textenv.env.settings import TextEnvSettings
from textenv.types import TextEnvError

__all__ = ["Source"]

_IMPORT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d][\w.\-/]*")
_VARIABLE = re.compile(r"\$\{")
_OURS = frozenset(field.name for field in dataclasses.fields(TextEnvSettings))


@dataclass(frozen=True, slots=True)
class Source:
    """A file that names rewards, worlds, agents and environments.

    Every method returns what it was given, or raises ``TextEnvError``: the value would import a module, ask a server
    for a world, or hand out an environment variable, and ``trust`` is False; or it is of the wrong type.

    Attributes:
        path: The file, for messages.
        trust: Whether its reader trusts it as much as a program.
        how: How the reader says so, for messages.
    """

    path: Path
    trust: bool
    how: str = "--trust"

    def reward(self, spec: Any, kind: str = "reward") -> Any:
        """Check the specification of a reward, those inside it (of a weighted sum, say) included.

        Args:
            spec: The specification.
            kind: What it is called in messages.
        """
        if isinstance(spec, list | tuple):
            for inner in spec:
                self.reward(inner, kind)
            return spec
        self._name(kind, spec, "imports a module")
        if isinstance(spec, Mapping):
            for value in (spec.get(key) for key in ("reward", "rewards")):
                for inner in value if isinstance(value, list | tuple) else () if value is None else (value,):
                    self.reward(inner, kind)
            for text in _texts(spec):
                if _VARIABLE.search(text):
                    self._refuse(kind, text, "reads an environment variable")
        return spec

    def world(self, spec: Any) -> Any:
        """Check the specification of a world; without trust it is a built-in one, which asks no server."""
        self._name("world", spec, "imports a module or asks a server")
        for text in _texts(spec):
            if _IMPORT.fullmatch(text):
                self._refuse("world", text, "looks like the import of a module")
            if "://" in text:
                self._refuse("world", text, "looks like the address of a server")
            if _VARIABLE.search(text):
                self._refuse("world", text, "reads an environment variable")
        return spec

    def agent(self, name: Any) -> str:
        """Check the name of an agent."""
        if not isinstance(name, str):
            raise TextEnvError(f"{self.path}: agent {name!r}: expected a name.")
        if ":" in name:
            self._refuse("agent", name, "imports a module")
        return name

    def env(self, name: Any) -> str:
        """Check the id of an environment; without trust it has to be registered already."""
        if not isinstance(name, str):
            raise TextEnvError(f"{self.path}: env {name!r}: expected the id of an environment.")
        if ":" in name:
            self._refuse("env", name, "imports a module")
        elif name not in gym.registry:
            raise TextEnvError(
                f"{self.path}: env {name!r} is not registered. Expected one of textenv's or Gymnasium's own; for "
                f"another, write the file's id as 'package.module:{name}' and give {self.how} if you trust the file."
            )
        return name

    def settings(self, values: Any) -> dict[str, Any]:
        """Check keywords of ``gymnasium.make``: rewards and world, and texts that another environment may look up."""
        if not isinstance(values, Mapping):
            raise TextEnvError(f"{self.path}: settings {values!r}: expected an object.")
        for name, value in values.items():
            if name == "reward" or (name == "potential" and value is not None):
                self.reward(value, name)
            elif name == "world" and isinstance(value, str | Mapping):
                self.world(value)
            elif name == "world" or name not in _OURS:  # ours name files and models, which are read and not run
                for text in _texts(value):
                    if _IMPORT.fullmatch(text):
                        self._refuse(name, text, "looks like the import of a module")
                    if _VARIABLE.search(text):
                        self._refuse(name, text, "reads an environment variable")
        return dict(values)

    def _name(self, kind: str, spec: Any, why: str) -> None:
        """Refuse a specification that is neither a name nor an object, and a name with a colon, which does ``why``."""
        if not isinstance(spec, str | Mapping):
            raise TextEnvError(f"{self.path}: {kind} {spec!r}: expected a name, or an object with 'name'.")
        name = spec if isinstance(spec, str) else spec.get("name")
        if isinstance(name, str) and ":" in name:
            self._refuse(kind, name, why)

    def _refuse(self, kind: str, value: str, why: str) -> None:
        if not self.trust:
            raise TextEnvError(
                f"{self.path}: {kind} {value!r} {why}, which a file may do only if you trust it as you would a "
                f"program. Give {self.how} if you do."
            )


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
