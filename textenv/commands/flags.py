"""Flags that several commands have: those of an environment, of an agent, and of a reward."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, get_type_hints

import tyro

from textenv import plugins
from textenv.data.files import parse_json, parse_name_or_json
from textenv.data.values import short
from textenv.env.settings import TextEnvSettings, as_one_reward
from textenv.types import Ranking, TextEnvError

if TYPE_CHECKING:
    from textenv.models.watermark import Watermark

__all__ = [
    "ENV_FIELDS",
    "TRAINING",
    "AgentFlags",
    "EnvFlags",
    "TrainEnvFlags",
    "agent_flags",
    "in_groups",
    "json_object",
    "last_value",
    "make_keywords",
    "optional_watermark",
    "parse_reward",
    "parse_watermark",
    "read_ranking_files",
    "train_env_flags",
]

C = TypeVar("C")

ENV_FIELDS = ("model", "prompts", "reward", "info")
"""Settings of an environment that commands have as flags of their own; and the form of infos, which none reads."""

TRAINING: dict[str, Any] = {"kl_mode": "lump"}
"""Defaults of training: paying an episode's KL at its end takes less computation, and the total is the same."""


_GROUPS = {
    "world": r"world(_\w+)?|max_turns|max_tokens|context|turn_discount",
    "KL": r"kl_\w+",
    "LoRA": r"lora_\w+",
    "optimizer": r"(\w+_)?learning_rate|lr_\w+|adam_\w+|weight_decay|max_grad_norm|(mini|micro_)batch_size|precision|"
    "importance_cap|gradient_checkpointing",
}
"""Groups of flags in the help, and what the names of their settings match; all others are in a group of the rest."""


def flags_of(
    settings: type[Any], rest: str, without: Collection[str], hint: str, taken: Collection[str] = (), **other: Any
) -> Any:
    """Return a mapping type of the fields of the dataclass ``settings``, with their help, in groups.

    Its values hold what was typed and nothing else, also where that equals a default.

    Args:
        settings: The dataclass.
        rest: The group of the settings that no other group has.
        without: Fields that the command line has itself.
        hint: What the help says after a default.
        taken: Names of other flags; a field of such a name has the flag ``--GROUP.NAME``, the others ``--NAME``.
        **other: Defaults of the command that are not those of ``settings``.
    """
    hints, help_texts = get_type_hints(settings, include_extras=False), _help_texts(settings)
    groups: dict[str, dict[str, Any]] = {rest: {}}
    for each in dataclasses.fields(settings):
        if each.name not in without:
            default = other.get(each.name, f"{each.default}{hint}")
            about = tyro.conf.arg(
                help=help_texts[each.name],
                help_behavior_hint=f"(default: {default})",
                prefix_name=each.name in taken,
            )
            group = next((name for name, pattern in _GROUPS.items() if re.fullmatch(pattern, each.name)), rest)
            hint_of = str if hints[each.name] is Any else hints[each.name]  # a name, or a JSON object
            groups.setdefault(group, {})[each.name] = Annotated[hint_of, about]
    return _grouped(settings, groups)


