"""RL algorithms that learn in textenv's environments, one a file.

A file ``my_agent.py`` in this folder that defines the classes ``MyAgent`` and ``MyAgentConfig`` is the agent
``my_agent``; no list has to be edited. An agent's file imports what is slow (torch, models, rollouts) at its first use,
through ``textenv.lazy``, so that its settings can be read at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from textenv import plugins
from textenv.types import TextEnvError
from textenv.validation import build

__all__ = ["config_of", "find", "names"]

_SUFFIXES = ("", "Config")
_METHODS = ("learn", "predict", "sample", "save", "load", "resume")


def names() -> list[str]:
    """Return the names of the agents in this folder, sorted."""
    return list(plugins.built_in("textenv.agents", suffixes=_SUFFIXES))


def find(name: str) -> Any:
    """Return the class of an agent: one of ``names()``, or the import path ``package.module:Class`` of one's own.

    One's own is best derived from ``textenv.agents.agent.Agent``. Any other class needs its methods ``learn``,
    ``predict``, ``sample``, ``save``, ``load`` and ``resume`` and its attribute ``steps``, is made as
    ``Class(env, config, processes=processes)``, and names the dataclass of its settings, of which one is ``seed``, in
    ``Class.Config``. ``textenv.compare.runs.Measurable`` lists what it may have besides.

    Raises:
        TextEnvError: There is none.
    """
    found = plugins.find("agent", "textenv.agents", name, suffixes=_SUFFIXES)
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if not dataclasses.is_dataclass(getattr(found, "Config", None)):
        missing.insert(0, "Config")
    if missing or not isinstance(found, type):
        raise TextEnvError(
            f"The agent {name!r} is {found!r}, {f'without {missing}' if missing else 'which is not a class'}; see "
            "textenv.agents.find."
        )
    return found


def config_of(agent: Any, settings: Mapping[str, Any]) -> Any:
    """Return the settings of an agent's class, made from JSON values.

    Raises:
        TextEnvError: A setting is unknown, or its value is not what is expected.
    """
    return build(agent.Config, settings, what=f"{agent.__name__} has no setting")
