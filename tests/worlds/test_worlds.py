"""Worlds by name, with arguments, by import path, and live."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.complaints import plain
from tests.worlds.checks import env_of
from textenv import CausalLM, TextEnvError, plugins
from textenv.types import World
from textenv.worlds import find, names
from textenv.worlds.guess_number import GuessNumber


def test_the_built_in_worlds_have_names() -> None:
    assert {"guess_number", "tic_tac_toe", "tools", "word_memory"} <= set(names())
    assert list(names()) == sorted(names())


def make_one() -> GuessNumber:
    return GuessNumber(high=5)


def unsaid():  # type: ignore[no-untyped-def]
    raise AssertionError("it is not called")


def unknown() -> Nonesuch:  # type: ignore[name-defined] # noqa: F821
    raise AssertionError("it is not called")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    made: Any = ModuleType("my_worlds")
    made.Mine, made.number, made.make, made.unsaid, made.unknown = GuessNumber, 3, make_one, unsaid, unknown
    monkeypatch.setitem(sys.modules, "my_worlds", made)
    return "my_worlds"


@pytest.mark.parametrize(
    ("spec", "name", "high"),
    [
        ("guess_number", "guess_number", 8),
        ({"name": "guess_number"}, "guess_number", 8),
        ({"name": "guess_number", "high": 3}, "guess_number", 3),
        ("my_worlds:Mine", "my_worlds:Mine", 8),
        ({"name": "my_worlds:Mine", "high": 4}, "my_worlds:Mine", 4),
        ("my_worlds:make", "my_worlds:make", 5),
        (GuessNumber, "GuessNumber", 8),
        (make_one, "make_one", 5),
        (GuessNumber(high=6), "GuessNumber", 6),
    ],
    ids=plain,
)
def test_a_world_is_found(spec: Any, name: str, high: int, module: str) -> None:
    found, make = find(spec)
    world = make()
    assert found == name
    assert isinstance(world, GuessNumber)
    assert isinstance(world, World)
    assert world.high == high
    assert (make() is world) is isinstance(spec, GuessNumber)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("guess_numbers", "There is no world named 'guess_numbers'. Did you mean 'guess_number'"),
        ("", "There is no world named ''"),
        ('{"name": "guess_number"}', "is JSON; expected the object itself"),
        ({"high": 3}, "has no name"),
        ({"name": 3}, "has no name"),
        ({"name": "guess_number", "hihg": 3}, "unexpected keyword argument 'hihg'. Did you mean 'high'"),
        ({"name": "gymnasium:X-v0", "name_": 1}, "cannot be made"),
        ("nonesuch.module:World", "The world 'nonesuch.module:World' cannot be imported"),
        ("my_worlds:Nonesuch", "cannot be imported"),
        ("my_worlds:number", "is 3; expected a class with reset and step, or a function"),
        ("os:abort", "The world 'os:abort' is <built-in function abort>; expected a class with reset and step"),
        ({"name": "os:system", "command": "exit 1"}, "The world 'os:system' is <built-in function system>"),
        ("my_worlds:unsaid", "and says so in its return annotation"),
        ("my_worlds:unknown", "and says so in its return annotation"),
        ("builtins:dict", "expected a class with reset and step"),
        (3, "world=3: expected a name such as"),
        (["guess_number"], "expected a name such as"),
    ],
    ids=plain,
)
def test_what_is_no_world_is_one_line(spec: Any, message: str, module: str) -> None:
    with pytest.raises(TextEnvError, match=message) as refused:
        find(spec)[1]()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "package", "install"),
    [
        ("reasoning_gym:chain_sum", "reasoning_gym", r"textenv\[reasoning-gym\]"),
        ("textarena:GuessTheNumber-v0", "textarena", r"textenv\[textarena\]"),
        ("gem:game:GuessTheNumber-v0-easy", "gem", "gem-llm"),
        ("openenv:http://127.0.0.1:1", "websockets.sync.client", r"textenv\[openenv\]"),
    ],
)
def test_a_package_that_is_missing_is_named(
    spec: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"The world '{spec}' needs '{package}', which cannot be imported .* Run: pip install '{install}'"
    with pytest.raises(TextEnvError, match=message):
        find(spec)[1]()


def test_what_makes_no_world_is_refused_by_the_environment(tiny_lm: CausalLM) -> None:
    made: list[Any] = [dict, functools.partial(dict)]
    for world in made:
        with pytest.raises(TextEnvError, match="expected an object with reset and step"), env_of(tiny_lm, world):
            pass


@pytest.mark.parametrize("package", ["textenv.worlds", "textenv.worlds.adapters"])
def test_every_bundled_world_is_held_to_the_contract(package: str) -> None:
    """Read from the files of the tests, some of which import packages that may be missing."""
    folder = Path(__file__).parent / package.removeprefix("textenv.worlds").replace(".", "")
    for name, class_name in plugins.built_in(package).items():
        path = folder / f"test_{name}.py"
        held = [
            ast.unparse(made.returns)
            for each in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(each, ast.ClassDef) and {ast.unparse(base) for base in each.bases} & {"WorldContract"}
            for made in each.body
            if isinstance(made, ast.FunctionDef) and made.name == "make_world" and made.returns is not None
        ]
        assert class_name in held, f"{path} has no WorldContract whose make_world returns {class_name}"
