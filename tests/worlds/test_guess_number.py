"""A number to be guessed, and how many guesses that takes."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import pytest

from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError
from textenv.testing import WorldContract
from textenv.worlds.guess_number import GuessNumber


class TestGuessNumber(WorldContract):
    most_turns = None  # who does not guess is never done
    texts = ("1", "4", "no number", "9", "-2", "", "1" * 30)

    def make_world(self) -> GuessNumber:
        return GuessNumber()


@functools.cache
def fewest(numbers: int) -> Fraction:
    """Return the expected number of guesses of the best strategy, from the recursion over what is left after one."""
    if numbers == 0:
        return Fraction(0)
    rest = min(k * fewest(k) + (numbers - 1 - k) * fewest(numbers - 1 - k) for k in range(numbers))
    return 1 + rest / numbers


def search(world: GuessNumber, seed: int) -> tuple[int, int]:
    """Find a number by halving; return it, and the guesses that it took."""
    world.reset(seed=seed)
    low, high, guesses = 1, world.high, 0
    while True:
        guess, guesses = (low + high) // 2, guesses + 1
        said, reward, terminated, truncated, _ = world.step(f" {guess}!")
        assert not truncated
        assert terminated is (said == "\nRight.\n") is (reward == world.win)
        if terminated:
            return guess, guesses
        assert reward == world.miss
        low, high = (guess + 1, high) if said == "\nHigher.\n" else (low, guess - 1)


@pytest.mark.parametrize(("high", "expected"), [(1, 1), (7, Fraction(17, 7)), (8, Fraction(21, 8)), (20, None)])
def test_halving_takes_as_few_guesses_as_any_strategy_can(high: int, expected: Fraction | None) -> None:
    world = GuessNumber(high=high)
    took = dict(search(world, seed) for seed in range(40 * high))
    assert sorted(took) == list(range(1, high + 1))  # each number is drawn
    assert Fraction(sum(took.values()), high) == fewest(high)
    assert expected is None or fewest(high) == expected
    assert max(took.values()) == math.floor(math.log2(high)) + 1


def test_numbers_are_drawn_evenly() -> None:
    world = GuessNumber(high=4)
    drawn = [search(world, seed)[0] for seed in range(4000)]
    for number in range(1, 5):
        assert drawn.count(number) == pytest.approx(1000, abs=110)  # four standard deviations


@pytest.mark.parametrize("text", ["", "none", "0", "9", "-3", "٤" * 3, "9" * 5000, "1e9 no 3"])
def test_what_is_no_such_number_costs_a_wrong_guess(text: str) -> None:
    world = GuessNumber(high=8, miss=-0.5)
    world.reset(seed=0)
    said, reward, terminated, *_ = world.step(text)
    assert (reward, terminated) == (-0.5, False)
    assert said in ("\nFrom 1 to 8.\n", "\nHigher.\n")  # 1e9 is read as 1


@pytest.mark.parametrize("settings", [{"high": 0}, {"high": 2.5}, {"win": "much"}, {"miss": float("nan")}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(TextEnvError, match=rf"{next(iter(settings))}=.*expected"):
        GuessNumber(**settings)


def test_in_an_environment(tiny_lm: CausalLM) -> None:
    passes_both_checkers(tiny_lm, {"name": "guess_number", "high": 20}, max_new_tokens=3)
    with env_of(tiny_lm, "guess_number", kl_coef=0.0) as env:
        number, _ = search(GuessNumber(), 5)
        env.reset(options={"world_seed": 5})
        assert write(env, str(9 - number if number > 4 else 8))[:3] == (0.0, False, False)
        paid, terminated, truncated, info = write(env, str(number))
        assert (paid, terminated, truncated, info["stop_reason"]) == (1.0, True, False, "world")
