"""Environments of GEM, against a stand-in for the package; ``examples/gem_world.py`` runs with the package itself."""

from __future__ import annotations

import logging
import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError, TextVectorEnv
from textenv.testing import WorldContract
from textenv.worlds import find
from textenv.worlds.adapters.gem import Gem


class Dice:
    """Is as GEM's environments are: seeds and draws from the random numbers that all of a process shares."""

    def __init__(self, sides: int = 6, max_turns: int = 4, **_: Any) -> None:
        self.sides, self.max_turns, self.turn, self.closed = sides, max_turns, 0, False
        self.reset()

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
        self.turn = 0
        return f"Guess, 1 to {self.sides}.", {"suffix": "Your guess: "}

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        self.turn += 1
        thrown = random.randint(1, self.sides), int(np.random.randint(self.sides)) + 1  # noqa: NPY002
        over = self.turn == self.max_turns
        reward = np.float64(action.strip() in map(str, thrown))
        return f"It was {thrown}.", reward, over, over, {"prefix": "Well.", "suffix": "Your guess: "}

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def gem(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(env_id: str, **settings: Any) -> Dice:
        if env_id != "game:Dice-v0":
            raise ValueError(f"Environment \x1b[93m{env_id}\x1b[0m not found\n  in registry.")
        return Dice(**{"sides": 6, **settings})

    package: Any = ModuleType("gem")
    package.make = make
    monkeypatch.setitem(sys.modules, "gem", package)


class TestGem(WorldContract):
    most_turns = 4
    texts = ("1", "2", "3", "none", "")

    def make_world(self) -> Gem:
        return Gem("game:Dice-v0")


def test_what_it_says_is_in_lines() -> None:
    name, make = find({"name": "gem:game:Dice-v0", "sides": 1, "max_turns": 2})
    world = make()
    assert name == "gem:game:Dice-v0"
    assert world.reset(seed=0)[0] == "Guess, 1 to 1.\nYour guess: \n"
    said, reward, terminated, truncated, _ = world.step("1")
    assert said == "\nWell.\nIt was (1, 1).\nYour guess: \n"
    assert (reward, terminated, truncated) == (1.0, False, False)
    assert type(reward) is float
    assert world.step("2")[1:4] == (0.0, True, True)


def test_closing_closes_it() -> None:
    world = Gem("game:Dice-v0")
    world.close()
    assert world._env.closed


def test_what_the_package_refuses_is_one_line() -> None:
    for spec, message in (
        ("gem:game:Nonesuch-v0", "ValueError: Environment game:Nonesuch-v0 not found in registry"),
        ({"name": "gem:game:Dice-v0", "env_id": "x"}, "TypeError: .*multiple values for"),
    ):
        with pytest.raises(TextEnvError, match=f"The world 'gem:.*' cannot be made: {message}"):
            find(spec)[1]()


def test_importing_it_leaves_the_logging_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    source = "import logging\nlogging.basicConfig(level=logging.INFO, force=True)\nmake = str\n"
    (tmp_path / "gem.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gem")
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    Gem("x")
    assert (root.level, root.handlers) == before


def test_in_an_environment(tiny_lm: CausalLM) -> None:
    passes_both_checkers(tiny_lm, "gem:game:Dice-v0", max_new_tokens=2)
    with env_of(tiny_lm, {"name": "gem:game:Dice-v0", "sides": 1, "max_turns": 2}, kl_coef=0.0) as env:
        env.reset(seed=0)
        assert write(env, "1")[:3] == (1.0, False, False)
        paid, terminated, truncated, info = write(env, "2")
        assert (paid, terminated, truncated, info["stop_reason"]) == (0.0, True, False, "world")  # both: it is over


def test_rows_side_by_side_are_as_each_alone(tiny_lm: CausalLM) -> None:
    settings: dict[str, Any] = {"model": tiny_lm, "world": "gem:game:Dice-v0", "max_new_tokens": 1, "max_turns": 2}
    tokens = np.arange(40, 44)
    alone = []
    for row in range(4):
        with env_of(**settings) as env:
            env.reset(seed=3 + row)
            alone.append([env.step(tokens[row]) for _ in range(2)][-1][4]["turns"])
    envs = TextVectorEnv(4, autoreset_mode="Disabled", world_workers=3, **settings)
    envs.reset(seed=3)
    infos = [envs.step(tokens) for _ in range(2)][-1][4]
    envs.close()
    assert list(infos["turns"]) == alone
    assert len({turns[0].answer for turns in alone}) > 1
