"""The one validator of settings: types as strictly as ranges, one clear line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Gt, Interval, Le, Lt, MinLen
from hypothesis import given
from hypothesis import strategies as st

from textenv.types import TextEnvError, short
from textenv.validation import (
    Count,
    NonNegative,
    NonNegativeInt,
    Port,
    Positive,
    Probability,
    Seconds,
    Seed,
    Temperature,
    Threads,
    build,
    did_you_mean,
    validate,
    validated,
)


@dataclass(frozen=True, slots=True)
class Settings:
    rows: Count = 1
    seed: NonNegativeInt = 0
    rate: Positive = 1.0
    weight: NonNegative = 0.0
    share: Probability = 0.5
    top: Annotated[float, Gt(0), Le(1)] | None = None
    below: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    small: Annotated[int, Lt(10)] = 0
    on: bool = False
    name: Annotated[str, MinLen(1)] = "x"
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    sizes: tuple[Count, ...] = ()
    out: Path = Path("runs")
    free: Any = None
    table: dict[str, Any] = field(default_factory=dict)
    shares: Mapping[str, Probability] = field(default_factory=dict)
    random: Seed = 0
    heat: Temperature = 1.0
    port: Port = 0
    threads: Threads = 1
    wait: Seconds = 1.0

    def __post_init__(self) -> None:
        validate(self)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rows", 0, "a whole number of at least 1"),
        ("rows", True, "a whole number of at least 1"),
        ("rows", 1.0, "a whole number of at least 1"),
        ("rows", "1", "a whole number of at least 1"),
        ("seed", -1, "a whole number of at least 0"),
        ("rate", 0, "a finite number above 0"),
        ("rate", float("nan"), "a finite number above 0"),
        ("rate", float("inf"), "a finite number above 0"),
        ("rate", "1", "a finite number above 0"),
        ("rate", True, "a finite number above 0"),
        ("weight", -0.1, "a finite number of at least 0"),
        ("share", 1.5, "a finite number from 0 to 1"),
        ("top", 0, "a finite number above 0 and at most 1, or None"),
        ("below", 1, "a finite number of at least 0 and below 1"),
        ("small", 10, "a whole number below 10"),
        ("on", "no", "True or False"),
        ("on", 1, "True or False"),
        ("name", "", "a text that is not empty"),
        ("name", 3, "a text that is not empty"),
        ("kind", "c", "one of ['a', 'b']"),
        ("kind", None, "one of ['a', 'b']"),
        ("names", "ab", "a list, each item a text"),
        ("names", ["a", 1], "a list, each item a text"),
        ("sizes", [0], "a list, each item a whole number of at least 1"),
        ("out", "", "a path that is not empty and holds no NUL"),
        ("out", "a\0b", "a path that is not empty and holds no NUL"),
        ("out", 3, "a path that is not empty and holds no NUL"),
        ("seed", 2**63, "a whole number of at least 0 (of 64 bits)"),
        ("table", ["a"], "an object"),
        ("table", {1: 2}, "an object"),
        ("shares", {"a": 2}, "an object, each value a finite number from 0 to 1"),
        ("random", 10**30, "a whole number from 0 to 4294967295 (of 64 bits)"),
        ("random", 2**32, "a whole number from 0 to 4294967295"),
        ("heat", 1e-30, "a finite number from 0.0001 to 10000.0"),
        ("port", 65_536, "a whole number from 0 to 65535"),
        ("threads", 0, "a whole number from 1 to 1024"),
        ("wait", float("inf"), "a finite number above 0 and at most 100000000"),
    ],
)
def test_a_value_that_does_not_fit_is_one_clear_line(name: str, value: Any, expected: str) -> None:
    with pytest.raises(TextEnvError) as caught:
        Settings(**{name: value})
    assert str(caught.value) == f"{name}={short(value)}: expected {expected}."


def test_values_become_what_is_annotated() -> None:
    made = Settings(rows=np.int64(3), rate=2, top=np.float32(0.5), names=["a"], sizes=[np.int32(2)], out="x")  # type: ignore[arg-type]
    assert made.rows == 3
    assert type(made.rows) is int
    assert type(made.rate) is float
    assert type(made.top) is float
    assert made.names == ("a",)
    assert type(made.sizes[0]) is int
    assert made.out == Path("x")


def test_what_fits_stays_the_same_object() -> None:
    table, names = {"a": 1}, ("a", "b")
    made = Settings(table=table, names=names)
    assert made.table is table
    assert made.names is names


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.lists(st.integers())))
def test_any_value_passes_or_is_named(value: Any) -> None:
    for name in ("rows", "rate", "share", "top", "on", "kind", "names"):
        made, message = None, ""
        try:
            made = build(Settings, {name: value})
        except TextEnvError as error:
            message = str(error)
        if made is None:
            assert message.startswith(f"{name}=")
            assert ": expected " in message
        else:
            assert getattr(made, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("value", [10**400, 10**5000, "x" * 10**6], ids=["400 digits", "5000 digits", "text"])
@pytest.mark.parametrize("name", ["rows", "rate"])
def test_a_long_value_is_not_shown_whole(name: str, value: Any) -> None:
    with pytest.raises(TextEnvError, match=f"{name}=") as caught:
        build(Settings, {name: value})
    assert len(str(caught.value)) < 300


def test_unknown_and_missing_names() -> None:
    with pytest.raises(TypeError, match=r"Unknown setting 'row'. Did you mean 'rows'\? Expected one of: rows, seed"):
        build(Settings, {"row": 1})

    @dataclass
    class Needs:
        out: Path
        also: int = 0

    with pytest.raises(TextEnvError, match=r"Needs needs out; got \['also'\]"):
        build(Needs, {"also": 1})
    assert build(Needs, {"out": Path("x")}).out == Path("x")


def test_suggestions() -> None:
    assert did_you_mean("vadder", ["vader", "length"]) == " Did you mean 'vader'?"
    assert did_you_mean("zzz", ["vader"]) == ""


@dataclass
class Owned:
    sizes: Sequence[int] = ()

    def __post_init__(self) -> None:
        validate(self, owner="Owned")


@validated
def called(size: Count, *rest: int, names: Sequence[str] = (), **others: "Nowhere") -> tuple[Any, ...]:  # type: ignore[name-defined]  # noqa: F821
    """A function as any."""
    return size, rest, names, others


class Made:
    @validated
    def __init__(self, size: Count, unknown: "Nowhere" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.size = size


def test_the_arguments_of_a_function_are_checked_as_fields_are() -> None:
    call: Any = called
    assert call(np.int64(3), "a", names=["b"], more=4) == (3, ("a",), ("b",), {"more": 4})
    with pytest.raises(TextEnvError, match=r"called\(size='3'\): expected a whole number of at least 1\."):
        call("3")
    with pytest.raises(TextEnvError, match=r"called\(names='b'\): expected a list, each item a text\."):
        called(1, names="b")
    with pytest.raises(TextEnvError, match=r"Made\(size=0\): expected"):
        Made(0)
    with pytest.raises(TextEnvError, match=r"Owned\(sizes=\['a'\]\): expected a list, each item a whole number\."):
        Owned(["a"])  # type: ignore[list-item]
    assert Made(size=2, unknown=object()).size == 2
    assert Owned([1]).sizes == (1,)


def test_a_call_of_another_form_is_the_error_that_python_has_for_it() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        called()  # type: ignore[call-arg]
    assert called.__name__ == "called"
    assert called.__doc__ == "A function as any."


def test_a_value_is_shown_on_one_short_line() -> None:
    assert short("a") == "'a'"
    assert "\n" not in short(np.zeros((20, 20)))
    assert len(short(np.zeros((20, 20)))) < 200
