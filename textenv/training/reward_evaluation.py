"""How well a reward model agrees with people, and how well people agree with each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from textenv.data.pictures import save_figure
from textenv.training.ranked_texts import Text, columns, text_key, texts_of
from textenv.types import Conversation, Ranking, TextEnvError

__all__ = ["Calibration", "RewardEvaluation", "Scorer", "calibration", "evaluate", "plot_evaluations"]

Scorer: TypeAlias = Callable[[Sequence[str | Conversation], Sequence[str]], NDArray[Any]]
"""Maps prompts and completions to scores, as ``RewardModel.scores`` does."""

_BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether a model that is sure to 80 % is right in 80 % of the comparisons.

    Attributes:
        ece: Expected calibration error: mean distance of confidence and accuracy over the bins, by their size.
        brier: Mean squared error of the probability of what was judged better; 0.25 for a coin.
        confidence: Mean confidence of each bin that has comparisons, from 0.5 to 1.
        accuracy: Accuracy of each of them.
        count: Comparisons of each of them.
    """

    ece: float
    brier: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RewardEvaluation:
    """Figures of a reward model on rankings; shares are of comparisons without ties unless it says otherwise.

    Attributes:
        comparisons: How many there are.
        accuracy: Share that the model orders as the person did; equal scores count half.
        person: The same of another person who compared the two texts; None where no two did.
        majority: Share of pairs of texts that the model orders as most people did who compared them; None where no pair
            has a majority.
        person_majority: The same of one person and the majority of the others, which is the human ceiling; None where
            no three did.
        groups: Accuracy and comparisons by whether prompt and annotator were seen in training.
        calibration: Of the probability that one text is better than the other.
        longer: Share in which the model prefers the longer text; of texts of different lengths. None where there
            are none.
        longer_people: Share in which the person does; likewise.
    """

    comparisons: int
    accuracy: float
    person: float | None
    majority: float | None
    person_majority: float | None
    groups: Mapping[str, tuple[float, int]]
    calibration: Calibration
    longer: float | None
    longer_people: float | None


def evaluate(
    scorer: Scorer, rankings: Sequence[Ranking], *, scale: float = 1.0, trained_on: Sequence[Ranking] = ()
) -> RewardEvaluation:
    """Measure a reward model on rankings.

    Args:
        scorer: Gives the scores.
        rankings: What people said.
        scale: What a difference of scores is multiplied with to be a log-odds: ``RewardModel.scale``.
        trained_on: What it learned from, which tells prompts and annotators that it has seen from those held out. If
            all prompts are the same, as those of texts without any, the texts are told apart in their place.

    Raises:
        TextEnvError: There is no comparison without a tie.
    """
    compared = _compare(rankings, trained_on)
    prompts, completions = columns(compared.texts)
    scores = np.asarray(scorer(prompts, completions), dtype=np.float64)
    lead = scores[compared.better] - scores[compared.worse]
    right = 0.5 + 0.5 * np.sign(lead)
    groups = {}
    for name in sorted(set(compared.groups)) if trained_on else ():
        chosen = np.array([group == name for group in compared.groups])
        groups[name] = (float(right[chosen].mean()), int(chosen.sum()))
    person, majority, person_majority = _ceiling(compared.better, compared.worse, scores)
    lengths = np.array([len(completion) for completion in completions])
    uneven = lengths[compared.better] != lengths[compared.worse]
    longer = lengths[compared.better] > lengths[compared.worse]
    preferred = np.where(longer, right, 1 - right)[uneven]
    return RewardEvaluation(
        comparisons=len(lead),
        accuracy=float(right.mean()),
        person=person,
        majority=majority,
        person_majority=person_majority,
        groups=groups,
        calibration=calibration(scale * lead),
        longer=float(preferred.mean()) if len(preferred) else None,
        longer_people=float(longer[uneven].mean()) if len(preferred) else None,
    )


class _Comparisons(NamedTuple):
    """The comparisons of rankings that are no ties.

    Attributes:
        texts: The different texts.
        better: Index of the text that was judged better, shape ``(comparisons,)``.
        worse: Index of the other, likewise.
        groups: For each, whether its prompt (or text) and its annotator were seen in training, in words.
    """

    texts: list[Text]
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    groups: list[str]


def _compare(rankings: Sequence[Ranking], trained_on: Sequence[Ranking]) -> _Comparisons:
    texts = {text_key(text): text for ranking in rankings for text in texts_of(ranking)}
    index_of = {key: index for index, key in enumerate(texts)}
    by_text = len({repr(ranking.prompt) for ranking in rankings}) == 1
    seen = {_identity(ranking, text, by_text) for ranking in trained_on for text in texts_of(ranking)}
    annotators = {ranking.annotator for ranking in trained_on}
    what = "text" if by_text else "prompt"
    better_texts: list[int] = []
    worse_texts: list[int] = []
    groups: list[str] = []
    for ranking in rankings:
        ranked = texts_of(ranking)
        indices = [index_of[text_key(text)] for text in ranked]
        known = [_identity(ranking, text, by_text) in seen for text in ranked]
        annotator = "annotator " + ("seen" if ranking.annotator in annotators else "held out")
        for better, worse, tied in ranking.pairs():
            if not tied:
                better_texts.append(indices[better])
                worse_texts.append(indices[worse])
                groups.append(
                    f"{what} {('held out', 'partly seen', 'seen')[known[better] + known[worse]]}, {annotator}"
                )
    if not groups:
        raise TextEnvError(f"{len(rankings)} rankings have no comparison without a tie to measure a reward model on.")
    return _Comparisons(list(texts.values()), np.array(better_texts), np.array(worse_texts), groups)


