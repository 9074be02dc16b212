"""A person in the text browser: what is refused, what is recorded, and what is asked again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.complaints import one_line
from tests.webs import QUESTIONS, small_web
from textenv.data import records
from textenv.data.web_pages import Question, WebPage
from textenv.feedback.browse_session import BrowseSession
from textenv.training.browsing import demonstrate
from textenv.worlds.browser import Browser

ANSWERED = ("Search heron", "Clicked on link 0", "Quote: It eats fish.", "End: Answer", "Fish [1].")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "d.jsonl"


def begin(
    out: Path, *, questions: tuple[Question, ...] = QUESTIONS[:2], wanted: int | None = None, **settings: Any
) -> BrowseSession:
    world = Browser(small_web(out.parent, questions=questions), **settings)
    return BrowseSession(world, out, annotator="ann", questions=wanted)


def write(session: BrowseSession, *actions: str) -> None:
    for action in actions:
        session.act(action)


def rows(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def test_what_is_recorded_is_what_a_policy_reads_and_writes(out: Path) -> None:
    session = begin(out, questions=QUESTIONS[:1])
    write(session, *ANSWERED)
    policy = Browser(small_web(out.parent, questions=QUESTIONS[:1]))
    read = policy.reset(seed=0)[0]
    for row, written in zip(rows(out), ANSWERED, strict=True):
        assert row == {"prompt": read, "completion": written, "annotator": "ann"}
        read = policy.step(row["completion"])[0]
    assert session.question is None
    assert (session.recorded, session.wanted) == (1, 1)


def test_it_is_in_the_form_of_the_script(out: Path) -> None:
    scripted = demonstrate(Browser(small_web(out.parent, questions=QUESTIONS[:1])), seed=0)
    session = begin(out, questions=QUESTIONS[:1])
    write(session, *(written for _, written in scripted.steps))
    assert [{**row, "annotator": "ann"} for row in scripted.records()] == rows(out) == scripted.records("ann")


@pytest.mark.parametrize(
    ("before", "action", "told"),
    [
        ((), "Search", "Write what to search for"),
        ((), "Search  \n ", "Write what to search for"),
        ((), " \n", "Nothing was written"),
        ((), "Quote: fish", "select words there"),
        ((), "Scrolled down 1", "'Scrolled down 1' cannot be done here."),
        ((), "Back", "cannot be done here"),
        ((), "no command", "cannot be done here"),
        (("Search heron",), "Clicked on link 7", "no such link"),
        (("Search heron",), "Quote: heron", "not on this page"),
        (("Search heron", "Clicked on link 0"), "Quote: a stork", "not on this page"),
        (("Search heron", "Clicked on link 0"), "Find in page: stork", "not on this page"),
        (ANSWERED[:-1], " ", "Nothing was written"),
    ],
)
def test_an_invalid_action_is_refused_and_is_none(before: tuple[str, ...], action: str, told: str, out: Path) -> None:
    session = begin(out)
    write(session, *before)
    steps, left, view, phase = session.steps, session.actions_left, session.world.view, session.world.phase
    with one_line(told):
        session.act(action)
    assert (session.steps, session.actions_left, session.world.phase) == (steps, left, phase)
    assert (session.world.view and session.world.view.title) == (view and view.title)
    assert session.columns["invalid_actions"] == 0
    assert not out.exists()


def test_what_cannot_be_recorded_is_not_lost(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(out)
    write(session, *ANSWERED[:-1])

    def full(path: Path, data: bytes) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_atomically", full)
        with one_line("d.jsonl: cannot be written (No space left on device)"):
            session.act(ANSWERED[-1])
    assert (session.world.phase, session.recorded, len(session.steps)) == ("answer", 0, 4)
    session.act(ANSWERED[-1])
    assert (session.recorded, len(rows(out))) == (1, 5)


def test_a_question_is_put_aside_begun_anew_or_skipped(out: Path) -> None:
    session = begin(out, questions=QUESTIONS)
    first = session.question
    write(session, "Search heron", "End: Nonsense")
    assert [row["completion"] for row in rows(out)] == ["Search heron", "End: Nonsense"]
    second = session.question
    session.act("Search heron")
    session.restart()
    assert (session.question, session.steps, session.world.view) == (second, [], None)
    session.skip()
    assert session.question not in (first, second, None)
    session.skip()
    left: Question | None = session.question
    assert (left, session.recorded, session.skipped) == (None, 1, 2)
    with one_line("Browsing has ended"):
        session.act("Search heron")
    session.skip()
    session.restart()
    assert session.skipped == 2
    assert len(rows(out)) == 2


@pytest.mark.parametrize("actions", [("Search heron", "End: Answer"), ("Search heron", "Search fish", "Search bird")])
def test_an_episode_without_a_quote_is_not_recorded(actions: tuple[str, ...], out: Path) -> None:
    session = begin(out, max_actions=3)
    asked = session.question
    write(session, *actions)
    assert (session.world.phase, session.question) == ("over", asked)
    with one_line("begin the question anew, or skip it"):
        session.act("Top")
    session.restart()
    assert session.world.phase == "browse"
    assert not out.exists()


def test_it_goes_on_behind_what_is_recorded(out: Path) -> None:
    asked = [Question(f"Is {number} ♦ a  heron?", ("no",)) for number in range(6)]
    session = begin(out, questions=tuple(asked), wanted=4)
    assert session.wanted == 4
    order = [session.question]
    write(session, "End: Nonsense")
    order.append(session.question)
    session.skip()
    order.append(session.question)
    write(session, "End: Controversial")
    with out.open("a") as file:
        file.write('{"prompt": "♦Question\\nother\\n", "completion": "x", "annotator": "bob"}\n{"messages": []}\n')
    again = begin(out, questions=tuple(asked), wanted=4)
    assert (again.recorded, again.question) == (2, order[1])
    write(again, "End: Nonsense", "End: Nonsense")
    assert again.question is None
    with one_line("d.jsonl: holds what ann answered to all 4 questions"):
        begin(out, questions=tuple(asked), wanted=4)
    assert begin(out, questions=tuple(asked)).recorded == 4
    other = BrowseSession(Browser(small_web(out.parent, questions=tuple(asked))), out, annotator=" bob ", questions=4)
    assert (other.annotator, other.recorded, other.question) == ("bob", 0, order[0])


def test_nobody_answers_a_question_twice_in_two_commands(out: Path) -> None:
    first, second = begin(out), begin(out)
    asked = first.question
    assert second.question == asked
    write(first, *ANSWERED)
    write(second, *ANSWERED[:-1])
    with one_line("holds an answer of ann to this question by now"):
        second.act(ANSWERED[-1])
    assert len(rows(out)) == len(ANSWERED)
    second.skip()
    assert second.question not in {None, asked}
    write(second, "End: Nonsense")
    with one_line("by now"):
        first.act("End: Nonsense")


def test_what_another_command_has_recorded_is_not_asked(out: Path) -> None:
    first, second = begin(out), begin(out)
    write(first, "End: Nonsense", "End: Nonsense")
    second.skip()
    assert (first.question, second.question) == (None, None)
    assert len(rows(out)) == 2


def test_questions_that_read_alike_are_asked_once(out: Path) -> None:
    session = begin(out, questions=(Question("Why?", ("a",)), Question(" Why? ", ("b",))))
    assert session.wanted == 1


def test_what_it_cannot_begin_with(out: Path) -> None:
    with one_line("has no questions; put them into it"):
        begin(out, questions=())
    world = Browser(small_web(out.parent))
    with one_line("expected the name of who answers"):
        BrowseSession(world, out, annotator=" ")
    with one_line("its kind is '.csv'"):
        BrowseSession(world, out.with_suffix(".csv"), annotator="ann")
    out.write_text("{")
    with one_line("d.jsonl, line 1"):
        begin(out)
    out.write_text("")
    assert begin(out).recorded == 0


def test_a_long_quote_is_written_as_its_ends(out: Path) -> None:
    words = " ".join(f"one two three number{number}" for number in range(40))
    page = WebPage("page", "Page", f"{words} and the end.", (), "x")
    world = Browser(small_web(out.parent, (page,), QUESTIONS[:1]), quote_length=2000)
    session = BrowseSession(world, out, annotator="ann")
    write(session, "Search page", "Clicked on link 0", "Quote: number7\none two three number8")
    assert session.steps[-1][1] == "Quote: number7 one two three number8"
    long = words[: words.index(" one two three number30")]
    write(session, f"Quote: {long}")
    assert session.steps[-1][1] == "Quote: one two three━two three number29"
    assert world.quotes[-1].extract == long
    later = long[long.index("one two three number9") :]
    write(session, f"Quote: {later}")
    assert session.steps[-1][1] == "Quote: one two three number9 one━number28 one two three number29"
    assert world.quotes[-1].extract == later
    with one_line("not on this page"):
        session.act(f"Quote: {long}!")
