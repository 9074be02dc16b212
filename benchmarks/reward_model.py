"""A reward model beside the mean ratings of the movie reviews' test split, and beside one person and VADER.

    python benchmarks/reward_model.py --model bundled

Pearson's r is with the snippets' mean rating. The pair accuracy is over all pairs of snippets of the split whose means
differ: the share in which the higher score belongs to the higher mean, equal scores counting half. One person is held
against the mean of the others, by a rating of each snippet drawn at random; pairs that this person rates alike are left
out there, since people give whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from textenv.data.reviews import load_reviews
from textenv.models.reward_model import RewardModel
from textenv.rewards import Vader


@dataclass(frozen=True)
class Arguments:
    """What to measure.

    Attributes:
        model: Folders of reward models, or "bundled".
        split: Which snippets; the test split is for the last figures alone.
        seed: Seeds whose rating stands for the one person.
    """

    model: tuple[str, ...] = ("bundled",)
    split: Literal["train", "validation", "test"] = "test"
    seed: int = 0


def pair_accuracy(scores: NDArray[Any], means: NDArray[Any], *, alike: float = 0.5) -> float:
    """Return the share of pairs of different means that scores order alike; equal scores count ``alike``, NaN not."""
    first, second = np.triu_indices(len(means), 1)
    by_mean, by_score = (np.sign(values[first] - values[second]) for values in (means, scores))
    right = np.where(by_score == 0, alike, by_score == by_mean)[by_mean != 0]
    return float(np.nanmean(right))


def main(arguments: Arguments) -> None:
    """Print the table."""
    reviews = load_reviews(arguments.split)
    texts = [review.text for review in reviews]
    means = np.array([review.rating_mean for review in reviews])
    table = Table("", "Pearson's r", "pair accuracy", title=f"{len(texts)} snippets of the {arguments.split} split")

    def add(name: str, scores: NDArray[Any], truth: NDArray[Any], alike: float = 0.5) -> None:
        r = float(np.corrcoef(scores, truth)[0, 1])
        table.add_row(name, f"{r:.3f}", f"{pair_accuracy(scores, truth, alike=alike):.1%}")

    rng = np.random.default_rng(arguments.seed)
    ratings = [np.array(review.ratings) for review in reviews]
    one = np.array([rating[rng.integers(len(rating))] for rating in ratings])
    add("one person", one, np.array([(r.sum() - o) / (len(r) - 1) for r, o in zip(ratings, one, strict=True)]), np.nan)
    blank = [""] * len(texts)
    add("VADER", np.array(Vader()(prompts=blank, completions=texts, completion_ids=[[0]] * len(texts))), means)
    for name in arguments.model:
        add(name, RewardModel.load(name).scores(blank, texts), means)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
