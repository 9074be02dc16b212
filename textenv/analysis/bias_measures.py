"""Bias of a language model or a reward model on counterfactual texts: what is asked of the model, and the figures.

The measures themselves are in ``textenv.analysis.bias``. Intervals are bootstrapped over occupations, over words, or
over pairs of prompts: they say how far a figure depends on which of them were asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.analysis.bias import (
    Figure,
    bootstrap,
    chance_distance,
    correlation,
    effect_size,
    pair_entropy,
    wasserstein,
)
from textenv.analysis.bias_templates import Kind, Template
from textenv.data.word_lists import WordLists
from textenv.models.causal_lm import CausalLM
from textenv.types import TextEnvError

__all__ = ["Probe", "measure_model", "measure_reward", "measure_sentiment", "text_log_probs"]

Values = NDArray[np.float64]
Measured = dict[str, Any]
_IN_A_BATCH = 64  # texts that are read at once


@dataclass(frozen=True, slots=True)
class Probe:
    """What models are asked about.

    Attributes:
        words: The words.
        templates: The sentences that they are put into.
        seed: Of the resamples.
    """

    words: WordLists
    templates: Sequence[Template]
    seed: int = 0

    def of_kind(self, kind: Kind) -> list[Template]:
        """Return the templates of a kind."""
        return [template for template in self.templates if template.kind == kind]

    @property
    def prompts(self) -> list[tuple[str, str]]:
        """The pairs of prompts to be continued, each once."""
        pairs = [pair for template in self.of_kind("prompt") for pair in template.prompts(self.words.persons)]
        return list(dict.fromkeys(pairs))

    def known_to(self, lm: CausalLM) -> WordLists:
        """Return the words that a tokenizer can read, of lists none of which is empty.

        Raises:
            TextEnvError: It can read none of a list.
        """
        unknown = lm.tokenizer.unk_token_id

        def reads(word: str) -> bool:
            ids = lm.encode_behind(f" {word}")
            return bool(ids) and (unknown is None or unknown not in ids)

        return self.words.only(reads, "can be read by the model's tokenizer; expected words in its alphabet.")


def text_log_probs(lm: CausalLM, starts: Sequence[str], rests: Sequence[str]) -> Values:
    """Return the log-probability in nats that a text goes on with another, ``(n,)``.

    Args:
        lm: The model.
        starts: ``n`` texts; an empty one is what a text begins with.
        rests: What follows each.

    Raises:
        TextEnvError: A text is longer than what the model reads.
    """
    encoded = lm.encode_completions(starts, rests)
    sizes = [len(start) + len(rest) for start, rest in encoded]
    if lm.max_positions is not None and max(sizes, default=0) > lm.max_positions:
        raise TextEnvError(
            f"A template makes a text of {max(sizes)} tokens, and the model reads {lm.max_positions}: shorten it."
        )
    found = np.zeros(len(encoded))
    order = np.argsort(sizes, kind="stable")
    for first in range(0, len(order), _IN_A_BATCH):
        rows = order[first : first + _IN_A_BATCH]
        width = max(sizes[row] for row in rows)
        ids = np.full((len(rows), width), lm.pad_id, dtype=np.int64)
        asked = np.zeros((len(rows), width), dtype=bool)
        for place, row in enumerate(rows):
            start, rest = encoded[row]
            ids[place, : sizes[row]] = [*start, *rest]
            asked[place, len(start) : sizes[row]] = True
        lengths = np.array([sizes[row] for row in rows])
        found[rows] = lm.token_log_probs(ids, lengths, asked=asked).sum(axis=1, dtype=np.float64)
    return found


def measure_model(lm: CausalLM, probe: Probe) -> Measured:
    """Measure what a language model takes to be likely.

    Returns:
        ``pair_entropy`` in bits, ``log_odds`` of he over she in nats, ``correlation`` of log-odds of she with the
        share of women, and ``association``, the effect size of career and family words with men: ``Figure`` or None
        where no template asks. ``jobs`` has log-odds and entropy of each occupation, ``words`` the association of each.

    Raises:
        TextEnvError: The tokenizer can read none of the words of a list.
    """
    words, rng = probe.known_to(lm), np.random.default_rng(probe.seed)
    measured: Measured = dict.fromkeys(("pair_entropy", "log_odds", "correlation", "association"))
    if templates := probe.of_kind("occupation"):
        odds, entropy = _occupations(lm, templates, list(words.jobs))
        measured["pair_entropy"] = bootstrap(_mean, [entropy], rng)
        measured["log_odds"] = bootstrap(_mean, [odds], rng)
        known = [place for place, women in enumerate(words.jobs.values()) if women is not None]
        shares = np.array([women for women in words.jobs.values() if women is not None], dtype=np.float64)
        measured["correlation"] = bootstrap(correlation, [-odds[known], shares], rng, paired=True) if known else None
        measured["jobs"] = {
            job: {"women": women, "log_odds": float(odds[place]), "pair_entropy": float(entropy[place])}
            for place, (job, women) in enumerate(words.jobs.items())
        }
    if templates := probe.of_kind("association"):
        career, family = (_associations(lm, templates, words, each) for each in (words.career, words.family))
        measured["association"] = bootstrap(effect_size, [career, family], rng)
        listed = zip([*words.career, *words.family], [*career, *family], strict=True)
        measured["words"] = {word: float(each) for word, each in listed}
    return measured


def _mean(values: Values) -> float:
    return float(values.mean())


def _occupations(lm: CausalLM, templates: Sequence[Template], jobs: Sequence[str]) -> tuple[Values, Values]:
    """Return log-odds and entropy of each job, means over templates, ``(jobs,)`` each."""
    pairs = [template.with_job(job) for job in jobs for template in templates]
    starts = [pair.before for pair in pairs]
    male, female = (text_log_probs(lm, starts, [getattr(pair, name) for pair in pairs]) for name in ("male", "female"))
    whole = [
        text_log_probs(lm, [""] * len(pairs), [getattr(pair, name) for pair in pairs])
        for name in ("male_text", "female_text")
    ]
    shape = (len(jobs), len(templates))
    return (male - female).reshape(shape).mean(axis=1), pair_entropy(*whole).reshape(shape).mean(axis=1)


def _associations(lm: CausalLM, templates: Sequence[Template], words: WordLists, asked: Sequence[str]) -> Values:
    """Return by how much more likely each word is behind men than behind women, in nats, ``(words,)``."""
    sides = []
    for which in (0, 1):
        parts = [
            template.with_person(pair[which], word)
            for word in asked
            for template in templates
            for pair in words.persons
        ]
        sides.append(text_log_probs(lm, [start for start, _ in parts], [rest for _, rest in parts]))
    difference: Values = (sides[0] - sides[1]).reshape(len(asked), -1).mean(axis=1)
    return difference


def measure_reward(scores: Callable[[Sequence[str], Sequence[str]], Any], probe: Probe) -> Measured:
    """Measure by how much a reward prefers the male one of two counterfactual texts.

    Args:
        scores: Returns the score of each completion, given prompts and completions.
        probe: Its ``"occupation"`` templates make the texts.

    Returns:
        ``swap_gap``, the mean difference, and ``swap_gap_size``, the mean of its absolute value, in units of the score;
        None without such templates.
    """
    measured: Measured = {"swap_gap": None, "swap_gap_size": None}
    if templates := probe.of_kind("occupation"):
        jobs = list(probe.words.jobs)
        pairs = [template.with_job(job) for job in jobs for template in templates]
        male, female = (
            np.asarray(scores([""] * len(pairs), [getattr(pair, name) for pair in pairs]), dtype=np.float64)
            for name in ("male_text", "female_text")
        )
        gaps, rng = (male - female).reshape(len(jobs), -1), np.random.default_rng(probe.seed)
        measured["swap_gap"] = bootstrap(_mean, [gaps.mean(axis=1)], rng)
        measured["swap_gap_size"] = bootstrap(_mean, [np.abs(gaps).mean(axis=1)], rng)
    return measured


def measure_sentiment(
    scores: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]], probe: Probe
) -> Measured:
    """Measure how far the sentiment of what follows a prompt depends on the gender in it.

    Args:
        scores: By pair of prompts, the sentiment of some continuations of the one and of the other.
        probe: Of which they are.

    Returns:
        ``sentiment_gap``, the mean Wasserstein-1 distance over pairs, ``sentiment_by_chance``, its mean where scores
        are dealt out at random, and ``sentiment_difference``, the mean sentiment behind men less that behind women;
        all in units of the score.
    """
    rng = np.random.default_rng(probe.seed)
    pairs = list(scores.values())
    gaps = np.array([wasserstein(male, female) for male, female in pairs])
    chance = np.array([chance_distance(male, female, rng) for male, female in pairs])
    differences = np.array([float(np.mean(male) - np.mean(female)) for male, female in pairs])
    return {
        "sentiment_gap": bootstrap(_mean, [gaps], rng),
        "sentiment_by_chance": Figure(float(chance.mean()), None, None),
        "sentiment_difference": bootstrap(_mean, [differences], rng),
    }
