"""Demonstrations of browsing, written by a script that recognizes a right answer where it sees one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.worlds.browser import Browser

__all__ = ["Demonstration", "demonstrate"]

_WIDEST = 60  # characters of a quote before and after the answer


@dataclass(frozen=True, slots=True)
class Demonstration:
    """How a script answered a question.

    Attributes:
        steps: What was read and what was written, of each turn.
        columns: What the browser gives a reward at the end: ``question``, ``answers``, ``quotes``, ``answer``, ...
    """

    steps: tuple[tuple[str, str], ...]
    columns: Mapping[str, Any]

    @property
    def answered(self) -> bool:
        """Whether it ends with an answer, which is then a right one."""
        return self.columns["answer"] is not None

    def records(self) -> list[dict[str, str]]:
        """Return a record with ``prompt`` and ``completion`` for each turn, as ``textenv sft`` reads them."""
        return [{"prompt": read, "completion": written} for read, written in self.steps]


def demonstrate(world: Browser, *, seed: int) -> Demonstration:
    """Have a script answer a question: it searches, opens what it found in turn, and quotes a line with a right answer.

    The script knows which answers are right, as a person recognizes one; it does not know where they stand. So how many
    questions it answers says how well they can be answered in so many actions, and not how well a policy would do.

    Args:
        world: The browser, which it begins a new episode in.
        seed: Of the episode; it draws the question.
    """
    read, info = world.reset(seed=seed)
    steps = list[tuple[str, str]]()
    script = _script(world, info["columns"]["question"], info["columns"]["answers"])
    over = False
    while not over and (written := next(script, None)) is not None:
        steps.append((read, written))
        read, _, over, _, info = world.step(written)
    return Demonstration(tuple(steps), info["columns"])


def _script(world: Browser, question: str, answers: Sequence[str]) -> Iterator[str]:
    """Yield what to write in turn; ends where it has found nothing."""
    for query in dict.fromkeys((question.rstrip("?"), question.rpartition(":")[2].strip("? "))):
        yield f"Search {query}"
        for number in range(len(world.view.links) if world.view else 0):
            yield f"Clicked on link {number}"
            if (found := _place_of(world, answers)) is not None:
                answer, line = found
                yield f"Quote: {line}"
                yield "End: Answer"
                yield answer
                return
            yield "Back"


def _place_of(world: Browser, answers: Sequence[str]) -> tuple[str, str] | None:
    """Return the first right answer that stands on the page, and what to quote: its line, or some words around it."""
    text = "" if world.view is None else world.view.text
    for answer in answers:
        found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
        if found is not None:
            start = max(text.rfind("\n", 0, found.start()) + 1, found.start() - _WIDEST)
            end = text.find("\n", found.end())
            stop = min(len(text) if end < 0 else end, found.end() + _WIDEST)
            return answer, " ".join(text[start:stop].split())
    return None