def _grouped(settings: type[Any], groups: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a mapping type of fields that the help shows in groups; its values know nothing of these."""

    def merged(**given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for group in given.values() for name, value in group.items()}

    make: Any = TypedDict
    parameters: list[tuple[str, Any, Any]] = []
    for group, fields in groups.items():
        made = make(f"{settings.__name__}_{group}", dict(fields), total=False)
        parameters.append((group, Annotated[made, tyro.conf.arg(name=group, help="")], {}))
    constructor = _described(merged, parameters, None)
    return Annotated[dict[str, Any], tyro.conf.arg(name="", constructor=constructor)]


def _described(function: Callable[..., Any], parameters: Sequence[tuple[str, Any, Any]], doc: str | None) -> Any:
    """Give a function of keywords names, types and defaults (``...`` for none), by which the parser makes flags."""
    described: Any = function
    kind, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    described.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, kind, annotation=hint, default=empty if default is ... else default)
            for name, hint, default in parameters
        ]
    )
    described.__annotations__ = {name: hint for name, hint, _ in parameters}
    described.__doc__ = doc
    return described


def _help_texts(settings: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say of each attribute."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in settings.__mro__ if dataclasses.is_dataclass(cls)]):
        attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n(?:        .*|$))*)", attributes, re.M):
            found[name] = " ".join(text.split()).replace("``", "")
    return found


_OWN = ", or the environment's own"


def train_env_flags(**other: Any) -> Any:
    """Return the type of an environment's flags for a training command.

    Args:
        **other: Defaults of the command that are neither the environment's own nor ``TRAINING``.
    """
    return flags_of(TextEnvSettings, "environment", ENV_FIELDS, _OWN, **{**TRAINING, **other})


if TYPE_CHECKING:
    EnvFlags = dict[str, Any]
    TrainEnvFlags = dict[str, Any]
    AgentFlags = dict[str, Any]
else:
    EnvFlags = flags_of(TextEnvSettings, "environment", ENV_FIELDS, _OWN)
    TrainEnvFlags = train_env_flags()
    AgentFlags = Annotated[dict[str, Any], tyro.conf.Suppress]


@cache
def agent_flags(command: Any, field: str, name: str, **other: Any) -> Any:
    """Return a command's class with a flag for every setting of an agent.

    Args:
        command: The class, whose ``field`` holds what was typed of the agent's settings.
        field: Name of that field.
        name: The agent's name, or the import path of its class.
        **other: Defaults of the command that are not the agent's.

    Raises:
        TextEnvError: There is no such agent.
    """
    config = plugins.agents().find(name).Config
    taken = {each.name for cls in (command, TextEnvSettings) for each in dataclasses.fields(cls)}
    flags = flags_of(config, "agent", ["seed"], "", taken, **other)
    namespace = {"__annotations__": {field: flags}, field: dataclasses.field(default_factory=dict)}
    namespace |= {"__doc__": command.__doc__, "__module__": command.__module__}
    made = type(command.__name__, (command,), namespace)
    return dataclasses.dataclass(frozen=True)(made)


def in_groups(command: type[C], groups: Mapping[str, Collection[str]]) -> Callable[..., C]:
    """Return what to parse a command with so that the help shows its own flags in groups.

    Args:
        command: The class.
        groups: Names of fields by name of their group, in the order of the help. All other fields have groups already.
    """
    hints, help_texts = get_type_hints(command, include_extras=True), _help_texts(command)
    fields = {each.name: each for each in dataclasses.fields(command)}  # type: ignore[arg-type]

    def made(**given: Any) -> C:
        values = {name: value for name, value in given.items() if name not in groups}
        for group in groups:
            values |= {name: getattr(given[group], name) for name in groups[group]}
        return command(**values)

    parameters: list[tuple[str, Any, Any]] = []
    for group, names in groups.items():
        attributes = "\n".join(f"    {name}: {help_texts[name]}" for name in names)
        part = dataclasses.make_dataclass(
            group,
            [(name, hints[name], dataclasses.field(default=fields[name].default, kw_only=True)) for name in names],
            namespace={"__doc__": f"\n\nAttributes:\n{attributes}\n", "__module__": command.__module__},
        )
        parameters.append((group, Annotated[part, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=group, help="")], ...))
    grouped = {name for names in groups.values() for name in names}
    parameters += [(name, hints[name], {}) for name in fields if name not in grouped]
    described: Callable[..., C] = _described(made, parameters, command.__doc__)
    return described


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
        TextEnvError: There is no such model, or a reward begins like a JSON object and is none.
    """
    from textenv.models.loading import resolve_model, resolve_models_in  # noqa: PLC0415 (loads torch)

    weights = settings.get("reward_weights")
    if weights is not None and reward is None:
        raise TextEnvError("--reward-weights without --reward: give the rewards too, as a JSON list.")
    given = {
        "reward": None if reward is None else as_one_reward(resolve_models_in(parse_reward(reward)), weights),
        "model": None if model is None else resolve_model(model),
        "prompts": None if prompts is None else str(prompts),
    }
    if isinstance(settings.get("potential"), str):
        given["potential"] = resolve_models_in(parse_reward(settings["potential"], "potential"))
    if isinstance(settings.get("world"), str):
        given["world"] = parse_name_or_json(settings["world"], "The world")
    others = {name: value for name, value in settings.items() if name != "reward_weights"}
    return {**others, **{name: value for name, value in given.items() if value is not None}}


def parse_reward(reward: str, what: str = "reward") -> Any:
    """Return the specification of a reward that was typed: a name, or what a JSON object or list stands for.

    Args:
        reward: What was typed.
        what: What it is called in messages.

    Raises:
        TextEnvError: It begins like a JSON object or list, and is none.
    """
    return parse_name_or_json(reward, f"The {what}", lists=True)


def json_object(flag: str, text: str) -> dict[str, Any]:
    """Return the JSON object that was typed as the value of a flag.

    Raises:
        TextEnvError: It is none.
    """
    value = parse_json(text, f"{flag} {short(text)}: expected a JSON object; it")
    if not isinstance(value, dict):
        raise TextEnvError(f"{flag} {short(text)}: expected a JSON object.")
    return value


def parse_watermark(name: str, key_file: Path | None, settings: str) -> Watermark:
    """Return a watermark with its key.

    Args:
        name: What was given for ``--watermark``.
        key_file: File with the key; None for the environment variable.
        settings: Those of the scheme, as JSON.

    Raises:
        TextEnvError: The name or a setting is unknown, a value is not what is expected, or there is no key.
    """
    from textenv.models.watermark import check_name, make_watermark, read_key  # noqa: PLC0415 (loads torch)

    check_name(name)
    given = json_object("watermark_settings", settings)
    if "key" in given:
        raise TextEnvError("watermark_settings holds a key, which all users of the machine see; use a file.")
    return make_watermark(name, read_key(key_file), **given)


def optional_watermark(name: str | None, key_file: Path | None, settings: str) -> Watermark | None:
    """Return ``parse_watermark``, or None where no watermark is named.

    Raises:
        TextEnvError: As there; or a key or settings were given without a name.
    """
    if name is not None:
        return parse_watermark(name, key_file, settings)
    if key_file is not None or settings != "{}":
        raise TextEnvError("A watermark's key or settings, and no watermark; name it with --watermark.")
    return None


def read_ranking_files(files: Sequence[Path]) -> list[Ranking]:
    """Return the rankings of several files.

    Raises:
        TextEnvError: A file cannot be read, or holds something else.
    """
    from textenv.feedback.formats import read_rankings  # noqa: PLC0415 (not needed to show the help)

    return [ranking for path in files for ranking in read_rankings(path)]
