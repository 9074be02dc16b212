"""A word that has to be remembered over turns."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError
from textenv.testing import WorldContract
from textenv.worlds.word_memory import WordMemory


class TestWordMemory(WorldContract):
    most_turns = 3
    texts = ("red", "blue", " green\n", "none", "")

    def make_world(self) -> WordMemory:
        return WordMemory()


def score(world: WordMemory, answers: list[str], seed: int) -> float:
    """Write answers, turn by turn; return what they are paid. ``"?"`` stands for the word."""
    said, _ = world.reset(seed=seed)
    found = re.fullmatch(r"The word is (\S+)\.\n.*", said)
    assert found is not None
    steps = [world.step(answer.replace("?", found[1])) for answer in answers]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * (len(answers) - 1) + [True]
    assert found[1] not in "".join(said for said, *_ in steps)  # it is named once
    return sum(reward for _, reward, *_ in steps)


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_the_word_is_worth_one_at_the_last_turn_alone(turns: int) -> None:
    world = WordMemory(turns=turns)
    for seed in range(20):
        assert score(world, ["nothing"] * (turns - 1) + [" ?\n"], seed) == 1.0
        assert score(world, ["?"] * (turns - 1) + ["nothing"], seed) == 0.0


@pytest.mark.parametrize("words", [("red", "blue", "green", "black"), ("yes", "no")])
def test_without_memory_an_answer_is_right_once_in_so_many_words(words: tuple[str, ...]) -> None:
    world, chance, n = WordMemory(words=words, turns=2), 1 / len(words), 4000
    for answer in words:
        mean = np.mean([score(world, ["", answer], seed) for seed in range(n)])
        assert mean == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / n))


def test_says_how_many_turns_are_left() -> None:
    world = WordMemory(turns=3)
    first, _ = world.reset(seed=0)
    said = [first.split("\n")[1], *(world.step("")[0].strip("\n") for _ in range(2))]
    assert said == ["Wait, 2 more. ", "Wait, 1 more. ", "Which word was it? "]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": []}, r"words=\(\): expected different words"),
        ({"words": ["a", "a"]}, "expected different words"),
        ({"words": ["a", " "]}, "expected different words"),
        ({"words": "red"}, "words='red': expected a list"),
        ({"turns": 0}, "turns=0: expected a whole number of at least 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        WordMemory(**settings)


def test_in_an_environment(tiny_lm: CausalLM) -> None:
    world = {"name": "word_memory", "words": ["a", "b"], "turns": 2}
    passes_both_checkers(tiny_lm, world, max_new_tokens=4)
    with env_of(tiny_lm, world, kl_coef=0.0) as env:
        for answer, expected in (("a", {0.0, 1.0}), ("c", {0.0})):
            paid = set()
            for seed in range(10):
                env.reset(seed=seed)
                assert write(env, "b")[:3] == (0.0, False, False)
                last = write(env, answer)
                assert last[1:3] == (True, False)
                paid.add(last[0])
            assert paid == expected
