"""One validator of settings: dataclasses whose annotations say what each field may hold.

``Annotated[int, Ge(1)]`` is a whole number of at least 1, in the vocabulary of ``annotated_types``. A dataclass calls
``validate(self)`` in its ``__post_init__``; what concerns several fields together, it checks itself afterwards.
``validated`` checks the arguments of a function in the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from textenv.types import TextEnvError, short

__all__ = [
    "Count",
    "FilePath",
    "LearningRate",
    "NonEmpty",
    "NonNegative",
    "NonNegativeInt",
    "Port",
    "Positive",
    "Probability",
    "Seconds",
    "Seed",
    "Temperature",
    "Threads",
    "UnknownNameError",
    "build",
    "did_you_mean",
    "unknown_name",
    "validate",
    "validated",
]

Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, le=1)]
NonEmpty = Annotated[str, MinLen(1)]
FilePath: TypeAlias = NonEmpty | Path
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""What NumPy, torch, Gymnasium and Stable-Baselines3 all take as a seed."""
Threads = Annotated[int, Interval(ge=1, le=1024)]
Port = Annotated[int, Interval(ge=0, le=65_535)]
Seconds = Annotated[float, Interval(gt=0, le=10**8)]
"""A time to wait, below what the timers of the system can count."""
LearningRate = Annotated[float, Interval(gt=0, le=100)]
"""Of Adam, whose steps are as long as its rate whatever the gradient; weights are of the order of 1."""
Temperature = Annotated[float, Interval(ge=1e-4, le=1e4)]
"""What logits are divided by, within which they neither overflow nor vanish."""

P = ParamSpec("P")
T = TypeVar("T")


class UnknownNameError(TextEnvError, TypeError):
    """A keyword that is not known; a ``TypeError`` too, which other libraries probe for."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of the known names, or ``""`` if none is close."""
    match = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown_name(what: str, given: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not among those known.

    Args:
        what: What lacks the name, as the beginning of a sentence: ``"Unknown setting"``, ``"PPO has no setting"``.
        given: The name that was given.
        known: The names that exist.
    """
    names = list(known)
    return UnknownNameError(f"{what} {given!r}.{did_you_mean(given, names)} Expected one of: {', '.join(names)}.")


def build(cls: Callable[..., T], values: Mapping[str, Any], *, what: str = "Unknown setting") -> T:
    """Make a dataclass from a mapping.

    Args:
        cls: The dataclass.
        values: Its fields by name; those that are missing keep their defaults.
        what: What lacks a name that is unknown, as in ``unknown_name``.

    Raises:
        TextEnvError: A name is unknown, a field without a default is missing, or a value is not what is expected.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in fields if field.init]
    for name in values:
        if name not in names:
            raise unknown_name(what, name, names)
    missing = dataclasses.MISSING
    needed = [f.name for f in fields if f.init and f.default is missing and f.default_factory is missing]
    if absent := [name for name in needed if name not in values]:
        raise TextEnvError(f"{getattr(cls, '__name__', cls)} needs {', '.join(absent)}; got {sorted(values)}.")
    return cls(**values)


def validate(config: Any, *, owner: str | None = None) -> None:
    """Check every field of a dataclass against its annotation; numbers and lists become what is annotated.

    A NumPy integer becomes an ``int``, an ``int`` where a ``float`` is expected a ``float``, a list where a tuple is
    expected a tuple. ``float`` fields hold finite numbers, ``int`` fields whole numbers of 64 bits, mappings have texts
    as keys. Fields annotated ``Any`` or with a type that is not listed in this module are left alone.

    Args:
        config: An instance of a dataclass, frozen or not.
        owner: What the fields belong to, named in the message: ``"Length"``.

    Raises:
        TextEnvError: A value is not what is expected; the message names field, value and what was expected.
    """
    for name, hint in _hints(type(config)):  # type: ignore[arg-type]
        value = getattr(config, name)
        converted = _checked(owner, name, value, hint)
        if converted is not value:
            object.__setattr__(config, name, converted)


