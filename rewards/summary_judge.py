"""A judge of summaries that is a program: does a summary belong to its text, and does it say so in its own words?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from textenv.data.summaries import DEBIAN, SummaryData
from textenv.models.matcher import Matcher, copied_share, matches_of
from textenv.rewards._references import references
from textenv.rewards._texts import completion_texts
from textenv.validation import Count, NonEmpty, NonNegative, Seed, validated

__all__ = ["SummaryJudge"]


class SummaryJudge:
    """How likely a summary is the true one of its text, less a penalty for what it copies. It is not human.

    A ``textenv.models.matcher.Matcher`` tells true summaries from those of neighbors, for descriptions from those of
    packages of the same source or section. It learns from the split ``"judge"`` of the data when the reward is made,
    in seconds; ``"train"`` and ``"heldout"`` have no source package in common with that. The score is its log-odds,
    with mean 0 for true summaries, less ``copy_penalty`` times the share of the summary's pairs of neighboring words
    that are in the text. It stands in for the people of Stiennon et al. 2020 (*Learning to summarize from human
    feedback*), and knows nothing of style, truth or use beyond words.

    Args:
        data: What it learns from: ``"debian"``, ``"few"`` or a file, as in ``textenv.data.summaries.SummaryData``.
        text_column: In that file, the column of the texts.
        reference_column: In that file, the column of their summaries.
        group_column: In that file, a column whose values keep rows together in one split, and whose rows are neighbors.
        max_characters: Longer texts are left out of what it learns from.
        copy_penalty: Factor of the share that is copied.
        column: Column of the prompts with the texts that are summarized.
        seed: Seeds which neighbors are drawn.

    Raises:
        TextEnvError: If an argument is not what is expected, or the data cannot be had; when called, if the column is
            missing or holds anything but texts.
    """

    @validated
    def __init__(
        self,
        *,
        data: NonEmpty = DEBIAN,
        text_column: NonEmpty = "text",
        reference_column: NonEmpty = "reference",
        group_column: NonEmpty | None = None,
        max_characters: Count = 600,
        copy_penalty: NonNegative = 8.0,
        column: NonEmpty = "text",
        seed: Seed = 0,
    ) -> None:
        self.matcher = _learned(
            SummaryData(
                data=data,
                split="judge",
                text_column=text_column,
                reference_column=reference_column,
                group_column=group_column,
                max_characters=max_characters,
            ),
            seed,
        )
        self.copy_penalty = copy_penalty
        self._column = column
        self._about = f"SummaryJudge(data={data!r}): a program, not a person"

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores, any numbers."""
        summaries = completion_texts(completions)
        texts = [" ".join(each) for each in references("summary_judge", self._column, columns, len(summaries))]
        scores = self.matcher.scores(texts, summaries).tolist()
        return [
            score - self.copy_penalty * copied_share(text, summary)
            for score, text, summary in zip(scores, texts, summaries, strict=True)
        ]

    def __repr__(self) -> str:
        return self._about


@cache
def _learned(data: SummaryData, seed: int) -> Matcher:
    rows = data.rows()
    return Matcher(
        matches_of(
            [row["text"] for row in rows],
            [row["reference"] for row in rows],
            [_groups(row, data.group_column) for row in rows],
            seed=seed,
        ),
        seed=seed,
    )


def _groups(row: dict[str, str], column: str | None) -> tuple[str, ...]:
    """Return what a row and its neighbors have in common, the closest first."""
    names = ("source", "section") if column is None else (column,)
    return tuple(f"{name} {row[name]}" for name in names if name in row)
