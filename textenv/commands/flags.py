"""Flags that several commands have: those of an environment, of an agent, and of a reward."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints

import tyro

from textenv import plugins
from textenv.env.settings import TextEnvSettings
from textenv.types import Ranking, TextEnvError

__all__ = [
    "ENV_FIELDS",
    "TRAINING",
    "AgentFlags",
    "EnvFlags",
    "TrainEnvFlags",
    "agent_flags",
    "json_object",
    "last_value",
    "make_keywords",
    "parse_reward",
    "read_ranking_files",
]

ENV_FIELDS = ("model", "prompts", "reward")
"""Settings of an environment that commands have as flags of their own."""

TRAINING: dict[str, Any] = {"kl_mode": "lump"}
"""Defaults of training: paying an episode's KL at its end takes less computation, and the total is the same."""


def flags_of(
    settings: type[Any], without: Collection[str], hint: str, taken: Collection[str] = (), **other: Any
) -> Any:
    """Return a mapping type of the fields of the dataclass ``settings``, with their help.

    Its values hold what was typed and nothing else, also where that equals a default.

    Args:
        settings: The dataclass.
        without: Fields that the command line has itself.
        hint: What the help says after a default.
        taken: Names of other flags; a field of such a name has the flag ``--GROUP.NAME``, the others ``--NAME``.
        **other: Defaults of the command that are not those of ``settings``.
    """
    hints, help_texts = get_type_hints(settings), _help_texts(settings)
    fields = {}
    for each in dataclasses.fields(settings):
        if each.name not in without:
            default = other.get(each.name, f"{each.default}{hint}")
            about = tyro.conf.arg(
                help=help_texts[each.name],
                help_behavior_hint=f"(default: {default})",
                prefix_name=each.name in taken,
            )
            fields[each.name] = Annotated[hints[each.name], about]
    make: Any = TypedDict
    return make(f"{settings.__name__}Flags", fields, total=False)


def _help_texts(settings: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say of each attribute."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in settings.__mro__ if dataclasses.is_dataclass(cls)]):
        attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n(?:        .*|$))*)", attributes, re.M):
            found[name] = " ".join(text.split()).replace("``", "")
    return found


if TYPE_CHECKING:
    EnvFlags = dict[str, Any]
    TrainEnvFlags = dict[str, Any]
    AgentFlags = dict[str, Any]
else:
    _SETTINGS = tyro.conf.arg(name="environment", help="Settings of the environment.")
    _OWN = ", or the environment's own"
    EnvFlags = Annotated[flags_of(TextEnvSettings, ENV_FIELDS, _OWN), _SETTINGS]
    TrainEnvFlags = Annotated[flags_of(TextEnvSettings, ENV_FIELDS, _OWN, **TRAINING), _SETTINGS]
    AgentFlags = Annotated[dict[str, Any], tyro.conf.Suppress]


@cache
def agent_flags(command: Any, field: str, name: str) -> Any:
    """Return a command's class with a flag for every setting of an agent.

    Args:
        command: The class, whose ``field`` holds what was typed of the agent's settings.
        field: Name of that field.
        name: The agent's name, or the import path of its class.

    Raises:
        TextEnvError: There is no such agent.
    """
    config = plugins.agents().find(name).Config
    taken = {each.name for cls in (command, TextEnvSettings) for each in dataclasses.fields(cls)}
    about = tyro.conf.arg(name="agent", help=f"Settings of {name}.")
    flags = Annotated[flags_of(config, ["seed"], "", taken), about]  # type: ignore[valid-type]
    namespace = {"__annotations__": {field: flags}, field: dataclasses.field(default_factory=dict)}
    namespace |= {"__doc__": command.__doc__, "__module__": command.__module__}
    made = type(command.__name__, (command,), namespace)
    return dataclasses.dataclass(frozen=True)(made)


def last_value(arguments: Sequence[str], flag: str, default: str) -> str:
    """Return the value that arguments give to a flag, as the parser will read it: the last one counts."""
    found = default
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else arguments[place + 1] if place + 1 < len(arguments) else found
    return found


def make_keywords(
    settings: Mapping[str, Any], *, reward: str | None, model: str | None, prompts: Path | None
) -> dict[str, Any]:
    """Return the keywords of ``gymnasium.make``: what was typed, models with their absolute paths.

    The rest is the environment's own.

    Raises:
        TextEnvError: There is no such model, or the reward begins like a JSON object and is none.
    """
    from textenv.models.loading import resolve_model, resolve_models_in  # noqa: PLC0415 (loads torch)

    given = {
        "reward": None if reward is None else resolve_models_in(parse_reward(reward)),
        "model": None if model is None else resolve_model(model),
        "prompts": None if prompts is None else str(prompts),
    }
    return {**settings, **{name: value for name, value in given.items() if value is not None}}


def parse_reward(reward: str) -> Any:
    """Return the specification of a reward that was typed: a name, or the mapping that a JSON object stands for.

    Raises:
        TextEnvError: It begins like a JSON object, and is none.
    """
    if not reward.startswith("{"):
        return reward
    try:
        return json.loads(reward)
    except json.JSONDecodeError as error:
        raise TextEnvError(f"--reward {reward}: begins like a JSON object, and is none ({error}).") from error


def json_object(flag: str, text: str) -> dict[str, Any]:
    """Return the JSON object that was typed as the value of a flag.

    Raises:
        TextEnvError: It is none.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TextEnvError(f"{flag} {text}: expected a JSON object ({error}).") from error
    if not isinstance(value, dict):
        raise TextEnvError(f"{flag} {text}: expected a JSON object.")
    return value


def read_ranking_files(files: Sequence[Path]) -> list[Ranking]:
    """Return the rankings of several files.

    Raises:
        TextEnvError: A file cannot be read, or holds something else.
    """
    from textenv.feedback.formats import read_rankings  # noqa: PLC0415 (not needed to show the help)

    return [ranking for path in files for ranking in read_rankings(path)]
