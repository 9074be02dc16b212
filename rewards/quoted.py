"""Whether the quotes of a browser hold an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from textenv.rewards._answers import as_answers, matches
from textenv.types import TextEnvError, short
from textenv.validation import validate

__all__ = ["Quoted"]


@dataclass(frozen=True, slots=True)
class Quoted:
    """1 where the quotes that a browser collected hold an answer, else 0.

    It reads the columns that the world ``browser`` gives. Texts are compared as ``exact_match`` compares them.

    Attributes:
        what: ``"answer"`` for the answer that was given: whether its quotes support it. ``"answers"`` for one of those
            that are known to be right: whether it was found, whatever was then answered.
    """

    what: Literal["answer", "answers"] = "answer"

    def __post_init__(self) -> None:
        validate(self, owner="Quoted")

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores, 0 or 1; one without quotes, or without an answer, has 0.

        Raises:
            TextEnvError: If the columns are not those of a browser.
        """
        if missing := sorted({"quotes", self.what} - set(columns)):
            raise TextEnvError(
                f"Quoted needs the columns {missing}, and there are {sorted(columns)}; expected those that the world "
                "'browser' gives."
            )
        return [
            float(any(matches(extract, as_answers(sought), contained=True) for extract in _extracts(quotes)))
            for quotes, sought in zip(columns["quotes"], columns[self.what], strict=True)
        ]


def _extracts(quotes: Any) -> list[str]:
    found: list[Any] = [quote.get("extract") if isinstance(quote, Mapping) else quote for quote in quotes or ()]
    if not all(isinstance(extract, str) for extract in found):
        raise TextEnvError(f"The quotes are {short(quotes)}; expected objects with the text 'extract'.")
    return found
