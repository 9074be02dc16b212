"""Whether an answer is one of those that are known to be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textenv.rewards._answers import as_answers, matches
from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError
from textenv.validation import NonEmpty, validate

__all__ = ["ExactMatch"]


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """1 for an answer that is one of the right ones, else 0; both are normalized as in SQuAD (Rajpurkar et al. 2016).

    Upper and lower case, punctuation, the articles, accents and white space make no difference. The answer is what a
    world gives as the column ``answer``, None where there is none yet; without that column it is the completion.

    Attributes:
        answers: Name of the column of right answers, a text or a list of texts each.
        contained: Whether it is enough that the words of a right answer stand in the answer, in a row.
    """

    answers: NonEmpty = "answers"
    contained: bool = False

    def __post_init__(self) -> None:
        validate(self, owner="ExactMatch")

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores, 0 or 1; one without an answer has 0.

        Raises:
            TextEnvError: If there is no column of right answers.
        """
        if self.answers not in columns:
            raise TextEnvError(
                f"ExactMatch compares with the column {self.answers!r}, and the columns are {sorted(columns)}; name "
                "the one with the right answers as answers=..."
            )
        given = columns["answer"] if "answer" in columns else completion_texts(completions)
        return [
            float(text is not None and matches(str(text), as_answers(right), contained=self.contained))
            for text, right in zip(given, columns[self.answers], strict=True)
        ]
