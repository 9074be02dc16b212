import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import choix
import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from textenv.commands.cli import main
from textenv.feedback.agreement import Share, krippendorff_alpha, measure_agreement
from textenv.feedback.annotators import Adversarial, FromRatings, FromReward, Judge, Lazy, LeftBiased, annotate
from textenv.feedback.bradley_terry import fit_bradley_terry, policy_strengths
from textenv.feedback.store import Assignment, FeedbackStore, Item
from textenv.types import TextEnvError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "store.db") as opened:
        yield opened


def shown(*texts: str) -> Assignment:
    items = tuple(Item(place, "completion", 1, text, "", "", None, {}) for place, text in enumerate(texts))
    return Assignment(1, 1, 1, "completion", "p", {}, items, 0.0)


def by_number(prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
    return [float(text) for text in completions]


def judged(judge: Judge, *texts: str, times: int = 4000) -> Counter[tuple[int | None, ...]]:
    rng = random.Random(0)
    return Counter(tuple(judge.judge(shown(*texts), rng)[0]) for _ in range(times))


# Agreement


@pytest.mark.parametrize("level", ["nominal", "interval"])
@given(table=st.lists(st.lists(st.sampled_from([-1, 0, 1, None]), min_size=4, max_size=4), min_size=1, max_size=8))
def test_alpha_is_that_of_the_reference_implementation(level: Any, table: list[list[int | None]]) -> None:
    units = [[value for value in row if value is not None] for row in table]
    paired = [row for row in table if sum(value is not None for value in row) > 1]
    ours = krippendorff_alpha(units, level)
    if len({value for row in paired for value in row if value is not None}) < 2:
        assert ours is None
        return
    data = np.array(paired, dtype=float).T  # annotators x units, nan where there is none
    theirs = krippendorff.alpha(data, level_of_measurement=level)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_alpha_of_an_unknown_level() -> None:
    with pytest.raises(TextEnvError, match="'nominal' or 'interval'"):
        krippendorff_alpha([[0, 1]], "ordinal")  # type: ignore[arg-type]


def test_shares() -> None:
    assert (Share(0, 0).value, Share(0, 0).interval) == (None, None)
    low, high = Share(3, 4).interval or (0.0, 0.0)
    # Wilson's interval in closed form.
    z, n, p = 1.959964, 4, 0.75
    center, wide = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx(
        ((center - wide) / (1 + z * z / n), (center + wide) / (1 + z * z / n)), abs=1e-6
    )


@pytest.mark.parametrize(("won", "count"), [(0, 12), (12, 12), (5, 12), (130, 256)])
def test_the_interval_of_a_share_is_wilsons(won: int, count: int) -> None:
    expected = binomtest(won, count).proportion_ci(method="wilson")
    assert Share(won, count).interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_agreement_of_a_store(store: FeedbackStore) -> None:
    prompt = store.add_prompt("p")
    items = [store.add_completion(prompt, text) for text in "abc"]
    store.add_task(items, judgements=3)
    first = store.add_task(items[:2], judgements=3, gold=[0, 1])
    store.add_task(items[:2], judgements=3, repeat_of=first)
    answers = {"ann": "abc", "ben": "abc", "eve": "cba"}  # best first
    for name, order in answers.items():
        person = store.annotator(name)
        turns = 0
        while (task := store.lease(person)) is not None:
            ranks = [order.index(item.text) for item in task.items]
            turns += 1
            if name == "ben" and turns == 3:  # the repeated one
                ranks = [-rank for rank in ranks]
            store.judge(task.id, [rank - min(ranks) for rank in ranks])
    found = measure_agreement(store)
    # Pairs (a,b), (a,c), (b,c) have the values -1, -1, 1 each; (a,b) of the gold task is the first opinion again.
    assert (found.raw, found.pairs) == (Share(3, 9), 3)
    assert found.gold == Share(2, 3)
    assert found.own == Share(2, 3)
    assert found.alpha == pytest.approx(krippendorff_alpha([[-1, -1, 1]] * 3))
    assert found.interval == (found.alpha, found.alpha)  # all pairs alike
    with FeedbackStore(store.path.with_name("empty.db")) as other:
        empty = measure_agreement(other)
    assert (empty.alpha, empty.interval, empty.raw.value) == (None, None, None)


# Strengths


def test_strengths_are_those_of_choix() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=5)
    games = [tuple(pair) for pair in itertools.permutations(range(5), 2) for _ in range(20)]
    data = [(i, j) if rng.random() < 1 / (1 + np.exp(true[j] - true[i])) else (j, i) for i, j in games]
    wins = np.zeros((5, 5))
    for winner, loser in data:
        wins[winner, loser] += 1
    ours = np.array([found.strength for found in fit_bradley_terry(wins, prior=1e-6)])
    theirs = choix.opt_pairwise(5, data, alpha=1e-9)
    np.testing.assert_allclose(ours, theirs - theirs.mean(), atol=1e-3)


