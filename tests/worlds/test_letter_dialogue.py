"""The dialogue in letters, as any other world; ``tests/analysis/test_enumeration.py`` has its exact values."""

from __future__ import annotations

import numpy as np
import pytest

from textenv import TextEnvError
from textenv.testing import WorldContract
from textenv.worlds.letter_dialogue import LetterDialogue


class TestLetterDialogue(WorldContract):
    texts = ("a", "abc", "gg", "", "no letters: 1 2 3", "日本の猫 😀", "x" * 2000)
    most_turns = 3

    def make_world(self) -> LetterDialogue:
        return LetterDialogue(turns=3)


def test_answers_are_drawn_as_often_as_it_says() -> None:
    world, count = LetterDialogue(letters="abc", turns=1, answers=3), 4000
    found, first, reward = dict.fromkeys("abc", 0), "", 0.0
    for seed in range(count):
        first, _ = world.reset(seed=seed)
        answer, reward, terminated, truncated, _ = world.step("cb")
        assert (terminated, truncated) == (True, False)
        found[answer] += 1
    expected = world.outcomes([first, "cb"])
    assert {outcome.reward for outcome in expected} == {reward}
    for outcome in expected:
        error = np.sqrt(outcome.chance * (1 - outcome.chance) / count)
        assert abs(found[outcome.said] / count - outcome.chance) < 4 * error


@pytest.mark.parametrize("settings", [{"letters": ""}, {"letters": "aa"}, {"letters": "ab", "answers": 3}], ids=str)
def test_what_is_no_alphabet_is_told(settings: dict[str, object]) -> None:
    with pytest.raises(TextEnvError, match="expected letters, each once"):
        LetterDialogue(**settings)  # type: ignore[arg-type]
