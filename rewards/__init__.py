"""Rewards: callables that score a batch of finished completions, one a file.

``make`` builds one from what a configuration can hold: a name, a mapping of JSON values, or an import path. A file
``my_reward.py`` in this folder that defines the class ``MyReward`` is the reward named ``my_reward``, without an entry
anywhere else.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, get_origin, get_type_hints

from textenv import plugins
from textenv.types import Reward, TextEnvError, short
from textenv.validation import did_you_mean

if TYPE_CHECKING:  # for editors and type checkers; a reward is found without an entry here
    from textenv.rewards.bleu import Bleu as Bleu
    from textenv.rewards.chrf import Chrf as Chrf
    from textenv.rewards.classifier import Classifier as Classifier
    from textenv.rewards.clip import Clip as Clip
    from textenv.rewards.counterfactual_gap import CounterfactualGap as CounterfactualGap
    from textenv.rewards.exact_match import ExactMatch as ExactMatch
    from textenv.rewards.http import Http as Http
    from textenv.rewards.learned import Learned as Learned
    from textenv.rewards.length import Length as Length
    from textenv.rewards.letters import Letters as Letters
    from textenv.rewards.normalize import Normalize as Normalize
    from textenv.rewards.pattern import Pattern as Pattern
    from textenv.rewards.quoted import Quoted as Quoted
    from textenv.rewards.rouge import Rouge as Rouge
    from textenv.rewards.summary_judge import SummaryJudge as SummaryJudge
    from textenv.rewards.vader import Vader as Vader
    from textenv.rewards.weighted_sum import WeightedSum as WeightedSum

__all__ = ["make", "names"]


def make(spec: str | Mapping[str, Any] | Callable[..., Any] | Sequence[Any], *, device: str | None = None) -> Reward:
    """Build a reward from its specification.

    - ``"vader"``: a built-in reward, see ``names``.
    - ``{"name": "length", "target": 20}``: the same, with arguments. Those called ``reward`` and ``rewards`` are
      specifications themselves: ``{"name": "clip", "reward": "vader", "low": -0.5, "high": 0.5}``.
    - ``"package.module:attribute"``, alone or as a ``name``: a reward of your own. It is the reward if it takes
      ``completions``; a class of rewards, or a function whose return annotation is one (or ``textenv.types.Reward``, or
      ``Callable``), is called with the arguments to make the reward. Nothing else is called. The module may also be in
      the working folder, see ``textenv.plugins.import_module``.
    - A callable: itself. A class is called without arguments.
    - A list of these: their sum, see ``textenv.rewards.WeightedSum``.

    Args:
        spec: The specification.
        device: Where the models of an environment run. A reward that has an argument ``device`` of None by default runs
            there, unless the specification says otherwise; so do the rewards inside of others.

    Raises:
        TextEnvError: If there is no such reward, it doesn't take these arguments, or it cannot be made of them.
    """
    if isinstance(spec, str):
        if spec.lstrip().startswith(("{", "[")):
            raise TextEnvError(
                f"The reward {short(spec)} is JSON; expected the object itself: json.loads of it, or a mapping such as "
                "{'name': 'length', 'target': 20}."
            )
        return _build(spec, _find(spec), {}, device)
    if isinstance(spec, Mapping):
        arguments = dict(spec)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise TextEnvError(f"The reward {short(dict(spec))} has no name; expected {{'name': 'vader', ...}}.")
        return _build(name, _find(name), arguments, device)
    if isinstance(spec, list | tuple):
        return make({"name": "weighted_sum", "rewards": spec}, device=device)
    if isinstance(spec, type):
        return _build(repr(spec), spec, {}, device)
    if callable(spec):
        parameters = _parameters(spec)
        if parameters is not None and not _takes_completions(parameters):
            raise TextEnvError(
                f"The reward {short(spec)} takes {', '.join(parameters) or 'nothing'}; expected a function that takes "
                "'prompts', 'completions' and 'completion_ids' by keyword, or **kwargs (see textenv.types.Reward)."
            )
        return cast("Reward", spec)
    raise TextEnvError(
        f"{short(spec)} is no reward; expected a name such as 'vader', a mapping like {{'name': 'length', "
        "'target': 20}, an import path 'package.module:attribute', a callable, or a list of these."
    )


def names() -> tuple[str, ...]:
    """Return the names of the built-in rewards, sorted."""
    return tuple(plugins.built_in(__name__))


def __getattr__(name: str) -> Any:
    """Import the class of a built-in reward when it is first used: ``textenv.rewards.WeightedSum``."""
    for file, class_name in plugins.built_in(__name__).items():
        if class_name == name:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *plugins.built_in(__name__).values()})


def _find(name: str) -> Any:
    """Return what a name or an import path stands for."""
    return plugins.find("reward", __name__, name)


def _build(name: str, found: Any, arguments: dict[str, Any], device: str | None) -> Reward:
    """Return ``found`` if it is a reward, otherwise what it returns when called with ``arguments``."""
    if not callable(found):
        raise TextEnvError(f"The reward {name!r} is {short(found)}; expected something to call.")
    if _scores(found):
        if arguments:
            raise TextEnvError(
                f"The reward {name!r} was given {sorted(arguments)}, but is itself the reward and takes no arguments. "
                "To set some, point at a class, or at a function that returns the reward."
            )
        return cast("Reward", found)
    if not (_makes_rewards(found) if isinstance(found, type) else _is_reward_type(_returned(found))):
        raise TextEnvError(
            f"The reward {name!r} is {short(found)}, which is no reward: it takes no 'completions', and nothing says "
            "that what it returns is one. Expected a reward (see textenv.types.Reward), a class of them, or a function "
            "annotated '-> Reward' that makes one."
        )
    parameters = _parameters(found) or {}
    _check_arguments(name, parameters, arguments)
    if device is not None and "device" in parameters and parameters["device"].default is None:
        arguments.setdefault("device", device)
    for key in {"reward", "rewards"} & set(arguments):
        value = arguments[key]
        arguments[key] = (
            [make(inner, device=device) for inner in value]
            if isinstance(value, list | tuple)
            else make(value, device=device)
        )
    try:
        reward = found(**arguments)
    except TextEnvError:
        raise
    except Exception as error:
        raise TextEnvError(
            f"Making the reward {name!r} of {short(arguments)} raised {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    if not _scores(reward):
        raise TextEnvError(
            f"Calling {name!r} returned {short(reward)}; expected a reward, which is called with 'completions' and the "
            "rest."
        )
    return cast("Reward", reward)


def _scores(found: Any) -> bool:
    """Return whether something is called as a reward is."""
    if not callable(found) or isinstance(found, type):
        return False
    parameters = _parameters(found)
    return parameters is not None and _takes_completions(parameters)


def _parameters(found: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Return what something is called with; None of a builtin, which may say nothing of itself."""
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError):
        return None


