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

    Upper and lower case, punctuation, the articles, accents and white space make no difference.

    Attributes:
        answers: Name of the column of right answers, a text or a list of texts each.
        said: Name of the column of what was answered, None where nothing was, such as ``"answer"`` of the world
            ``browser``; None for the completion.
        contained: Whether it is enough that the words of a right answer stand in the answer, in a row.
    """

    answers: NonEmpty = "answers"
    said: NonEmpty | None = None
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
            TextEnvError: If there is no such column.
        """
        for name in {self.answers, self.said} - {None} - set(columns):
            raise TextEnvError(
                f"ExactMatch reads the column {name!r}, and the columns are {sorted(columns)}; name those that there "
                "are as answers=... and said=..."
            )
        given = completion_texts(completions) if self.said is None else columns[self.said]
        return [
            float(text is not None and matches(str(text), as_answers(right), contained=self.contained))
            for text, right in zip(given, columns[self.answers], strict=True)
        ]
