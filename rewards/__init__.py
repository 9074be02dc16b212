"""Rewards: callables that score a batch of finished completions, one a file.

``make`` builds one from what a configuration can hold: a name, a mapping of JSON values, or an import path. A file
``my_reward.py`` in this folder that defines the class ``MyReward`` is the reward named ``my_reward``, without an entry
anywhere else.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, cast, get_origin, get_type_hints

from textenv.rewards.bleu import Bleu
from textenv.rewards.chrf import Chrf
from textenv.rewards.classifier import Classifier
from textenv.rewards.clip import Clip
from textenv.rewards.http import Http
from textenv.rewards.learned import Learned
from textenv.rewards.length import Length
from textenv.rewards.letters import Letters
from textenv.rewards.normalize import Normalize
from textenv.rewards.pattern import Pattern
from textenv.rewards.rouge import Rouge
from textenv.rewards.vader import Vader
from textenv.rewards.weighted_sum import WeightedSum
from textenv.types import Reward, TextEnvError

__all__ = [
    "Bleu",
    "Chrf",
    "Classifier",
    "Clip",
    "Http",
    "Learned",
    "Length",
    "Letters",
    "Normalize",
    "Pattern",
    "Rouge",
    "Vader",
    "WeightedSum",
    "make",
    "names",
]


def make(spec: str | Mapping[str, Any] | Callable[..., Any]) -> Reward:
    """Build a reward from its specification.

    - ``"vader"``: a built-in reward, see ``names``.
    - ``{"name": "length", "target": 20}``: the same, with arguments. Those called ``reward`` and ``rewards`` are
      specifications themselves: ``{"name": "clip", "reward": "vader", "low": -0.5, "high": 0.5}``.
    - ``"package.module:attribute"``, alone or as a ``name``: a reward of your own. It is the reward if it takes
      ``completions``; a class of rewards, or a function whose return annotation is one (or ``textenv.types.Reward``, or
      ``Callable``), is called with the arguments to make the reward. Nothing else is called.
    - A callable: itself. A class is called without arguments.

    Raises:
        TextEnvError: If there is no such reward, or it doesn't take these arguments.
    """
    if isinstance(spec, str):
        return _build(spec, _find(spec), {})
    if isinstance(spec, Mapping):
        arguments = dict(spec)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise TextEnvError(f"The reward {dict(spec)!r} has no name; expected {{'name': 'vader', ...}}.")
        return _build(name, _find(name), arguments)
    if callable(spec):
        return _build(repr(spec), spec, {}) if isinstance(spec, type) else cast("Reward", spec)
    raise TextEnvError(
        f"{spec!r} is no reward; expected a name such as 'vader', a mapping like {{'name': 'length', 'target': 20}}, "
        "an import path 'package.module:attribute', or a callable."
    )


def names() -> tuple[str, ...]:
    """Return the names of the built-in rewards, sorted."""
    return tuple(sorted(_built_in()))


@cache
def _built_in() -> dict[str, type[Any]]:
    files = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in files}
    classes = {name: getattr(module, name.title().replace("_", ""), None) for name, module in modules.items()}
    return {name: found for name, found in classes.items() if isinstance(found, type)}


def _find(name: str) -> Any:
    """Return what a name or an import path stands for."""
    if ":" not in name:
        if name in _built_in():
            return _built_in()[name]
        raise TextEnvError(
            f"There is no reward named {name!r}.{_closest(name, names())} The built-in ones are {', '.join(names())}; "
            "for one of your own give the import path, 'package.module:attribute'."
        )
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TextEnvError(
            f"The reward {name!r} cannot be imported ({error}). Expected 'package.module:attribute', the package "
            "installed or in a folder of PYTHONPATH."
        ) from error


def _build(name: str, found: Any, arguments: dict[str, Any]) -> Reward:
    """Return ``found`` if it is a reward, otherwise what it returns when called with ``arguments``."""
    if not callable(found):
        raise TextEnvError(f"The reward {name!r} is {found!r}; expected something to call.")
    if _scores(found):
        if arguments:
            raise TextEnvError(
                f"The reward {name!r} was given {sorted(arguments)}, but is itself the reward and takes no arguments. "
                "To set some, point at a class, or at a function that returns the reward."
            )
        return cast("Reward", found)
    if not (_makes_rewards(found) if isinstance(found, type) else _is_reward_type(_returned(found))):
        raise TextEnvError(
            f"The reward {name!r} is {found!r}, which is no reward: it takes no 'completions', and nothing says that "
            "what it returns is one. Expected a reward (see textenv.types.Reward), a class of them, or a function "
            "annotated '-> Reward' that makes one."
        )
    _check_arguments(name, inspect.signature(found).parameters, arguments)
    for key in {"reward", "rewards"} & set(arguments):
        value = arguments[key]
        arguments[key] = [make(inner) for inner in value] if isinstance(value, list | tuple) else make(value)
    reward = found(**arguments)
    if not _scores(reward):
        raise TextEnvError(
            f"Calling {name!r} returned {reward!r}; expected a reward, which is called with 'completions' and the rest."
        )
    return cast("Reward", reward)


def _scores(found: Any) -> bool:
    """Tell whether something is called as a reward is."""
    if not callable(found) or isinstance(found, type):
        return False
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # of a builtin, which says nothing of itself
        return False
    return "completions" in parameters or _takes_any(parameters)


def _makes_rewards(cls: type[Any]) -> bool:
    """Tell whether the instances of a class are called as a reward is."""
    call = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    return _scores(call)


def _returned(function: Any) -> Any:
    """Return what the annotation of a function says that it returns; None if it says nothing that can be looked up."""
    try:
        annotated = function if inspect.isroutine(function) else type(function).__call__
        return get_type_hints(annotated).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def _is_reward_type(annotation: Any) -> bool:
    """Tell whether an annotation is that of a reward."""
    if isinstance(annotation, type) and _makes_rewards(annotation):
        return True
    return annotation is Callable or get_origin(annotation) is Callable


def _check_arguments(name: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are unknown or missing."""
    empty = inspect.Parameter.empty
    known = {key: value.default for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD}
    unknown = [] if _takes_any(parameters) else [key for key in arguments if key not in known]
    missing = [key for key, default in known.items() if default is empty and key not in arguments]
    if unknown or missing:
        wrong = f"has no argument {unknown[0]!r}.{_closest(unknown[0], known)}" if unknown else f"needs {missing}."
        valid = ", ".join(key if default is empty else f"{key}={default!r}" for key, default in known.items())
        raise TextEnvError(
            f"The reward {name!r} {wrong} Its arguments: {valid or 'none'}. "
            f"Give them as {{'name': {name!r}, 'argument': value, ...}}."
        )


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _closest(given: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