def _takes_completions(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return "completions" in parameters or _takes_any(parameters)


def _makes_rewards(cls: type[Any]) -> bool:
    """Return whether the instances of a class are called as a reward is."""
    call = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    return not issubclass(cls, type) and _scores(call)  # calling a metaclass makes a class


def _returned(function: Any) -> Any:
    """Return what the annotation of a function says that it returns; None if it says nothing that can be looked up."""
    try:
        annotated = function if inspect.isroutine(function) else type(function).__call__
        return get_type_hints(annotated).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def _is_reward_type(annotation: Any) -> bool:
    """Return whether an annotation is that of a reward."""
    if isinstance(annotation, type) and _makes_rewards(annotation):
        return True
    return annotation is Callable or get_origin(annotation) is Callable


def _check_arguments(name: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are unknown or missing."""
    empty = inspect.Parameter.empty
    known = {key: value.default for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD}
    if odd := [key for key in arguments if not isinstance(key, str)]:
        raise TextEnvError(f"The reward {name!r} was given the argument {odd[0]!r}; expected names that are texts.")
    unknown = [] if _takes_any(parameters) else [key for key in arguments if key not in known]
    missing = [key for key, default in known.items() if default is empty and key not in arguments]
    if unknown or missing:
        wrong = f"has no argument {unknown[0]!r}.{did_you_mean(unknown[0], known)}" if unknown else f"needs {missing}."
        valid = ", ".join(key if default is empty else f"{key}={default!r}" for key, default in known.items())
        raise TextEnvError(
            f"The reward {name!r} {wrong} Its arguments: {valid or 'none'}. "
            f"Give them as {{'name': {name!r}, 'argument': value, ...}}."
        )


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
