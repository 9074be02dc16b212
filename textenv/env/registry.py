"""What others need to know of an environment id, registered with it.

A file in ``textenv/env/ids/`` registers an id and its record; an id of another package does the same with
``textenv.register``. Nothing else knows an id: what depends on it asks ``record_of``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from textenv import plugins
from textenv.types import TextEnvError, short
from textenv.validation import did_you_mean

__all__ = ["EnvRecord", "make_envs", "record_of", "register", "register_all"]


@dataclass(frozen=True, slots=True)
class EnvRecord:
    """What others need to know of an environment id.

    Attributes:
        held_out: Keywords of ``gymnasium.make`` that select its held-out prompts; None if it has none.
        agent_settings: Settings of agents that suit it better than their defaults, by name.
        enumerable: Whether all its texts can be enumerated (``textenv.analysis.exact``).
        takes_model: Whether it takes another model than its own as ``model``.
    """

    held_out: Mapping[str, Any] | None = None
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    enumerable: bool = False
    takes_model: bool = True


_RECORDS: dict[str, EnvRecord] = {}


def register(
    id: str,
    *,
    entry_point: Any,
    vector_entry_point: Any,
    record: EnvRecord | None = None,
    **keywords: Any,
) -> None:
    """Register an environment id with Gymnasium, and its record with textenv.

    Args:
        id: ``"namespace/Name-v0"``.
        entry_point: What makes the single environment, ``"package.module:attribute"`` or a callable.
        vector_entry_point: The same of the vector environment. Agents write many texts side by side in it.
        record: What others need to know of it; None for an ``EnvRecord`` of defaults.
        **keywords: Further keywords of ``gymnasium.register``.

    Raises:
        TextEnvError: ``record`` is no record, or ``id`` is no text.
    """
    given: object = record
    if given is not None and not isinstance(given, EnvRecord):
        raise TextEnvError(f"record={short(given)}: expected an EnvRecord, or None.")
    if not isinstance(id, str):
        raise TextEnvError(f"id={short(id)}: expected a text such as 'my/Env-v0'.")
    gymnasium.register(id=id, entry_point=entry_point, vector_entry_point=vector_entry_point, **keywords)
    _RECORDS[id] = record or EnvRecord()


def record_of(id: str) -> EnvRecord:
    """Return the record of an id; that of an id which was registered with Gymnasium alone has the defaults.

    Args:
        id: The id, or ``"package.module:id"``: the module is imported first, as ``gymnasium.make`` does, and may also
            be in the working folder. An id that stands in a file gets here only as ``textenv.env.trust`` allows.

    Raises:
        TextEnvError: Gymnasium knows no such id, or the module cannot be imported.
    """
    given: object = id
    if not isinstance(given, str):
        raise TextEnvError(f"env={short(given)}: expected the id of an environment, a text.")
    module, _, name = id.rpartition(":")
    if module:
        _import(id, module)
    if name not in _RECORDS and name not in gymnasium.registry:
        known = sorted(_RECORDS)
        full = f"textenv/{name}"
        suggested = did_you_mean(full if full in known else name, known)
        raise TextEnvError(
            f"env={id!r} is not registered.{suggested} Expected one of {', '.join(known)}, or your own, as "
            "'package.module:Name-v0' where that module registers it."
        )
    return _RECORDS.get(name, EnvRecord())


def make_envs(id: str, num_envs: int, **keywords: Any) -> Any:
    """Return a vector environment of an id, whose finished rows wait for a reset.

    Args:
        id: As of ``gymnasium.make_vec``.
        num_envs: Number of rows.
        **keywords: Of the environment.

    Raises:
        TextEnvError: There is no such id, it is that of no text environment, or a keyword is not what is expected.
    """
    record_of(id)
    mode = gymnasium.vector.AutoresetMode.DISABLED
    try:
        return gymnasium.make_vec(id, num_envs=num_envs, autoreset_mode=mode, **keywords)
    except (TypeError, gymnasium.error.Error) as error:
        if isinstance(error, TextEnvError) or id.rpartition(":")[2] in _RECORDS:
            raise
        raise TextEnvError(
            f"env={id!r} takes none of the settings of a text environment ({error}). Expected one of "
            f"{', '.join(sorted(_RECORDS))}, or your own, registered with textenv.register."
        ) from error


def _import(id: str, module: str) -> None:
    """Import the module that registers an id, as Gymnasium does.

    Raises:
        TextEnvError: It cannot be imported.
    """
    try:
        plugins.import_module(module)
    except (Exception, SystemExit) as error:  # a module is a program, which can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TextEnvError(
            f"env={id!r}: the module {module!r} cannot be imported ({reason}). Expected 'package.module:Name-v0', the "
            "package installed, in a folder of PYTHONPATH, or in the working folder."
        ) from error


def register_all() -> None:
    """Register the ids of the files in ``textenv/env/ids/``, which import nothing heavy."""
    package = importlib.import_module("textenv.env.ids")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"textenv.env.ids.{module.name}")
