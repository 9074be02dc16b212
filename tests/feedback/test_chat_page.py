"""The conversation page in headless Chromium: answers that grow, thumbs, keys, wide and narrow, light and dark."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser import find_chromium
from tests.env.test_dialogue import ANSWERS
from tests.env.test_dialogue import make as make_dialogue
from tests.families import make_family
from textenv.feedback.chat_server import Thumbs, create_chat_app
from textenv.feedback.store import FeedbackStore
from textenv.web.server import Limits, make_server

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000)


class Slow:
    """Writes given answers, a token each time that it is let go on."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.answers, self.go_on = lm, iter(ANSWERS * 3), threading.Semaphore(1_000_000)

    def __call__(self, prompt: Any) -> Iterator[int]:
        for token in (
            *self.lm.tokenizer(next(self.answers), add_special_tokens=False)["input_ids"],
            self.lm.eos_ids[-1],
        ):
            assert self.go_on.acquire(timeout=20)
            yield token


class Site:
    def __init__(self, path: Path) -> None:
        self.lm = make_family("qwen2")
        self.write = Slow(self.lm)
        self.dialogue = make_dialogue(self.lm, self.write, room=400)
        self.store = FeedbackStore(path)
        self.url = ""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "store.sqlite")
    thumbs = Thumbs(site.store, annotator="ann", policy="bundled")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(create_chat_app(site.dialogue, thumbs, title="a model"), Limits(grace_seconds=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        site.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        yield site
        server.should_exit = True
        thread.join()
    site.store.close()


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    chromium = find_chromium()
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(15_000)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(site.url)
        yield page
        browser.close()
    assert [one for one in wrong if "status of 409" not in one] == []


def say(page: Page, text: str) -> None:
    page.wait_for_load_state("load")  # until the script is there, Enter is a line break
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def test_a_conversation_with_thumbs(site: Site, page: Page) -> None:
    say(page, "How is it?")
    expect(page.locator("#last .text")).to_have_text(ANSWERS[0])
    expect(page.get_by_label("Your message")).to_be_focused()
    page.get_by_label("Bad answer").click()
    expect(page.get_by_label("Bad answer")).to_have_attribute("aria-pressed", "true")
    page.get_by_text("Another answer").click()
    expect(page.locator("#last .text")).to_have_text(ANSWERS[1])
    page.get_by_label("Good answer").click()
    expect(page.get_by_label("Good answer")).to_be_disabled()
    ((_, ranking),) = site.store.rankings()
    assert (ranking.completions, ranking.ranks) == ((ANSWERS[1], ANSWERS[0]), (0, 1))
    page.get_by_label("Your message").fill("Why?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("<img src=x>")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#last .text")).to_have_text(ANSWERS[2])
    assert page.locator(".message .text").all_inner_texts()[2] == "Why?\n<img src=x>"
    page.get_by_text("New conversation").click()
    expect(page.locator("#messages")).to_have_text("Say something.")


def test_an_answer_is_shown_while_it_is_written(site: Site, page: Page) -> None:
    site.write.go_on = threading.Semaphore(3)
    say(page, "How is it?")
    growing = page.locator(".message.assistant .text")
    expect(growing).not_to_be_empty()
    part = growing.inner_text()
    assert ANSWERS[0].startswith(part)
    assert part != ANSWERS[0]
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    site.write.go_on.release(100)
    expect(page.locator("#last .text")).to_have_text(ANSWERS[0])


def test_a_message_that_is_refused_says_why_and_is_kept(site: Site, page: Page) -> None:
    say(page, "the film " * 200)
    expect(page.get_by_role("alert")).to_contain_text("Shorten the message, or begin anew")
    expect(page.locator(".message")).to_have_count(0)
    assert page.get_by_label("Your message").input_value().startswith("the film")
    say(page, "How is it?")
    expect(page.locator("#last .text")).to_have_text(ANSWERS[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(site: Site, page: Page, scheme: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 720})
    page.emulate_media(color_scheme=scheme)
    for number, text in enumerate(("How is it?", "thisisaverylongword" * 12, "Why?")):
        say(page, text)
        expect(page.locator(".message.assistant").nth(number).locator(".thumbs")).to_be_visible()
    page.wait_for_load_state("load")  # with the style sheet
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box, send = page.locator("#say").bounding_box(), page.get_by_role("button", name="Send").bounding_box()
    assert box is not None
    assert send is not None
    assert send["x"] >= 0 and send["x"] + send["width"] <= width  # noqa: PT018
    if folder := os.environ.get("TEXTENV_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"chat-{scheme}-{width}.png"))