def validated(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function check its arguments against their annotations, as ``validate`` checks fields.

    Arguments whose annotation names what is imported for type checkers only are left alone.

    Args:
        function: A function, or a method such as ``__init__``.

    Raises:
        TextEnvError: When it is called, if an argument is not what is expected.
    """
    signature = inspect.signature(function)
    owner = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises the error that Python has for it
        for name, hint in _parameter_hints(function):
            if name in bound.arguments:
                bound.arguments[name] = _checked(owner, name, bound.arguments[name], hint)
        return function(*bound.args, **bound.kwargs)

    return checked


@functools.cache
def _parameter_hints(function: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    """Return the annotations of a function's parameters that can be looked up, but for ``*args`` and ``**kwargs``."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        one: Any = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            hints = get_type_hints(one, inspect.unwrap(function).__globals__, include_extras=True)
        except (NameError, AttributeError):  # imported for type checkers only
            continue
        found.append((name, hints[name]))
    return tuple(found)


def _checked(owner: str | None, name: str, value: Any, hint: Any) -> Any:
    """Return a value as an annotation has it.

    Raises:
        TextEnvError: It is not what the annotation says.
    """
    ok, converted = _convert(value, hint)
    if not ok:
        expected = _describe(hint)
        if isinstance(value, int) and not -(2**63) <= value < 2**63 and "whole number" in expected:
            expected += " (of 64 bits)"
        given = f"{name}={short(value)}"
        raise TextEnvError(f"{f'{owner}({given})' if owner else given}: expected {expected}.")
    return converted


@functools.cache
def _hints(cls: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))


def _convert(value: Any, hint: Any) -> tuple[bool, Any]:
    """Return whether a value is of an annotation, and the value as that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ok, converted = _convert(value, arguments[0])
        return ok and all(_holds(converted, constraint) for constraint in arguments[1:]), converted
    if origin in (Union, types.UnionType):
        for option in arguments:
            ok, converted = _convert(value, option)
            if ok:
                return True, converted
        return False, value
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments), value
    if origin is Sequence or (origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis):
        return _convert_items(value, arguments[0])
    if origin in (dict, Mapping):
        return _convert_mapping(value, arguments[1])
    return _convert_plain(value, hint)


def _convert_items(value: Any, hint: Any) -> tuple[bool, Any]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return False, value
    items = [_convert(item, hint) for item in value]
    converted = tuple(item for _, item in items)
    same = isinstance(value, tuple) and all(new is old for new, old in zip(converted, value, strict=True))
    return all(ok for ok, _ in items), value if same else converted


def _convert_mapping(value: Any, hint: Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False, value
    items = {key: _convert(item, hint) for key, item in value.items()}
    same = all(new is value[key] for key, (_, new) in items.items())
    return all(ok for ok, _ in items.values()), value if same else {key: new for key, (_, new) in items.items()}


def _convert_plain(value: Any, hint: Any) -> tuple[bool, Any]:
    if hint is type(None):
        return value is None, value
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        ok = isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63
        return ok, value if type(value) is int or not ok else int(value)
    if hint is float:
        if isinstance(value, float):  # NumPy's double too
            return math.isfinite(value), float(value) if type(value) is not float else value
        if isinstance(value, bool) or not isinstance(value, Real):
            return False, value
        try:
            converted = float(value)
        except OverflowError:
            return False, value
        return math.isfinite(converted), converted
    if hint is str:
        return isinstance(value, str), value
    if hint is Path:
        ok = isinstance(value, (str, Path)) and str(value) != "" and "\0" not in str(value)
        return ok, value if isinstance(value, Path) or not ok else Path(value)
    return True, value


def _holds(value: Any, constraint: Any) -> bool:
    """Return whether a value of the right type keeps a constraint; markers of other libraries hold always."""
    match constraint:
        case Ge(ge=bound):
            return bool(value >= bound)
        case Gt(gt=bound):
            return bool(value > bound)
        case Le(le=bound):
            return bool(value <= bound)
        case Lt(lt=bound):
            return bool(value < bound)
        case MinLen(min_length=size):
            return len(value) >= size
        case Interval():
            return all(_holds(value, part) for part in constraint)
    return True


def _describe(hint: Any) -> str:
    """Return what an annotation expects, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [bound for constraint in arguments[1:] for bound in _bounds(constraint)]
        return " ".join([_describe(arguments[0]), " and ".join(bounds)]).strip()
    if origin in (Union, types.UnionType):
        return ", or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return f"one of {list(arguments)}"
    if origin in (tuple, Sequence):
        return f"a list, each item {_describe(arguments[0])}"
    if origin in (dict, Mapping):
        return "an object" if arguments[1] is Any else f"an object, each value {_describe(arguments[1])}"
    names = {
        type(None): "None",
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "a text",
        Path: "a path that is not empty and holds no NUL",
    }
    return names.get(hint, str(hint))


def _bounds(constraint: Any) -> list[str]:
    match constraint:
        case Ge(ge=bound):
            return [f"of at least {bound}"]
        case Gt(gt=bound):
            return [f"above {bound}"]
        case Le(le=bound):
            return [f"at most {bound}"]
        case Lt(lt=bound):
            return [f"below {bound}"]
        case MinLen(min_length=size):
            return ["that is not empty" if size == 1 else f"of at least {size} characters or items"]
        case Interval(ge=low, le=high) if low is not None and high is not None:
            return [f"from {low} to {high}"]
        case Interval():
            return [text for part in constraint for text in _bounds(part)]
    return []
