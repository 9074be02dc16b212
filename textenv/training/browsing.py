"""Demonstrations of browsing, and a script that writes them: it recognizes a right answer where it sees one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.worlds.browser import Browser

__all__ = ["Demonstration", "demonstrate"]

_WIDEST = 30  # characters of a quote before and after the answer
_ASKING = re.compile("(?i:an?|the|what|which|who|where|when|is|are|was|were|do|does|did|of|in|has|have|kind)")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """How a script, or a person, answered a question.

    Attributes:
        steps: What was read and what was written, of each turn.
        columns: What the browser gives a reward at the end: ``question``, ``answers``, ``quotes``, ``answer``, ...
    """

    steps: tuple[tuple[str, str], ...]
    columns: Mapping[str, Any]

    @property
    def answered(self) -> bool:
        """Whether it ends with an answer; that of the script is a right one."""
        return self.columns["answer"] is not None

    def records(self, annotator: str = "") -> list[dict[str, str]]:
        """Return a record with ``prompt`` and ``completion`` for each turn, as ``textenv sft`` reads them.

        Args:
            annotator: Whose name stands in each as ``annotator``; ``""`` for none.
        """
        named = {"annotator": annotator} if annotator else {}
        return [{"prompt": read, "completion": written, **named} for read, written in self.steps]


def demonstrate(world: Browser, *, seed: int) -> Demonstration:
    """Have a script answer a question: it searches, opens what it found in turn, and quotes a line with a right answer.

    It searches for what stands behind a colon, or else for the question without the words that merely ask, and then for
    the whole question. It quotes what the browser shows, and scrolls down to it if need be.

    The script knows which answers are right, as a person recognizes one; it does not know on which page one stands. So
    how many questions it answers says how well they can be answered in so many actions, and not how well a policy would
    do.

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
    for query in _queries(question):
        yield f"Search {query}"
        for number in range(len(world.view.links) if world.view else 0):
            yield f"Clicked on link {number}"
            if (found := _place_of(world, answers)) is not None:
                while world.shown[1] < found.end():
                    yield "Scrolled down 1"
                if world.shown[0] <= found.start():
                    yield f"Quote: {_around(found, *world.shown)}"
                    yield "End: Answer"
                    yield found[0]
                    return
            yield "Back"


def _queries(question: str) -> Iterable[str]:
    whole = question.rstrip("? ")
    _, colon, asked = whole.rpartition(":")
    words = [word for word in asked.split() if colon or not _ASKING.fullmatch(word)]
    return dict.fromkeys(query for query in (" ".join(words), whole) if query)


def _place_of(world: Browser, answers: Sequence[str]) -> re.Match[str] | None:
    """Return where the first right answer that is on the page stands in its text."""
    text = "" if world.view is None else world.view.text
    patterns = (rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in answers)
    return next((found for each in patterns if (found := re.search(each, text, re.IGNORECASE))), None)


def _around(found: re.Match[str], first: int, last: int) -> str:
    """Return what to quote: the answer, with whole words of its line before and after it, of those that are shown."""
    before = found.string[first : found.start()].rpartition("\n")[2]
    after = found.string[found.end() : last].partition("\n")[0]
    if len(before) > _WIDEST:
        before = before[-_WIDEST - 1 :].partition(" ")[2]
    if len(after) > _WIDEST:
        after = after[: _WIDEST + 1].rpartition(" ")[0]
    return " ".join(f"{before}{found[0]}{after}".split())
