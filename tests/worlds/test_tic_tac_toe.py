"""Tic-tac-toe against a random player, and what the best player can expect."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError
from textenv.testing import WorldContract
from textenv.worlds.tic_tac_toe import TicTacToe


class TestTicTacToe(WorldContract):
    most_turns = 5
    texts = ("1", "2", "my move: 3", "5", "9", "none", "")

    def make_world(self) -> TicTacToe:
        return TicTacToe()


class TestTicTacToeMovingSecond(TestTicTacToe):
    most_turns = 4

    def make_world(self) -> TicTacToe:
        return TicTacToe(first="world")


# The rules once more, written down another way: the squares of a magic square, of which three in a row sum to 15.
MAGIC = (2, 7, 6, 9, 5, 1, 4, 3, 8)


def wins(squares: frozenset[int]) -> bool:
    numbers = [MAGIC[square] for square in squares]
    return any(
        one + other + third == 15
        for place, one in enumerate(numbers)
        for at, other in enumerate(numbers[:place])
        for third in numbers[:at]
    )


def free(mine: frozenset[int], theirs: frozenset[int]) -> list[int]:
    return [square for square in range(9) if square not in mine | theirs]


@functools.cache
def value(mine: frozenset[int], theirs: frozenset[int]) -> Fraction:
    """Return what the best player can expect who is to move."""
    return max(after(mine | {square}, theirs) for square in free(mine, theirs))


@functools.cache
def after(mine: frozenset[int], theirs: frozenset[int]) -> Fraction:
    """Return the same after a move of its own: won, drawn, or the mean over the other's moves."""
    if wins(mine):
        return Fraction(1)
    if not free(mine, theirs):
        return Fraction(1, 2)
    return answered(mine, theirs)


@functools.cache
def answered(mine: frozenset[int], theirs: frozenset[int]) -> Fraction:
    total = Fraction(0)
    for square in free(mine, theirs):
        taken = theirs | {square}
        if not wins(taken):
            total += value(mine, taken) if free(mine, taken) else Fraction(1, 2)
    return total / len(free(mine, theirs))


NOTHING: frozenset[int] = frozenset()


def read(said: str) -> tuple[frozenset[int], frozenset[int]]:
    """Return the squares of X and of O on the last board of a text."""
    rows = re.findall(r"^([1-9XO]) ([1-9XO]) ([1-9XO])$", said, re.MULTILINE)[-3:]
    marks = "".join("".join(row) for row in rows)
    assert all(mark in "XO" or mark == str(place + 1) for place, mark in enumerate(marks))
    return (
        frozenset(place for place in range(9) if marks[place] == "X"),
        frozenset(place for place in range(9) if marks[place] == "O"),
    )


def play_well(world: TicTacToe, seed: int) -> float:
    """Play a game by taking the move of the largest expectation; return what it pays."""
    said, _ = world.reset(seed=seed)
    while True:
        mine, theirs = read(said)
        best = max(free(mine, theirs), key=lambda square: after(mine | {square}, theirs))
        said, reward, terminated, *_ = world.step(str(best + 1))
        if terminated:
            return reward


def test_the_docstring_says_what_can_be_expected() -> None:
    first, second = value(NOTHING, NOTHING), answered(NOTHING, NOTHING)
    assert (first, second) == (Fraction(383, 384), Fraction(1819, 1890))
    about = " ".join((TicTacToe.__doc__ or "").split())
    assert f"{first} = {float(first):.4f} on average, and {second} = {float(second):.4f} if the world moves" in about


@pytest.mark.parametrize("first", ["agent", "world"])
def test_the_best_player_earns_what_can_be_expected(first: Any) -> None:
    expected = float(value(NOTHING, NOTHING) if first == "agent" else answered(NOTHING, NOTHING))
    paid = [play_well(TicTacToe(first=first), seed) for seed in range(2000)]
    assert set(paid) <= {0.0, 0.5, 1.0}
    error = float(np.std(paid)) / np.sqrt(len(paid))
    assert np.mean(paid) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("text", ["", "none", "0", "no", "１"])
def test_what_is_no_move_loses(text: str) -> None:
    world = TicTacToe()
    world.reset(seed=0)
    assert world.step(text) == ("\nThat is no move. You lose.\n", 0.0, True, False, {})


def test_a_square_is_taken_once() -> None:
    world = TicTacToe()
    world.reset(seed=0)
    world.step("5")
    assert world.step("5")[1:3] == (0.0, True)


def test_the_other_moves_evenly() -> None:
    world = TicTacToe(first="world")
    taken = [next(iter(read(world.reset(seed=seed)[0])[1])) for seed in range(4500)]
    for square in range(9):
        assert taken.count(square) == pytest.approx(500, abs=85)  # four standard deviations


def test_settings_are_checked() -> None:
    with pytest.raises(TextEnvError, match="first='nobody': expected one of"):
        TicTacToe(first="nobody")  # type: ignore[arg-type]


def test_in_an_environment(tiny_lm: CausalLM) -> None:
    passes_both_checkers(tiny_lm, "tic_tac_toe", max_new_tokens=2)
    with env_of(tiny_lm, {"name": "tic_tac_toe", "first": "world"}, kl_coef=0.0, context="fresh") as env:
        env.reset(seed=0)
        assert write(env, "no")[:3] == (0.0, True, False)
