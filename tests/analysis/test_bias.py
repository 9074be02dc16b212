"""Measures of bias, against what can be computed otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from tests.conftest import build_lm
from textenv.analysis.bias import (
    Figure,
    bootstrap,
    chance_distance,
    correlation,
    effect_size,
    pair_entropy,
    wasserstein,
)
from textenv.analysis.bias_measures import (
    Probe,
    measure_model,
    measure_reward,
    measure_sentiment,
    text_log_probs,
)
from textenv.analysis.bias_templates import TEMPLATES, parse_template
from textenv.data.word_lists import WordLists
from textenv.types import TextEnvError

RNG = np.random.default_rng(0)
WORDS = WordLists({"plot": 10.0, "film": 90.0, "actor": 40.0}, [("the man", "the woman")], ("work", "job"), ("home",))


# -- computations -------------------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_two_probabilities() -> None:
    one, other = RNG.normal(size=(2, 50))
    p = np.exp([one, other]) / np.exp([one, other]).sum(axis=0)
    assert pair_entropy(one, other) == pytest.approx(stats.entropy(p, base=2, axis=0))
    assert pair_entropy([-5.0, -900.0, 0.0], [-5.0, -100.0, -1e9]).tolist() == [1.0, 0.0, 0.0]


def test_correlation_is_pearsons() -> None:
    one, other = RNG.normal(size=(2, 20))
    assert correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_effect_size_is_that_of_weat() -> None:
    assert effect_size([1.0, 3.0], [0.0, 0.0]) == pytest.approx(2.0 / np.std([1, 3, 0, 0], ddof=1))
    assert effect_size([1.0, 1.0], [1.0]) is None


@pytest.mark.parametrize("sizes", [(5, 5), (7, 3)], ids=["equal", "unequal"])
def test_distance_is_the_area_between_distribution_functions(sizes: tuple[int, int]) -> None:
    one, other = RNG.normal(size=sizes[0]), RNG.normal(size=sizes[1]) + 1
    grid = np.linspace(-6, 7, 200_001)
    functions = [(sample[None, :] <= grid[:, None]).mean(axis=1) for sample in (one, other)]
    assert wasserstein(one, other) == pytest.approx(np.trapezoid(abs(functions[0] - functions[1]), grid), abs=1e-3)


def test_distance_of_samples_of_one_distribution_is_that_by_chance() -> None:
    one, other = RNG.normal(size=(2, 400))
    assert wasserstein(one, other) == pytest.approx(chance_distance(one, other, RNG), abs=0.1)
    assert wasserstein(one, other + 2) > 5 * chance_distance(one, other, RNG)


def test_intervals_agree_with_the_standard_error() -> None:
    sample = RNG.normal(size=200)
    figure = bootstrap(lambda values: float(values.mean()), [sample], np.random.default_rng(1), resamples=4000)
    error = sample.std() / np.sqrt(200)
    assert figure.value == pytest.approx(sample.mean())
    assert (figure.low, figure.high) == pytest.approx(
        (sample.mean() - 1.96 * error, sample.mean() + 1.96 * error), abs=0.02
    )


def test_paired_samples_are_drawn_together() -> None:
    one = RNG.normal(size=30)
    assert bootstrap(correlation, [one, 2 * one], RNG, paired=True, resamples=50) == pytest.approx((1.0, 1.0, 1.0))
    low = bootstrap(correlation, [one, 2 * one], RNG, resamples=50).low
    assert low is not None
    assert low < 0.9
    assert bootstrap(correlation, [[1.0], [2.0]], RNG) == Figure(None, None, None)
    assert bootstrap(lambda values: float(values[0]), [[3.0]], RNG) == Figure(3.0, None, None)


# -- templates ----------------------------------------------------------------------------------------------------


def test_occupations_make_pairs() -> None:
    pair = parse_template("A {job} says that {he} lost {his} {actor}.").with_job("editor")
    assert (pair.before, pair.male, pair.female) == ("An editor says that", " he", " she")
    assert pair.male_text == "An editor says that he lost his actor."
    assert pair.female_text == "An editor says that she lost her actress."
    assert parse_template("{job}, {himself}").with_job("cook").male_text == "Cook, himself"


def test_persons_and_words() -> None:
    assert parse_template("{person} wants {word}").with_person("the man", "work") == ("The man wants", " work")
    assert parse_template("{person} is").prompts([("the man", "the woman"), ("Paul", "Ann")]) == [
        ("The man is", "The woman is"),
        ("Paul is", "Ann is"),
    ]
    assert parse_template("{His} film, {he}").prompts([("a", "b")] * 3) == [("His film, he", "Her film, she")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The film is good.", "expected a slot"),
        ("", "expected a slot"),
        ("The {jobb} and {he}", "has the slot {jobb}. Did you mean 'job'?"),
        ("The {she} is", "has the slot {she}"),
        ("A {job} is here.", "expected one {job}, and behind it {he}"),
        ("For {him} a {job} is", "expected one {job}, and behind it {he}"),
        ("A {job} and a {job} with {his}", "expected one {job}, and behind it {he}"),
        ("{word} for {person}", "expected one {person}, and {word} as its end"),
        ("He likes {word}", "expected one {person}, and {word} as its end"),
        ("The {he", "a brace that is not closed"),
        ("The {he} is}", "a brace that is not closed"),
    ],
)
def test_what_is_no_template(text: str, message: str) -> None:
    with pytest.raises(TextEnvError) as refused:
        parse_template(text)
    assert message in str(refused.value)


def test_our_templates_ask_for_everything() -> None:
    for templates in TEMPLATES.values():
        kinds = [template.kind for template in templates]
        assert {kind: kinds.count(kind) >= 3 for kind in kinds} == dict.fromkeys(
            ("occupation", "association", "prompt"), True
        )


# -- models -------------------------------------------------------------------------------------------------------


def log_prob(text: str, rest: str) -> float:
    """What a plain forward of the whole text says of its last tokens."""
    lm = build_lm()
    start, end = lm.encode_completions([text], [rest])[0]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*start, *end]])).logits[0].log_softmax(dim=-1)
    return sum(float(logits[len(start) + place - 1, token]) for place, token in enumerate(end))


def test_log_probs_are_those_of_a_plain_forward() -> None:
    starts, rests = ["the film", "", "a man said that it was"], [" was great", "the plot", " thin"]
    expected = [log_prob(*pair) for pair in zip(starts, rests, strict=True)]
    assert text_log_probs(build_lm(), starts, rests) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(TextEnvError, match=r"a text of \d+ tokens, and the model reads 128"):
        text_log_probs(build_lm(), [""], ["film " * 200])


def test_a_model_is_asked_what_the_templates_say() -> None:
    templates = [parse_template("The {job}: {he} was {his}"), parse_template("{person} has {word}")]
    found = measure_model(build_lm(), Probe(WORDS, templates))
    odds = {job: log_prob(f"The {job}:", " he") - log_prob(f"The {job}:", " she") for job in WORDS.jobs}
    assert {job: each["log_odds"] for job, each in found["jobs"].items()} == pytest.approx(odds, abs=1e-3)
    assert found["log_odds"].value == pytest.approx(np.mean(list(odds.values())), abs=1e-3)
    she = [-each for each in odds.values()]
    assert found["correlation"].value == pytest.approx(np.corrcoef(she, [10, 90, 40])[0, 1], abs=1e-2)
    whole = [log_prob("", f"The plot: {text}") for text in ("he was his", "she was her")]
    assert found["jobs"]["plot"]["pair_entropy"] == pytest.approx(float(pair_entropy(*whole)), abs=1e-3)
    for word in ("work", "home"):
        sides = [log_prob(f"The {person} has", f" {word}") for person in ("man", "woman")]
        assert found["words"][word] == pytest.approx(sides[0] - sides[1], abs=1e-3)
    assert measure_model(build_lm(), Probe(WORDS, templates[1:]))["log_odds"] is None


def test_a_reward_is_compared_with_itself() -> None:
    def men(_: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [1.0 + text.split().count("he") + 0.5 * text.split().count("her") for text in completions]

    templates = [parse_template("The {job} and {he} is"), parse_template("The {job} and {his} film")]
    found = measure_reward(men, Probe(WORDS, templates))
    assert found["swap_gap"] == (0.25, 0.25, 0.25)
    assert found["swap_gap_size"] == (0.75, 0.75, 0.75)
    assert measure_reward(men, Probe(WORDS, [parse_template("{He} is")])) == {"swap_gap": None, "swap_gap_size": None}


def test_sentiment_behind_pairs_of_prompts() -> None:
    scores = {("He", "She"): ([0.0, 1.0], [0.5, 0.5]), ("A man", "A woman"): ([1.0, 1.0], [0.0, 0.0])}
    found = measure_sentiment(scores, Probe(WORDS, []))
    assert found["sentiment_gap"].value == pytest.approx(0.75)
    assert found["sentiment_difference"].value == pytest.approx(0.5)
    assert 0 < found["sentiment_by_chance"].value < 0.75


def test_words_that_a_tokenizer_cannot_read_are_refused() -> None:
    lm = build_lm()
    lm.tokenizer.unk_token = lm.tokenizer.convert_ids_to_tokens(lm.encode_behind(" work")[0])
    templates = [parse_template("{person} has {word}")]
    with pytest.raises(TextEnvError, match=r"None of the words of persons \(the man and the woman\) can be read"):
        measure_model(lm, Probe(WordLists(WORDS.jobs, WORDS.persons, ("work",), ("home",)), templates))
