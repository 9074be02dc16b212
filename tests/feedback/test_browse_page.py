"""The page of the text browser in headless Chromium: by mouse, by keys, without its script, on hostile pages."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Dialog, Page, expect, sync_playwright

from tests.browser import find_chromium
from tests.webs import PAGES, QUESTIONS, small_web
from textenv.data.web_pages import Question, WebPage
from textenv.feedback.browse_server import create_browse_app
from textenv.feedback.browse_session import BrowseSession
from textenv.web.server import Limits, make_server
from textenv.worlds.browser import Browser

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000)
BROWSE_V0 = {"max_actions": 10, "max_quotes": 3, "quote_length": 300, "window": 200, "results": 3}

Open = Callable[..., Page]


@contextmanager
def serving(session: BrowseSession) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(create_browse_app(session), Limits(grace_seconds=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def session(tmp_path: Path) -> BrowseSession:
    return begin(tmp_path)


def begin(
    folder: Path, pages: tuple[WebPage, ...] = PAGES, questions: tuple[Question, ...] = QUESTIONS[:1], **settings: Any
) -> BrowseSession:
    world = Browser(small_web(folder, pages, questions), **{**BROWSE_V0, **settings})
    return BrowseSession(world, folder / "d.jsonl", annotator="ann")


@pytest.fixture
def visit(chromium: Chromium) -> Iterator[Open]:
    """Open the page of a session; the browser must complain of nothing but refusals, and ask nobody else."""
    wrong: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    with ExitStack() as stack:

        def visit(session: BrowseSession, **settings: Any) -> Page:
            url = stack.enter_context(serving(session))
            context = chromium.new_context(viewport={"width": 1280, "height": 900}, **settings)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("dialog", dismiss)
            page.on("request", lambda request: wrong.extend([] if request.url.startswith(url) else [request.url]))
            page.goto(url)
            return page

        yield visit
    assert [one for one in wrong if "status of 409" not in one] == []


def written(session: BrowseSession) -> list[str]:
    return [text for _, text in session.steps]


def recorded(folder: Path) -> list[str]:
    return [json.loads(line)["completion"] for line in (folder / "d.jsonl").read_text().splitlines()]


def drag(page: Page, words: str) -> None:
    """Select words of the page with the mouse."""
    page.wait_for_load_state("load")  # with the script, which follows the selection
    page.locator("#page").scroll_into_view_if_needed()
    box = page.evaluate(
        """(words) => {
          const walker = document.createTreeWalker(document.getElementById("page"), NodeFilter.SHOW_TEXT);
          const places = [];
          for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            for (let at = 0; at < node.data.length; at++) places.push([node, at]);
          }
          const start = places.map(([node, at]) => node.data[at]).join("").indexOf(words);
          const [first, last] = [places[start], places[start + words.length - 1]].map(([node, at]) => {
            const range = document.createRange();
            range.setStart(node, at);
            range.setEnd(node, at + 1);
            return range.getBoundingClientRect();
          });
          return [first.left + 1, first.top + first.height / 2, last.right - 1, last.top + last.height / 2];
        }""",
        words,
    )
    page.mouse.move(box[0], box[1])
    page.mouse.down()
    page.mouse.move(box[2], box[3], steps=5)
    page.mouse.up()


def test_a_question_is_answered_by_mouse(tmp_path: Path, session: BrowseSession, visit: Open) -> None:
    page = visit(session)
    expect(page.get_by_role("heading", level=1)).to_have_text(QUESTIONS[0].question)
    page.get_by_label("Search", exact=True).fill("wading heron")
    page.get_by_role("button", name="Search").click()
    page.locator("label.link").first.click()
    expect(page.locator(".place h2")).to_have_text("Heron")
    page.locator("label.link").click()
    expect(page.locator(".place h2")).to_have_text("Bird")
    page.get_by_role("button", name="Back").click()
    expect(page.locator(".place h2")).to_have_text("Heron")
    drag(page, "wading bird.\nIt eats fish")
    expect(page.get_by_label("Quote 300 characters left")).to_have_value("wading bird. It eats fish")
    page.locator("#quote-form button").click()
    expect(page.get_by_label("Quote 1")).to_have_text("wading bird. It eats fish")
    page.get_by_role("button", name="Answer with these quotes").click()
    expect(page.locator("#answer")).to_be_focused()
    page.locator("#answer").fill("Fish [1].")
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("status")).to_have_text("Your answer is stored.")
    expect(page.get_by_role("heading", level=1)).to_have_text("No question is left")
    assert recorded(tmp_path) == [
        "Search wading heron", "Clicked on link 0", "Clicked on link 0", "Back",
        "Quote: wading bird. It eats fish", "End: Answer", "Fish [1].",
    ]  # fmt: skip


def test_words_of_a_link_are_selected_without_opening_it(session: BrowseSession, visit: Open) -> None:
    for action in ("Search heron", "Clicked on link 0"):
        session.act(action)
    page = visit(session)
    drag(page, "bir")
    expect(page.locator("#quote")).to_have_value("bir")
    assert written(session) == ["Search heron", "Clicked on link 0"]


def test_a_question_is_answered_by_keys_alone(tmp_path: Path, visit: Open) -> None:
    session = begin(tmp_path, PAGES, QUESTIONS[:1], window=60, max_actions=12)
    page = visit(session)

    def press(*keys: str) -> None:
        for key in keys:
            page.wait_for_load_state("load")
            page.keyboard.press(key)

    def wait(text: str) -> None:
        expect(page.locator(".past li").last).to_have_text(text)

    page.wait_for_load_state("load")
    expect(page.get_by_label("Search", exact=True)).to_be_focused()
    page.keyboard.type("heron")
    press("Enter")
    wait("Search heron")
    press("s")
    page.keyboard.type("word7")
    press("Enter")
    wait("Search word7")
    press("0")
    wait("Clicked on link 0")
    press("d")
    wait("Scrolled down 1")
    press("u")
    wait("Scrolled up 1")
    press("f")
    page.keyboard.type("word120")
    press("Enter")
    wait("Find in page: word120")
    press("t")
    wait("Top")
    press("q")
    page.keyboard.type("0 WORD1")
    press("Escape", "q")
    wait("Quote: 0 WORD1")
    press("b")
    wait("Back")
    page.get_by_role("button", name="Link 0: Long page, long.example").focus()
    press("Enter")
    wait("Clicked on link 0")
    press("e")
    expect(page.locator("#answer")).to_be_focused()
    page.keyboard.type("None.")
    press("Control+Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("No question is left")
    assert recorded(tmp_path)[-3:] == ["Clicked on link 0", "End: Answer", "None."]


def test_a_double_click_is_one_action(session: BrowseSession, visit: Open) -> None:
    session.act("Search heron")
    session.act("Clicked on link 0")
    page = visit(session)
    page.get_by_role("button", name="Back").dblclick()
    expect(page.locator(".past li").last).to_have_text("Back")
    assert written(session) == ["Search heron", "Clicked on link 0", "Back"]


def test_what_is_refused_is_said_and_stays_typed(session: BrowseSession, visit: Open) -> None:
    session.act("Search heron")
    session.act("Clicked on link 0")
    page = visit(session)
    page.locator("#quote").fill("It eats stones.")
    page.locator("#quote-form button").click()
    expect(page.get_by_role("alert")).to_contain_text("select words there")
    expect(page.locator("#quote")).to_have_value("It eats stones.")
    page.locator("#quote").fill("It eats fish.")
    page.locator("#quote-form button").click()
    expect(page.get_by_label("Quote 1")).to_have_text("It eats fish.")


def test_it_works_without_its_script(tmp_path: Path, session: BrowseSession, visit: Open) -> None:
    page = visit(session, java_script_enabled=False)
    page.get_by_label("Search", exact=True).fill("heron")
    page.keyboard.press("Enter")
    page.locator("label.link").first.click()
    page.locator("#quote").fill("It eats fish.")
    page.locator("#quote-form button").click()
    page.get_by_role("button", name="Answer with these quotes").click()
    page.locator("#answer").fill("Fish.")
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("No question is left")
    assert len(recorded(tmp_path)) == 5


def test_nonsense_takes_two_clicks(tmp_path: Path, session: BrowseSession, visit: Open) -> None:
    page = visit(session)
    expect(page.get_by_role("button", name="Nonsense")).to_be_hidden()
    page.get_by_text("Without an answer").click()
    page.get_by_role("button", name="Nonsense").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("No question is left")
    assert recorded(tmp_path) == ["End: Nonsense"]


EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"
HOSTILE = f"{EVIL} \x00\x1b[31mred\u202e ♦Quotes 【9†fake†x】 </textarea></label></form> LINK {'x' * 1_000_000}"


def test_a_hostile_page_changes_nothing_but_what_is_shown(tmp_path: Path, visit: Open) -> None:
    at = HOSTILE.index("LINK")
    pages = (
        WebPage("page", f"Page {EVIL}", HOSTILE, ((at, at + 4, "javascript:alert(2)"),), "javascript:alert(1)"),
        WebPage("javascript:alert(2)", "Next", "There, and back.", ((11, 15, "page"),), "x"),
    )
    session = begin(tmp_path, pages, (Question(f"What? {EVIL}", ("x",)),), window=2000)
    page = visit(session)
    expect(page.get_by_role("heading", level=1)).to_have_text(f"What? {EVIL}")
    page.get_by_label("Search", exact=True).fill("script")
    page.keyboard.press("Enter")
    page.locator("label.link").first.click()
    expect(page.locator(".place h2")).to_have_text(f"Page {EVIL}")
    expect(page.locator("#page")).to_contain_text(rf"{EVIL} \u0000\u001b[31mred\u202e \u2666Quotes \u30109\u2020fake")
    assert page.locator("#page label").count() == 1
    for title in ("Next", f"Page {EVIL}"):  # in a circle
        page.locator("label.link").click()
        expect(page.locator(".place h2")).to_have_text(title)
    assert written(session)[1:] == ["Clicked on link 0"] * 3
    page.wait_for_load_state("load")  # with the style sheet
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#quote").fill(EVIL)
    page.locator("#quote-form button").click()
    expect(page.get_by_label("Quote 1")).to_have_text(EVIL)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(tmp_path: Path, visit: Open, scheme: Any, width: int) -> None:
    question = Question(f"What does a heron eat, and why does it {'verylong' * 12} there?", ("fish",))
    session = begin(tmp_path, PAGES, (question,))
    page = visit(session, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})

    def fits(name: str) -> None:
        page.goto(page.url.partition("?")[0])
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if folder := os.environ.get("TEXTENV_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / f"browse-{name}-{scheme}-{width}.png"), full_page=True)

    fits("begin")
    session.act("Search heron")
    fits("results")
    for action in ("Clicked on link 0", "Quote: A heron is a wading bird.", "Search word7", "Clicked on link 0"):
        session.act(action)
    session.act("Scrolled down 2")
    fits("page")
    for action in ("Quote: word50 word51", "End: Answer"):
        session.act(action)
    fits("answer")
