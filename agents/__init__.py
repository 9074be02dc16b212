"""RL algorithms that learn in textenv's environments, one a file."""

from __future__ import annotations

import dataclasses
import difflib
import pkgutil
from collections.abc import Mapping
from typing import Any

from textenv.types import TextEnvError

__all__ = ["AGENTS", "config_of", "find"]

AGENTS: dict[str, str] = {
    "a2c": "textenv.agents.a2c:A2C",
    "best_of_n": "textenv.agents.best_of_n:BestOfN",
    "expert_iteration": "textenv.agents.expert_iteration:ExpertIteration",
    "grpo": "textenv.agents.grpo:GRPO",
    "guided": "textenv.agents.guided:Guided",
    "mac": "textenv.agents.mac:MAC",
    "nlpo": "textenv.agents.nlpo:NLPO",
    "online_dpo": "textenv.agents.online_dpo:OnlineDPO",
    "ppo": "textenv.agents.ppo:PPO",
    "reinforce": "textenv.agents.reinforce:REINFORCE",
    "rloo": "textenv.agents.rloo:RLOO",
    "soft_q": "textenv.agents.soft_q:SoftQ",
}
"""The import path of each agent, by name."""


def find(name: str) -> Any:
    """Return the class of an agent: a name of ``AGENTS``, or the import path ``package.module:Class`` of one's own.

    One's own is best derived from ``textenv.agents.agent.Agent``. Any other class needs its methods ``learn``,
    ``predict``, ``sample``, ``save``, ``load`` and ``resume`` and its attribute ``steps``, is made as
    ``Class(env, config, world=world)``, and names the dataclass of its settings, of which one is ``seed``, in
    ``Class.Config``.

    Raises:
        TextEnvError: There is none.
    """
    if ":" not in name and name not in AGENTS:
        close = difflib.get_close_matches(name, AGENTS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise TextEnvError(
            f"There is no agent named {name!r}.{hint} Expected one of {', '.join(AGENTS)}, or the import path of your "
            "own, 'package.module:Class'."
        )
    try:
        found = pkgutil.resolve_name(AGENTS.get(name, name))
    except (ImportError, AttributeError, ValueError) as error:
        raise TextEnvError(
            f"The agent {name!r} cannot be imported ({error}). Expected 'package.module:Class', the package installed "
            "or in a folder of PYTHONPATH."
        ) from error
    needed = ("learn", "predict", "sample", "save", "load", "resume")
    missing = [needs for needs in needed if not callable(getattr(found, needs, None))]
    if not dataclasses.is_dataclass(getattr(found, "Config", None)):
        missing.insert(0, "Config")
    if missing or not isinstance(found, type):
        raise TextEnvError(
            f"The agent {name!r} is {found!r}, {f'without {missing}' if missing else 'which is no class'}; see "
            "textenv.agents.find."
        )
    return found


def config_of(agent: Any, settings: Mapping[str, Any]) -> Any:
    """Return the settings of an agent's class, made from JSON values.

    Raises:
        TextEnvError: A setting is unknown, or its value is not what is expected.
    """
    known = list(agent.Config.__dataclass_fields__)
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TextEnvError(f"{agent.__name__} has no setting {name!r}.{hint} It has: {', '.join(known)}.")
    return agent.Config(**settings)