def _identity(ranking: Ranking, text: Text, by_text: bool) -> str:
    """Return what tells whether a text was seen in training: its key, or that of its prompt."""
    return text_key(text) if by_text else repr(ranking.prompt)


def _ceiling(
    better: NDArray[Any], worse: NDArray[Any], scores: NDArray[np.float64]
) -> tuple[float | None, float | None, float | None]:
    """Return agreement of two people, of the model with the majority, and of a person with that of the others."""
    votes: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for one, other in zip(better.tolist(), worse.tolist(), strict=True):
        votes[min(one, other), max(one, other)][int(one > other)] += 1
    pairs = np.array(list(votes))
    counts = np.array(list(votes.values()), dtype=np.float64)  # for the first of the two, and for the second
    total = counts.sum(axis=1)
    agreeing = (counts * (counts - 1)).sum(axis=1)
    several = total >= 2
    person = float(agreeing.sum() / (total * (total - 1)).sum()) if several.any() else None
    decided = counts[:, 0] != counts[:, 1]
    lead = np.sign(scores[pairs[:, 0]] - scores[pairs[:, 1]]) * np.sign(counts[:, 0] - counts[:, 1])
    majority = float((0.5 + 0.5 * lead[decided]).mean()) if decided.any() else None
    right = weight = 0.0
    for side in (0, 1):
        same, others = counts[:, side], counts[:, 1 - side]
        majority_sign = np.sign(same - 1 - others)  # of the people other than one who is for this side
        has_majority = (total >= 3) & (majority_sign != 0)
        right += float((same * (majority_sign > 0))[has_majority].sum())
        weight += float(same[has_majority].sum())
    return person, majority, right / weight if weight else None


def calibration(log_odds: NDArray[Any]) -> Calibration:
    """Return how far probabilities can be trusted (Guo et al. 2017, equation 3, in 10 bins; Brier 1950).

    Args:
        log_odds: What the model gives to that which was judged better being better, shape ``(comparisons,)``.
    """
    probability = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
    confidence, right = np.maximum(probability, 1 - probability), 0.5 + 0.5 * np.sign(log_odds)
    places = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins = [places == place for place in range(_BINS) if (places == place).any()]
    sure, accurate = [float(confidence[b].mean()) for b in bins], [float(right[b].mean()) for b in bins]
    count = [int(b.sum()) for b in bins]
    gaps = [n * abs(one - other) for n, one, other in zip(count, sure, accurate, strict=True)]
    brier = float(((1 - probability) ** 2).mean())
    return Calibration(sum(gaps) / len(log_odds), brier, tuple(sure), tuple(accurate), tuple(count))


def plot_evaluations(evaluations: Mapping[str, tuple[int, RewardEvaluation]], path: Path) -> None:
    """Draw accuracy over the number of comparisons learned from, beside the human ceiling, and the calibration.

    Args:
        evaluations: By the model's name, comparisons it learned from and its figures.
        path: The picture; its suffix gives the format.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow)

    figure = Figure(figsize=(10, 4), layout="constrained")
    curve, trust = figure.subplots(1, 2)
    ordered = sorted(evaluations.values(), key=lambda one: one[0])
    counts = [count for count, _ in ordered]
    majority = [math.nan if one.majority is None else one.majority for _, one in ordered]  # which is not drawn
    curve.plot(counts, majority, "o-", label="reward model, against the majority")
    curve.plot(counts, [one.accuracy for _, one in ordered], "o-", label="reward model, against a person")
    last = ordered[-1][1]
    for level, color, what in (
        (last.person_majority, "C0", "the majority of the others"),
        (last.person, "C1", "another"),
    ):
        if level is not None:
            curve.axhline(level, color=color, linestyle="--", label=f"a person, against {what}")
    if min(counts) > 0:
        curve.set_xscale("log")
    _end_at_one(curve)
    curve.set(xlabel="comparisons learned from", ylabel="accuracy", title="Accuracy")
    for name, (_, one) in evaluations.items():
        trust.plot(
            one.calibration.confidence, one.calibration.accuracy, "o-", label=f"{name}, ECE {one.calibration.ece:.3f}"
        )
    trust.plot([0.5, 1], [0.5, 1], color="gray", linewidth=1, label="calibrated")
    _end_at_one(trust)
    trust.set(xlabel="confidence", ylabel="accuracy", title="Calibration", xlim=(0.5, 1))
    for panel in (curve, trust):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(framealpha=0.8, edgecolor="none", fontsize="small")  # lines may go below it
    save_figure(figure, path)


def _end_at_one(panel: Any) -> None:
    """Let an axis of shares end at 1, where it would go further, and show the whole of a mark that is there."""
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom, min(top, 1.0))
    for line in panel.get_lines():
        line.set_clip_on(False)