def test_two_players_in_closed_form() -> None:
    one, other = fit_bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=1e-9)
    assert one.strength - other.strength == pytest.approx(math.log(3), abs=1e-4)
    # The lead's variance is 1 / (n p q); each strength is half of it.
    error = 0.5 / math.sqrt(40 * 0.75 * 0.25)
    assert one.interval[1] - one.strength == pytest.approx(1.96 * error, rel=1e-3)
    assert (one.comparisons, other.comparisons) == (40, 40)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    true = np.array([-1.0, -0.3, 0.2, 1.1])
    held = []
    for _ in range(200):
        wins = np.zeros((4, 4))
        for i, j in itertools.combinations(range(4), 2):
            wins[i, j] = rng.binomial(40, 1 / (1 + np.exp(true[j] - true[i])))
            wins[j, i] = 40 - wins[i, j]
        held += [s.interval[0] <= t <= s.interval[1] for s, t in zip(fit_bradley_terry(wins), true, strict=True)]
    assert 0.92 < np.mean(held) < 0.98


def test_who_never_lost_is_finite() -> None:
    found = fit_bradley_terry(np.array([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found[0].strength > found[2].strength > found[1].strength
    assert all(math.isfinite(value) for each in found for value in (each.strength, *each.interval))
    assert fit_bradley_terry(np.zeros((0, 0))) == []


@pytest.mark.parametrize("wins", [np.zeros((2, 3)), -np.ones((2, 2)), np.eye(2), np.array([[0, np.nan], [0, 0]])])
def test_tables_that_are_none(wins: Any) -> None:
    with pytest.raises(TextEnvError, match="expected a square"):
        fit_bradley_terry(wins)


def test_a_prior_is_needed() -> None:
    with pytest.raises(TextEnvError, match="above 0"):
        fit_bradley_terry(np.zeros((2, 2)), prior=0.0)


def test_strengths_of_policies(store: FeedbackStore) -> None:
    weak, strong = store.add_policy("weak"), store.add_policy("strong")
    store.add_policy("never compared")
    prompt = store.add_prompt("p")
    for _ in range(6):
        texts = (("1", weak), ("2", strong), ("3", strong))
        store.add_task([store.add_completion(prompt, text, policy=policy) for text, policy in texts])
    annotate(store, FromReward(by_number), "gold")
    (first, ahead), (second, behind) = policy_strengths(store)
    assert (first, second) == ("strong", "weak")
    assert ahead.strength > 1 > behind.strength
    assert ahead.comparisons == 12  # not those of strong with itself


# Programs


def test_a_reward_judges() -> None:
    assert judged(FromReward(by_number), "1", "3", "2") == {(2, 0, 1): 4000}
    assert judged(FromReward(by_number, tie=0.5), "1", "1.4", "3", "2") == {(2, 2, 0, 1): 4000}


def test_boltzmann_choices_are_a_sigmoid() -> None:
    found = judged(FromReward(by_number, temperature=2.0), "1", "2")
    assert found[1, 0] / 4000 == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.03)


def test_boltzmann_rankings_are_plackett_and_luces() -> None:
    found = judged(FromReward(by_number, temperature=1.0), "0", "1", "2")
    weights = np.exp([0.0, 1.0, 2.0])
    for order in itertools.permutations(range(3)):  # best first
        left, expected = weights.sum(), 1.0
        for place in order:
            expected, left = expected * weights[place] / left, left - weights[place]
        assert found[tuple(order.index(place) for place in range(3))] / 4000 == pytest.approx(expected, abs=0.03)


def test_equal_scores_tie_at_any_temperature() -> None:
    found = judged(FromReward(by_number, temperature=2.0), "1", "2", "1")
    assert set(found) == {(0, 1, 0), (1, 0, 1)}
    assert found[1, 0, 1] / 4000 == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.03)


def test_errors_are_random() -> None:
    found = judged(FromReward(by_number, error_rate=0.4), "1", "2")
    assert found[0, 1] / 4000 == pytest.approx(0.2, abs=0.03)
    with pytest.raises(TextEnvError, match=r"error_rate=2\.0: expected a finite number from 0 to 1"):
        FromReward(by_number, error_rate=2.0)


def test_recorded_ratings() -> None:
    found = judged(FromRatings({"a": [1, 3], "b": [2, 3]}), "a", "b")
    assert {ranks: round(count / 1000) for ranks, count in found.items()} == {(1, 0): 2, (0, 1): 1, (0, 0): 1}
    with pytest.raises(TextEnvError, match="Nobody has rated 'c'"):
        judged(FromRatings({"a": [1]}), "a", "c", times=1)


def test_bad_annotators() -> None:
    lazy = judged(Lazy(skips=0.25), "1", "2")
    assert lazy[None, None] / 4000 == pytest.approx(0.25, abs=0.03)
    assert lazy[0, 1] / 4000 == pytest.approx(0.375, abs=0.03)
    left = judged(LeftBiased(FromReward(by_number), bias=0.3), "1", "2")
    assert left[0, 1] / 4000 == pytest.approx(0.3, abs=0.03)
    assert judged(Adversarial(FromReward(by_number)), "1", "3", "2") == {(0, 2, 1): 4000}


def test_programs_work_through_the_store(store: FeedbackStore) -> None:
    conversation = ({"role": "user", "content": "count"},)
    for prompt in ("p", conversation):
        number = store.add_prompt(prompt, columns={"bonus": 10})
        for place in range(3):
            store.add_task([store.add_completion(number, text) for text in ("1", str(2 + place))])

    def reward(prompts: list[Any], completions: list[Any], bonus: list[int], **_: Any) -> list[float]:
        assert bonus == [10, 10]
        return [float(c if isinstance(c, str) else c[0]["content"]) for c in completions]

    assert annotate(store, FromReward(reward), "gold", limit=4) == 4
    assert annotate(store, FromReward(reward), "gold") == 2
    assert annotate(store, FromReward(reward), "gold") == 0
    assert {judgement.ranks for judgement in store.judgements()} == {(1, 0)}
    assert store.annotators()[0].kind == "program"
    clips = [store.add_clip(name, task="Pendulum-v1") for name in ("a.gif", "b.gif")]
    store.add_task(clips, kind="clip")
    with pytest.raises(TextEnvError, match="not 'completion'"):
        annotate(store, FromReward(reward), "gold")
    assert store.progress().open == 0


# The commands


def test_annotate_and_status(store: FeedbackStore, capsys: pytest.CaptureFixture[str]) -> None:
    policies = [store.add_policy(name) for name in ("old", "new")]
    prompt = store.add_prompt("It was")
    for _ in range(4):
        texts = zip((" bad.", " good."), policies, strict=True)
        store.add_task([store.add_completion(prompt, text, policy=policy) for text, policy in texts], judgements=3)
    path = str(store.path)
    assert main(["feedback", "annotate", path, "--reward", "vader", "--name", "gold", "--limit", "3"]) == 0
    assert "gold made 3 judgements; 3 of 12" in capsys.readouterr().out
    assert main(["feedback", "annotate", path, "--reward", "vader", "--name", "gold"]) == 0
    assert main(["feedback", "annotate", path, "--reward", "vader", "--kind", "adversarial", "--name", "foe"]) == 0
    assert main(["feedback", "annotate", path, "--kind", "lazy", "--name", "lazy", "--seed", "2"]) == 0
    capsys.readouterr()
    assert main(["feedback", "status", path]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 of 12, 0 being made" in printed
    assert "right on gold items │ not known" in printed
    assert {annotator.name: annotator.kind for annotator in store.annotators()} == {
        "gold": "program",
        "foe": "program",
        "lazy": "program",
    }
    by_gold = store.judgements(annotators=[1])
    assert all(judgement.ranks == (1, 0) for judgement in by_gold)
    assert [judgement.ranks for judgement in store.judgements(annotators=[2])] == [(0, 1)] * 4


def test_commands_that_cannot_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["feedback", "status", str(tmp_path / "none.db")]) == 1
    assert "no such store" in capsys.readouterr().out
    assert not (tmp_path / "none.db").exists()
    assert main(["feedback", "annotate", str(tmp_path / "none.db")]) == 1
    assert "--reward or --ratings" in capsys.readouterr().out
