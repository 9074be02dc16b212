"""Questions of reasoning-gym."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError
from textenv.testing import WorldContract
from textenv.worlds import find
from textenv.worlds.adapters.reasoning_gym import ReasoningGym

package: Any = pytest.importorskip("reasoning_gym")


class TestReasoningGym(WorldContract):
    most_turns = 1

    def make_world(self) -> ReasoningGym:
        return ReasoningGym("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)


class TestReasoningGymInTags(TestReasoningGym):
    texts = ("<answer>7</answer>", "7", "<answer>")

    def make_world(self) -> ReasoningGym:
        return ReasoningGym("word_sorting", tag="answer", size=3)


class TestReasoningGymThatDrawsFromSharedNumbers(TestReasoningGym):
    def make_world(self) -> ReasoningGym:
        return ReasoningGym("pool_matrix")


def summed(question: str) -> int:
    """Add up what a question of chain_sum asks for."""
    terms = re.search(r"((?:-?\d+ [+-] )+\d+) =", question)
    assert terms is not None
    return sum(int(term.replace(" ", "")) for term in re.findall(r"[+-]? ?\d+", terms[1]))


def test_a_right_answer_is_paid_and_a_wrong_one_is_not() -> None:
    world = ReasoningGym("chain_sum")
    for seed in range(20):
        answer = str(summed(world.reset(seed=seed)[0]))
        assert world.step(f" {answer}\n")[1:4] == (1.0, True, False)
        world.reset(seed=seed)
        assert world.step("no idea")[1] == 0.0


def test_the_score_is_that_of_the_data_set() -> None:
    world, dataset = ReasoningGym("chain_sum", seed=3, size=5), package.create_dataset("chain_sum", seed=3, size=5)
    questions = {entry["question"]: entry for entry in (dataset[place] for place in range(5))}
    asked = set()
    for seed in range(40):
        question, _ = world.reset(seed=seed)
        asked.add(question)
        text = f"It is {questions[question]['answer']}."
        assert world.step(text)[1] == pytest.approx(dataset.score_answer(text, questions[question]))
    assert asked == set(questions)  # the seed of an episode draws from all of them


def test_an_answer_in_tags_is_what_the_last_of_them_holds() -> None:
    world = ReasoningGym("chain_sum", tag="answer")
    right = str(summed(world.reset(seed=1)[0]))
    for text, paid in (
        (f"I think <answer>1000000</answer>, no: <answer>\n{right}\n</answer>!", 1.0),
        (right, 0.0),
        (f"<answer>{right}", 0.0),
    ):
        world.reset(seed=1)
        assert world.step(text)[1] == paid


def test_a_seed_that_is_far_enough_away_has_other_questions() -> None:
    worlds = [ReasoningGym("chain_sum", size=20, seed=seed) for seed in (0, 19, 20)]
    asked = [{world.reset(seed=seed)[0] for seed in range(200)} for world in worlds]
    assert [len(questions) for questions in asked] == [20, 20, 20]
    assert len(asked[0] & asked[1]) == 1
    assert not asked[0] & asked[2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reasoning_gym:nonesuch", "'nonesuch' not registered"),
        ({"name": "reasoning_gym:chain_sum", "digits": 1}, "unexpected keyword argument 'digits'"),
        ({"name": "reasoning_gym:chain_sum", "min_terms": -1}, "AssertionError"),
    ],
)
def test_what_the_package_refuses_is_one_line(spec: Any, message: str) -> None:
    with pytest.raises(TextEnvError, match=f"The world 'reasoning_gym:.*' cannot be made with .*{message}"):
        find(spec)[1]()


def test_in_an_environment(tiny_lm: CausalLM) -> None:
    short = {"name": "reasoning_gym:chain_sum", "max_terms": 2, "max_digits": 1, "min_digits": 1}
    passes_both_checkers(tiny_lm, short, max_new_tokens=4, max_tokens=120)
    with env_of(tiny_lm, short, kl_coef=0.0, max_tokens=120) as env:
        _, info = env.reset(seed=0)
        paid, terminated, truncated, info = write(env, str(summed(info["prompt"])))
        assert (paid, terminated, truncated, info["stop_reason"]) == (1.0, True, False, "world")
