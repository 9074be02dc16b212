"""Games of TextArena, alone and against an opponent."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conftest import build_lm
from tests.families import make_family
from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import TextEnvError
from textenv.testing import WorldContract
from textenv.worlds import find
from textenv.worlds.adapters.textarena import TextArena

pytest.importorskip("textarena")


class TestTextArenaAlone(WorldContract):
    texts = ("[1]", "I guess [7].", "[20]", "none", "", "[3]", "[4]", "[12]", "[9]")

    def make_world(self) -> TextArena:
        return TextArena("GuessTheNumber-v0")


class TestTextArenaAgainstRandomMoves(WorldContract):
    texts = ("[0]", "[1]", "[2]", "[3]", "[4]", "[5]", "[6]", "[7]", "[8]", "none")

    def make_world(self) -> TextArena:
        return TextArena("TicTacToe-v0", opponent="random", player=1)


class TestTextArenaAgainstAList(WorldContract):
    texts = ("[bet]", "[check]", "[call]", "[fold]", "none")
    most_turns = 60

    def make_world(self) -> TextArena:
        return TextArena("KuhnPoker-v0", opponent=["[check]", "[fold]", "[call]"])


def free_squares(told: str) -> list[int]:
    return [int(square) for square in re.findall(r"'\[(\d)\]'", told.rpartition("Available Moves:")[2])]


def lowest(told: str) -> str:
    """An opponent that takes the lowest square that is free."""
    return f"[{free_squares(told)[0]}]"


def test_a_game_alone_is_won_by_halving() -> None:
    world = TextArena("GuessTheNumber-v0")
    for seed in range(10):
        first, _ = world.reset(seed=seed)
        assert "between 1 and 20" in first
        low, high, done, reward = 1, 20, False, 0.0
        while not done:
            guess = (low + high) // 2
            said, reward, done, truncated, _ = world.step(f"[{guess}]")
            assert not truncated
            assert first not in said  # what it was told before is not said again
            low, high = (guess + 1, high) if "higher" in said else (low, guess - 1)
        assert reward == 1.0


@pytest.mark.parametrize("opponent", [lowest, f"{__name__}:lowest"])
def test_an_opponent_is_a_function(opponent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "lowest", lowest, raising=False)
    world = TextArena("TicTacToe-v0", opponent=opponent)
    world.reset(seed=0)
    said, reward, done, *_ = world.step("[8]")
    assert "[Player 1] [0]" in said
    assert (reward, done, free_squares(said)) == (0.0, False, [1, 2, 3, 4, 5, 6, 7])
    said = world.step("[7]")[0]
    assert "[Player 1] [1]" in said
    said, reward, done, *_ = world.step("[6]")
    assert (reward, done) == (1.0, True)
    assert "Player 0 has won" in said


def test_the_opponent_wins_too() -> None:
    world = TextArena("TicTacToe-v0", opponent=lowest, player=1)
    first, _ = world.reset(seed=0)
    assert free_squares(first) == [1, 2, 3, 4, 5, 6, 7, 8]  # it has moved
    world.step("[8]")
    said, reward, done, *_ = world.step("[3]")
    assert (reward, done) == (-1.0, True)
    assert "Player 0 has won" in said


def test_random_moves_are_moves_that_there_are() -> None:
    world = TextArena("TicTacToe-v0", opponent="random")
    taken = set()
    for seed in range(60):
        world.reset(seed=seed)
        said, _, done, *_ = world.step("[4]")
        assert not done
        taken.add(re.findall(r"\[Player 1\] \[(\d)\]", said)[0])
    assert taken == set("01235678")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "textarena:Nonesuch-v0"}, "1 player .*not found in registry"),
        ({"name": "textarena:TicTacToe-v0"}, "1 player .*has to be 2.* A game of two needs an opponent"),
        ({"name": "textarena:GuessTheNumber-v0", "opponent": "random"}, "2 players .*has to be 1"),
        ({"name": "textarena:GuessTheNumber-v0", "numbers": 3}, "unexpected keyword argument 'numbers'"),
        ({"name": "textarena:GuessTheNumber-v0", "player": 1}, "player=1: expected a number below"),
        ({"name": "textarena:TicTacToe-v0", "opponent": "random", "player": 2}, "player=2"),
        ({"name": "textarena:TicTacToe-v0", "opponent": []}, r"opponent=\[\]: expected a list of moves"),
        ({"name": "textarena:TicTacToe-v0", "opponent": [1]}, r"opponent=\[1\]: expected a list of moves"),
        ({"name": "textarena:TicTacToe-v0", "opponent": "lowest"}, "The opponent 'lowest': expected 'package.module"),
        (
            {"name": "textarena:TicTacToe-v0", "opponent": "nonesuch:it"},
            "'nonesuch:it' cannot be imported",
        ),
        ({"name": "textarena:TicTacToe-v0", "opponent": 3}, "The opponent 3 is 3; expected something that can be call"),
    ],
    ids=str,
)
def test_what_cannot_be_played_is_one_line(spec: Any, message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        find(spec)[1]()


def test_in_an_environment() -> None:
    lm = make_family("llama", max_position_embeddings=2048)
    world = {"name": "textarena:TicTacToe-v0", "opponent": "random", "player": 1}
    passes_both_checkers(lm, world, max_new_tokens=3, max_turns=4, max_tokens=2000)
    with env_of(lm, world, kl_coef=0.0, max_tokens=2000) as env:
        env.reset(seed=0)
        assert write(env, "none")[:3] == (0.0, False, False)  # a second try
        assert write(env, "none")[:3] == (-1.0, True, False)


def test_a_game_that_does_not_fit_says_so() -> None:
    with env_of(build_lm(), "textarena:GuessTheNumber-v0") as env, pytest.raises(TextEnvError, match="raise max_tok"):
        env.reset(seed=0)
