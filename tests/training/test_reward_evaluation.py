"""The evaluation of reward models against hand-made numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textenv.data.files import write_json
from textenv.training.reward_bench import reward_bench
from textenv.training.reward_evaluation import calibration, evaluate, plot_evaluations
from textenv.types import Ranking, TextEnvError


def by_length(prompts: Sequence[Any], completions: Sequence[str]) -> Any:
    return np.array([float(len(completion)) for completion in completions])


def votes(text: str, other: str, wins: int, losses: int, prompt: str = "p") -> list[Ranking]:
    ranks = [(0, 1)] * wins + [(1, 0)] * losses
    return [Ranking(prompt, (text, other), each, f"a{i}") for i, each in enumerate(ranks)]


class TestEvaluation:
    def test_accuracy_and_ceilings_by_hand(self) -> None:
        # The model prefers the longer. Of 4 people 3 agree with it about the first pair, and of 3 one about the second.
        found = evaluate(by_length, [*votes("long", "b", 3, 1), *votes("longer", "c", 1, 2)])
        assert found.comparisons == 7
        assert found.accuracy == pytest.approx(4 / 7)
        assert found.majority == pytest.approx(1 / 2)
        # Ordered pairs of people: (3*2 + 1*0) of 4*3, and (1*0 + 2*1) of 3*2.
        assert found.person == pytest.approx((6 + 2) / (12 + 6))
        # First: each of the three sees 2 to 1, right; the one sees 3 to 0, wrong. Second: the one sees 2, wrong; each
        # of the two sees 1 to 1, which is no majority.
        assert found.person_majority == pytest.approx(3 / 5)
        assert (found.longer, found.longer_people) == pytest.approx((1.0, 4 / 7))

    def test_ties_are_left_out_and_equal_scores_count_half(self) -> None:
        judged = [Ranking("p", ("aa", "bb", "c"), (0, 1, 1), "x")]
        found = evaluate(by_length, judged)
        assert found.comparisons == 2
        assert found.accuracy == pytest.approx(0.75)
        assert (found.person, found.person_majority) == (None, None)

    def test_what_cannot_be_measured_is_none(self, tmp_path: Path) -> None:
        found = evaluate(by_length, votes("aa", "bb", 1, 1))  # of one length, and without a majority
        assert (found.majority, found.longer, found.longer_people) == (None, None, None)
        write_json(tmp_path / "report.json", dataclasses.asdict(found))
        assert json.loads((tmp_path / "report.json").read_text())["longer"] is None
        plot_evaluations({"one": (2, found)}, tmp_path / "reward.png")
        assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")

    def test_what_was_seen_in_training(self) -> None:
        learned = votes("a", "bb", 1, 1, prompt="old")
        judged = [
            Ranking("old", ("ccc", "d"), (0, 1), "a0"),
            Ranking("new", ("ccc", "d"), (1, 0), "a1"),
            Ranking("new", ("ccc", "d"), (0, 1), "z"),
        ]
        assert evaluate(by_length, judged, trained_on=learned).groups == {
            "prompt seen, annotator seen": (1.0, 1),
            "prompt held out, annotator seen": (0.0, 1),
            "prompt held out, annotator held out": (1.0, 1),
        }

    def test_without_prompts_texts_are_told_apart(self) -> None:
        learned = [Ranking("", ("a", "bb"), (0, 1), "x")]
        judged = [Ranking("", ("a", "ccc"), (1, 0), "x"), Ranking("", ("d", "ccc"), (1, 0), "x")]
        assert set(evaluate(by_length, judged, trained_on=learned).groups) == {
            "text partly seen, annotator seen",
            "text held out, annotator seen",
        }

    def test_refuses_nothing_but_ties(self) -> None:
        with pytest.raises(TextEnvError, match="1 rankings have no comparison"):
            evaluate(by_length, [Ranking("p", ("a", "b"), (0, 0))])

    def test_the_picture(self, tmp_path: Path) -> None:
        found = evaluate(by_length, votes("long", "b", 3, 1))
        plot_evaluations({"one": (10, found), "two": (100, found)}, tmp_path / "reward.png")
        assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


class TestCalibration:
    def test_by_hand(self) -> None:
        odds = math.log(0.8 / 0.2)
        found = calibration(np.array([odds, odds, odds, -odds]))
        assert found.brier == pytest.approx((3 * 0.04 + 0.64) / 4)
        assert found.ece == pytest.approx(0.05)
        assert found.confidence == pytest.approx((0.8,))
        assert (found.accuracy, found.count) == ((0.75,), (4,))

    def test_a_model_that_knows_its_probabilities(self) -> None:
        rng = np.random.default_rng(0)
        odds = rng.normal(size=20_000)
        right = rng.random(20_000) < 1 / (1 + np.exp(-np.abs(odds)))
        assert calibration(np.where(right, np.abs(odds), -np.abs(odds))).ece < 0.015


class TestRewardBench:
    def bench(self, path: Path, *rows: tuple[str, str, str]) -> dict[str, float]:
        lines = [{"prompt": "p", "chosen": a, "rejected": b, "subset": subset} for a, b, subset in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return reward_bench(by_length, path)

    def test_sections_and_weights(self, tmp_path: Path) -> None:
        right, wrong, equal = ("long", "s"), ("s", "long"), ("even", "even")
        found = self.bench(
            tmp_path / "pairs.jsonl",
            (*right, "alpacaeval-easy"),
            (*right, "mt-bench-easy"),
            (*equal, "mt-bench-easy"),
            (*wrong, "math-prm"),
            *[(*right, "hep-cpp")] * 2,
            (*right, "hep-go"),
            (*wrong, "hep-go"),
        )
        assert found["mt-bench-easy"] == 0.5
        assert found["Chat"] == pytest.approx(2 / 3)
        assert found["Reasoning"] == pytest.approx((0 * 4 + 2 + 1) / 8)  # mathematics weighs as much as the 4 of code
        assert found["score"] == pytest.approx((2 / 3 + 3 / 8) / 2)

    def test_other_subsets(self, tmp_path: Path) -> None:
        found = self.bench(tmp_path / "pairs.jsonl", ("long", "s", "mine"), ("s", "long", "mine"))
        assert found == {"mine": 0.5, "Other": 0.5, "score": 0.5}

    def test_refuses_a_line_that_is_no_pair(self, tmp_path: Path) -> None:
        (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "c"}\n', "utf-8")
        with pytest.raises(TextEnvError, match=r"line 1: rejected is None; .*'chosen', 'rejected' and 'subset'"):
            reward_bench(by_length, tmp_path / "pairs.jsonl")
