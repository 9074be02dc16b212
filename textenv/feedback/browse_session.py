"""A person who answers questions in the text browser (``textenv.worlds.browser``) as a policy does, and its records."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textenv.data.records import append_records, kind_of, read_records
from textenv.data.web_pages import Question
from textenv.feedback.store import annotator_name
from textenv.training.browsing import Demonstration
from textenv.types import TextEnvError, short
from textenv.worlds.browser import Browser, question_in, question_line

__all__ = ["BrowseSession"]

_LONG = 120  # characters of a quote that are written as its first and last words, if those tell it
_WORDS = (3, 5, 8, 12)  # how many, the fewest that do
_HINTS = {
    "Search": "Write what to search for.",
    "Clicked on link": "There is no such link.",
    "Find in page:": "It is not on this page.",
    "Quote:": "It is not on this page, or longer than is left; select words there.",
}


class BrowseSession:
    """Has a person answer questions one after the other, each turn being a text that goes through the browser.

    What would be an invalid action of a policy is refused instead, and is then no action. An episode that ends with an
    answer, or puts its question aside as nonsense or controversial, is recorded at once: its turns are added to the
    file all or not at all. One that ends without either is not.

    Attributes:
        world: The browser.
        question: What is asked now; None if nothing is left to ask.
        steps: What was read and written so far.
        recorded: Number of questions that are in the file.
        skipped: Number of questions that were skipped; they are not asked again.
        wanted: Number of questions.
    """

    def __init__(
        self, world: Browser, out: Path, *, annotator: str, questions: int | None = None, seed: int = 0
    ) -> None:
        """Begin with the first question that the annotator's records in the file do not hold.

        Args:
            world: The browser, whose questions are asked.
            out: File of records, ``.jsonl``, that is added to.
            annotator: Who answers.
            questions: Number of questions, drawn without replacement; None for all.
            seed: Seeds which, and their order.

        Raises:
            TextEnvError: There are no questions, or none is left; the file cannot be read; or the name is empty.
        """
        self.world, self._out, self.annotator = world, out, annotator_name(annotator)
        if not self.annotator:
            raise TextEnvError(f"annotator={annotator!r}: expected the name of who answers.")
        known = list({question_line(each.question): each for each in world.drawn_from}.values())
        if not known:
            raise TextEnvError(
                f"The web {world.web} has no questions; put them into it: textenv browse index SOURCE --questions FILE."
            )
        asked = random.Random(seed).sample(known, min(questions or len(known), len(known)))
        left = self._unrecorded(asked)
        self.wanted, self.recorded, self.skipped = len(asked), len(asked) - len(left), 0
        if not left:
            raise TextEnvError(
                f"{out}: holds what {self.annotator} answered to all {len(asked)} questions; ask more of them "
                "(--questions), others (--split, --web), or another person (--annotator)."
            )
        self._left = left[::-1]
        self._next()

    def _unrecorded(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions to which the file holds no answer of the annotator by now, by whichever command."""
        there = _recorded(self._out, self.annotator)
        return [each for each in questions if question_line(each.question) not in there]

    @property
    def columns(self) -> Mapping[str, Any]:
        """What the browser tells a reward: ``question``, ``quotes``, ``answer``, ``actions``, ..."""
        return self._columns

    @property
    def actions_left(self) -> int:
        """How many actions there are before browsing ends."""
        return self.world.max_actions - int(self._columns["actions"])

    def act(self, action: str) -> None:
        """Write an action, or the answer once it is asked for, and take the step.

        White space in it is as good as a blank, since a policy of ``textenv/Browse-v0`` writes a line.

        Raises:
            TextEnvError: It is blank, would be invalid, or could not be recorded; then nothing has changed.
        """
        written, before = " ".join(action.split()), len(self.steps)
        if self.question is None or self.world.phase == "over":
            raise TextEnvError("Browsing has ended; begin the question anew, or skip it.")
        if not written:
            raise TextEnvError("Nothing was written; expected an action, or the answer.")
        if self.world.phase == "browse" and written.startswith("Quote: "):
            written = f"Quote: {self._shortened(written.removeprefix('Quote: '))}"
        try:
            self._take(written)
            if self._is_finished():
                self._record()
        except TextEnvError:
            self._begin([each for _, each in self.steps[:before]])
            raise

    def restart(self) -> None:
        """Begin the question anew."""
        self._begin()

    def skip(self) -> None:
        """Go on to the next question, without a record of this one."""
        if self.question is not None:
            self.skipped += 1
            self._next()

    def _next(self) -> None:
        self._left = self._unrecorded(self._left)
        self.question = self._left.pop() if self._left else None
        self._begin()

    def _begin(self, written: Sequence[str] = ()) -> None:
        """Begin the question anew, and take the steps that were taken: all that the browser does follows from them."""
        self.steps: list[tuple[str, str]] = []
        self._columns: Mapping[str, Any] = {"actions": 0, "quotes": []}
        if self.question is not None:
            options = {"prompt": self.question.question, "answers": list(self.question.answers)}
            self._read, info = self.world.reset(options=options)
            self._columns = info["columns"]
        for each in written:
            self._take(each)

    def _take(self, written: str) -> None:
        invalid = self._columns["invalid_actions"]
        read, _, _, _, info = self.world.step(written)
        if info["columns"]["invalid_actions"] > invalid:
            hint = next((hint for name, hint in _HINTS.items() if written.startswith(name)), "")
            raise TextEnvError(f"{short(written)} cannot be done here. {hint}".rstrip())
        self.steps.append((self._read, written))
        self._read, self._columns = read, info["columns"]

    def _is_finished(self) -> bool:
        """Tell whether the episode is over, with an answer or by putting the question aside."""
        aside = self.steps[-1][1].startswith("End: ") and self.steps[-1][1] != "End: Answer"
        return self.world.phase == "over" and (self._columns["answer"] is not None or aside)

    def _record(self) -> None:
        if self.question is not None and not self._unrecorded([self.question]):
            raise TextEnvError(
                f"{self._out} holds an answer of {self.annotator} to this question by now: another command of the same "
                "name adds to it. Skip the question."
            )
        found = Demonstration(tuple(self.steps), self._columns)
        append_records(self._out, found.records(self.annotator))
        self.recorded += 1
        self._next()

    def _shortened(self, words: str) -> str:
        """Return a long quote as its first and last words, which copy less, where those tell the same stretch."""
        view, parts = self.world.view, words.split()
        if view is None or len(words) <= _LONG or "━" in words or not (whole := view.extract(words)):
            return words
        ends = (f"{' '.join(parts[:count])}━{' '.join(parts[-count:])}" for count in _WORDS)
        return next((each for each in ends if len(each) < len(words) and view.extract(each) == whole), words)


def _recorded(path: Path, annotator: str) -> set[str | None]:
    """Return the questions that a person's records in a file answer, as observations show them."""
    kind_of(path, (".jsonl",))
    if not path.exists() or not path.stat().st_size:
        return set()
    rows = [row for _, row in read_records(path) if row.get("annotator") == annotator]
    return {question_in(prompt) for row in rows if isinstance(prompt := row.get("prompt"), str)}
