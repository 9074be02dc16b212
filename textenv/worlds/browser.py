"""A text browser over an offline web, in which questions are answered with quotes (Nakano et al. 2021, WebGPT)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from textenv.data.offline_web import Web, open_web
from textenv.data.values import as_text, short
from textenv.data.web_pages import Question, read_questions, split_of
from textenv.types import TextEnvError
from textenv.validation import Count, FilePath, validate
from textenv.worlds._pages import View, one_line, page_view, results_view, without_links

__all__ = [
    "Browser",
    "Quote",
    "QuotedAnswer",
    "answering_prompt",
    "question_in",
    "question_line",
    "quoted_answer",
    "read_quoted_answer",
    "references_of",
]

_LONGEST_PAST = 80  # characters of an action that is past
_LONGEST_ACTION = 10_000  # characters of a command
_INVALID = "Invalid action"
_BEGINS = "♦Question\n"  # of an observation


class Quote(NamedTuple):
    """A stretch of a page that was quoted.

    Attributes:
        title: Of the page.
        domain: Where the page is from.
        extract: What was quoted, in one line.
    """

    title: str
    domain: str
    extract: str


class QuotedAnswer(NamedTuple):
    """An answer with its references.

    Attributes:
        references: Of each quote the line that says where it is from, such as ``"[1] Heron (birds.example)"``, and what
            was quoted.
        answer: The answer.
    """

    references: tuple[tuple[str, str], ...]
    answer: str


class _Place(NamedTuple):
    """What the browser shows, and the place in its text at which the window begins."""

    view: View
    start: int


@dataclass
class Browser:
    """Shows a question and a page of an offline web, takes a command a turn, and then asks for the answer.

    The commands are ``Search <query>``, ``Clicked on link <number>``, ``Find in page: <text>``, ``Quote: <text>``,
    ``Scrolled down <1, 2, 3>``, ``Scrolled up <1, 2, 3>``, ``Top``, ``Back``, ``End: Answer`` and
    ``End: <Nonsense, Controversial>``. Anything else, and a command that cannot be carried out, is invalid: it counts
    as an action and changes nothing.

    Every observation says all that there is to know, so that ``context="fresh"`` suffices: the question, the quotes,
    past actions, the window of the page, and the actions left. Browsing ends by a command, with the last action, or
    when the room for quotes is full. If there is a quote, and the question was not put aside as nonsense or
    controversial, the next turn is the answer, with the quotes as references.

    It pays nothing. Rewards are given the columns ``question``, ``answers`` (those that are right), ``quotes`` (objects
    with ``title``, ``domain`` and ``extract``), ``answer`` (None before there is one), ``actions`` and
    ``invalid_actions``.

    Pages are data. Characters in them that are marks of the observation, or are not seen, are shown escaped.

    Attributes:
        web: A file that ``textenv browse index`` has written.
        questions: A file of records with ``question`` and ``answers``; None for those in ``web``. A prompt of the
            environment, and its column ``answers``, take their place.
        split: Which questions are drawn from: ``"all"``, or one of the disjoint shares ``"demonstrations"``,
            ``"comparisons"``, ``"train"`` and ``"heldout"``.
        max_actions: Actions of an episode, at most; the answer is none of them.
        max_quotes: Quotes, at most.
        quote_length: Characters of all quotes together, at most; the last one is cut there.
        window: Characters of a page that are shown at once, marks of links included.
        results: Pages that a search shows.
    """

    web: FilePath
    questions: FilePath | None = None
    split: Literal["all", "demonstrations", "comparisons", "train", "heldout"] = "all"
    max_actions: Count = 100
    max_quotes: Count = 100
    quote_length: Count = 4000
    window: Count = 1000
    results: Count = 5

    _answer: str | None = field(default=None, init=False, repr=False)
    _commands: ClassVar[Sequence[tuple[re.Pattern[str], str]]] = [
        (re.compile(pattern), name)
        for pattern, name in (
            ("Search (.+)", "_search"),
            ("Clicked on link ([0-9]{1,9})", "_click"),
            ("Find in page: (.+)", "_find"),
            ("Quote: (.+)", "_quote"),
            ("Scrolled (down|up) ([123])", "_scroll"),
            ("Top", "_top"),
            ("Back", "_back"),
            ("End: (Answer|Nonsense|Controversial|<Nonsense, Controversial>)", "_end"),
        )
    ]

    def __post_init__(self) -> None:
        """Check the settings, and open the web.

        Raises:
            TextEnvError: A file cannot be read, or there are no questions of this split in it.
        """
        validate(self)
        self._web: Web = open_web(Path(self.web))
        source = Path(self.web if self.questions is None else self.questions)
        self._questions = _questions(source, self.questions is None, self.split, _stamp(source))
        self._start(Question("", ()))
        self._phase = "over"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a question, or take that of the options, and show it.

        Raises:
            TextEnvError: There is no question to draw, or that of the options is none.
        """
        question = None if options is None else _question_of(options)
        if question is None:
            if not self._questions:
                raise TextEnvError(
                    f"The web {self.web} has no questions, and no others are given. Name a file of records with "
                    "'question' and 'answers' as questions=..., or give the environment prompts."
                )
            question = self._questions[int(np.random.default_rng(seed).integers(len(self._questions)))]
        self._start(question)
        return self._observation(), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry a command out, or take the answer.

        Raises:
            TextEnvError: The episode is over.
        """
        if self._phase == "over":
            raise TextEnvError("The episode of this browser is over; call reset first.")
        if self._phase == "answer":
            self._answer, self._phase = action.strip(), "over"
            return "", 0.0, True, False, self._info()
        self._act(" ".join(action.split()))
        if self._phase == "browse" and self._is_full():
            self._phase = "answer"
        if self._phase == "answer" and not self._quotes:
            self._phase = "over"
        if self._phase == "answer":
            return answering_prompt(self._question.question, self._quotes), 0.0, False, False, self._info()
        return ("" if self._phase == "over" else self._observation()), 0.0, self._phase == "over", False, self._info()

    @property
    def drawn_from(self) -> tuple[Question, ...]:
        """The questions that one is drawn from."""
        return self._questions

    @property
    def view(self) -> View | None:
        """What is shown now, a page or the results of a search; None before the first."""
        return None if self._place is None else self._place.view

    @property
    def shown(self) -> tuple[int, int]:
        """Where the window begins and ends in the text of ``view``."""
        if self._place is None:
            return 0, 0
        view, start = self._place
        return start, view.window_end(start, self.window)

    @property
    def can_go_back(self) -> bool:
        """Whether something was shown before ``view``."""
        return bool(self._history)

    @property
    def quotes(self) -> tuple[Quote, ...]:
        """The quotes so far."""
        return tuple(self._quotes)

    @property
    def phase(self) -> str:
        """What the next turn is: ``"browse"`` for an action, ``"answer"``, or ``"over"`` if there is none."""
        return self._phase

    def _start(self, question: Question) -> None:
        self._question, self._answer, self._phase = question, None, "browse"
        self._quotes: list[Quote] = []
        self._past: list[str] = []
        self._place: _Place | None = None
        self._history: list[_Place] = []
        self._invalid = 0

    def _act(self, action: str) -> None:
        for pattern, name in self._commands if len(action) <= _LONGEST_ACTION else ():
            if found := pattern.fullmatch(action):
                carry_out: Callable[..., str | None] = getattr(self, name)
                told = carry_out(*found.groups())
                break
        else:
            told = None
        self._invalid += told is None
        self._past.append(one_line((told or _INVALID)[:_LONGEST_ACTION], _LONGEST_PAST))

    def _is_full(self) -> bool:
        length = sum(len(quote.extract) for quote in self._quotes)
        full = length >= self.quote_length or len(self._quotes) >= self.max_quotes
        return full or len(self._past) >= self.max_actions

    # -- the commands: each returns what past actions say of it, or None where it cannot be carried out ---------------

    def _search(self, query: str) -> str:
        self._show(_Place(results_view(query, self._web.search(query, self.results)), 0))
        return f"Search {query}"

    def _click(self, number: str) -> str | None:
        if self._place is None or int(number) >= len(self._place.view.links):
            return None
        view = page_view(self._web.page(self._place.view.links[int(number)].target))
        self._show(_Place(view, 0))
        return f"Click {view.title} {view.domain}"

    def _find(self, words: str) -> str | None:
        words = without_links(words)
        if self._place is None or (at := self._place.view.find(words, self._place.start + 1)) < 0:
            return None
        self._place = self._place._replace(start=at)
        return f"Find {words}"

    def _quote(self, words: str) -> str | None:
        if self._place is None or not self._place.view.is_page:
            return None
        view = self._place.view
        room = self.quote_length - sum(len(quote.extract) for quote in self._quotes)
        extract = view.extract(without_links(words))[:room].rstrip()
        if not extract:
            return None
        self._quotes.append(Quote(view.title, view.domain, extract))
        return "Quote"

    def _scroll(self, way: str, windows: str) -> str | None:
        if self._place is None:
            return None
        view, start = self._place
        for _ in range(int(windows)):
            if way == "up":
                start = view.window_start(start, self.window)
            elif (end := view.window_end(start, self.window)) < len(view.text):
                start = end
        if start == self._place.start:
            return None
        self._place = _Place(view, start)
        return f"Scroll {way} {windows}"

    def _top(self) -> str | None:
        if self._place is None:
            return None
        self._place = self._place._replace(start=0)
        return "Top"

    def _back(self) -> str | None:
        if not self._history:
            return None
        self._place = self._history.pop()
        return "Back"

    def _end(self, how: str) -> str:
        self._phase = "answer" if how == "Answer" else "over"
        return f"End {how}"

    def _show(self, place: _Place) -> None:
        if self._place is not None:
            self._history.append(self._place)
        self._place = place

    # -- what is told -------------------------------------------------------------------------------------------------

    def _observation(self) -> str:
        view, start = self._place or _Place(_NOTHING, 0)
        end, length = view.window_end(start, self.window), max(len(view.text), 1)
        bar = (round(100 * start / length), round(100 * end / length) if view.text else 100)
        quotes = "".join(f"From {each.title} ({each.domain})\n> {each.extract}\n" for each in self._quotes)
        past = "".join(f"{each}\n" for each in self._past)
        shown = view.shown(start, end).strip()
        return (
            f"{_BEGINS}{question_line(self._question.question)}\n♦Quotes\n{quotes}♦Past actions\n{past}♦Title\n"
            f"{view.title}\n♦Scrollbar: {bar[0]} - {bar[1]}\n♦Text\n{shown}\n"
            f"♦Actions left: {self.max_actions - len(self._past)}\n♦Next action\n"
        )

    def _info(self) -> dict[str, Any]:
        return {
            "columns": {
                "question": self._question.question,
                "answers": list(self._question.answers),
                "quotes": [quote._asdict() for quote in self._quotes],
                "answer": self._answer,
                "actions": len(self._past),
                "invalid_actions": self._invalid,
            }
        }


def answering_prompt(question: str, quotes: Sequence[Quote]) -> str:
    """Return what an answer is asked for with: the question, and its quotes as references."""
    references = "\n\n".join("\n\n".join(reference) for reference in references_of(quotes))
    return f"{question_line(question)}■{references}■"


def references_of(quotes: Sequence[Quote]) -> tuple[tuple[str, str], ...]:
    """Return quotes as the references of an answer, as in ``QuotedAnswer``."""
    return tuple(
        (f"[{number}] {quote.title} ({quote.domain})", quote.extract) for number, quote in enumerate(quotes, start=1)
    )


def quoted_answer(read: str, written: str) -> tuple[str, str]:
    """Return an answer with its quotes as people compare it and a reward model reads it.

    Args:
        read: What the answer was asked for with, as ``answering_prompt`` does.
        written: The answer.

    Returns:
        A prompt, which is the question, and a completion, the references and the answer; together they are what was
        read and written.

    Raises:
        TextEnvError: ``read`` is nothing of the kind.
    """
    question, mark, references = read.partition("■")
    if read.count("■") != 2 or not references.endswith("■"):
        raise TextEnvError(f"{short(read)} asks for no answer with quotes; expected question■references■.")
    return question + mark, references + written


def read_quoted_answer(completion: str) -> QuotedAnswer | None:
    """Return the references and the answer of which ``quoted_answer`` made a completion; None of another text."""
    references, mark, answer = completion.partition("■")
    parts = references.split("\n\n")
    sources, extracts = parts[::2], parts[1::2]
    numbered = all(source.startswith(f"[{number}] ") for number, source in enumerate(sources, start=1))
    if not mark or len(sources) != len(extracts) or not numbered:
        return None
    return QuotedAnswer(tuple(zip(sources, extracts, strict=True)), answer)


def question_line(question: str) -> str:
    """Return a question as observations show it: in one line, and escaped."""
    return one_line(question)


def question_in(observation: str) -> str | None:
    """Return the question that an observation shows, as ``question_line`` does; None of a text that is none."""
    return observation.removeprefix(_BEGINS).partition("\n")[0] if observation.startswith(_BEGINS) else None


_NOTHING = View("", "", "", (), is_page=False)


def _question_of(options: dict[str, Any]) -> Question | None:
    """Return the question that the environment's prompt is, with its column of answers; None if there is no prompt."""
    if "prompt" not in options:
        return None
    answers = options.get("answers") or ()
    if not isinstance(answers, list | tuple):
        raise TextEnvError(f"answers is {short(answers)}; expected a list of texts.")
    return Question(as_text(options["prompt"], "prompt"), tuple(as_text(each, "an answer") for each in answers))


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):  # whoever reads it says so
        return 0


@functools.lru_cache(maxsize=8)
def _questions(source: Path, is_web: bool, split: str, stamp: int) -> tuple[Question, ...]:
    """Return the questions of a file, of a split; those of one row serve all others.

    Args:
        source: The file.
        is_web: Whether it is an offline web, and not a file of records.
        split: A split, or ``"all"``.
        stamp: When the file was written.

    Raises:
        TextEnvError: The file cannot be read, or has questions and none of the split.
    """
    found = tuple(open_web(source).questions() if is_web else read_questions(source))
    kept = tuple(each for each in found if split in ("all", split_of(each)))
    if found and not kept:
        raise TextEnvError(f"{source}: none of its {len(found)} questions is in the split {split!r}; expected more.")
    return kept
