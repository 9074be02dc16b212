"""Demonstrations that a script writes."""

from __future__ import annotations

from pathlib import Path

from tests.webs import small_web
from textenv.data.web_pages import Question, WebPage
from textenv.rewards import ExactMatch, Quoted
from textenv.training.browsing import demonstrate
from textenv.worlds.browser import Browser


def browser(folder: Path, question: Question, **settings: int) -> Browser:
    return Browser(small_web(folder, questions=(question,)), **settings)  # type: ignore[arg-type]


def test_a_question_is_answered_with_a_quote(tmp_path: Path) -> None:
    world = browser(tmp_path, Question("What do herons eat?", ("meat", "fish")), window=60)
    found = demonstrate(world, seed=0)
    assert [written for _, written in found.steps] == [
        "Search herons eat", "Clicked on link 0", "Quote: It eats fish.", "End: Answer", "fish",
    ]  # fmt: skip
    assert found.answered
    columns = {name: [value] for name, value in found.columns.items()}
    for reward in (ExactMatch(said="answer"), Quoted(), Quoted("answers")):
        assert reward(prompts=[""], completions=[""], completion_ids=[[]], **columns) == [1.0]
    assert found.records()[-1] == {
        "prompt": "What do herons eat?■[1] Heron (birds.example)\n\nIt eats fish.■",
        "completion": "fish",
    }
    assert demonstrate(world, seed=0) == found


def test_what_it_writes_leads_where_it_says(tmp_path: Path) -> None:
    question = Question("What lives in water: ponds?", ("a fish",))
    found = demonstrate(browser(tmp_path, question, results=2), seed=0)
    world = browser(tmp_path, question, results=2)
    read = world.reset(seed=0)[0]
    for expected, written in found.steps:
        assert read == expected
        read = world.step(written)[0]
    assert found.answered


def test_what_is_nowhere_is_not_answered(tmp_path: Path) -> None:
    for settings in ({}, {"max_actions": 2}):
        found = demonstrate(browser(tmp_path, Question("What is a heron?", ("a stone",)), **settings), seed=0)
        assert not found.answered
        assert found.columns["answer"] is None
    found = demonstrate(browser(tmp_path, Question("Nothing of that?", ("x",))), seed=0)
    assert [written for _, written in found.steps] == ["Search Nothing that", "Search Nothing of that"]


def test_it_searches_for_what_is_asked_about_and_then_for_all_of_it(tmp_path: Path) -> None:
    for question, queries in (
        ("What is a Heron a kind of?", ["Heron", "What is a Heron a kind of"]),
        ("Which word means: a wading bird?", ["a wading bird", "Which word means: a wading bird"]),
        ("What is the?", ["What is the"]),
    ):
        found = demonstrate(browser(tmp_path, Question(question, ("nowhere",)), results=1), seed=0)
        searches = [written for _, written in found.steps if written.startswith("Search")]
        assert searches == [f"Search {query}" for query in queries]


def test_a_long_line_is_quoted_around_the_answer_in_whole_words(tmp_path: Path) -> None:
    found = demonstrate(browser(tmp_path, Question("long page?", ("word50",))), seed=0)
    assert [quote["extract"] for quote in found.columns["quotes"]] == [
        "word46 word47 word48 word49 word50 word51 word52 word53 word54"
    ]


def test_it_quotes_what_is_shown_and_scrolls_there_before(tmp_path: Path) -> None:
    world = browser(tmp_path, Question("long page?", ("word50",)), window=200)
    found = demonstrate(world, seed=0)
    assert [written for _, written in found.steps if written.startswith("Scroll")] == ["Scrolled down 1"]
    read = next(read for read, written in found.steps if written.startswith("Quote"))
    assert found.columns["quotes"][0]["extract"] in read
    assert found.answered


def test_an_answer_that_no_window_shows_whole_is_not_quoted(tmp_path: Path) -> None:
    pages = (WebPage("long", "Long page", "one two three four five", (), "long.example"),)
    web = small_web(tmp_path, pages, (Question("long page?", ("two three",)),))
    found = demonstrate(Browser(web, window=8), seed=0)
    assert not found.answered
    assert [written for _, written in found.steps][:4] == [
        "Search long page",
        "Clicked on link 0",
        "Scrolled down 1",
        "Back",
    ]
