"""The labeling page in headless Chromium, as people use it: by keys, by mouse, two at once, on a small screen."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

from tests.browser import find_chromium
from tests.label_site import KEY, Site, add_task, add_tasks, recorded, serving
from textenv.feedback.annotators import FromReward, annotate
from textenv.feedback.browser import annotate_page, keys_of
from textenv.feedback.sign_in import owner_key
from textenv.types import TextEnvError

pytestmark = pytest.mark.slow

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = find_chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path / "store.sqlite") as site:
        yield site


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Open]:
    """``visit(name)``: the page in a browser of its own, signed in; at the end, nothing may have gone wrong in it."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def visit(name: str = "ann", url: str = site.url, **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **settings})
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", dismiss)
        page.on("request", lambda request: wrong.extend([] if request.url.startswith(url) else [request.url]))
        page.goto(url)
        page.get_by_label("Your name").fill(name)
        go(page, lambda: page.keyboard.press("Enter"))
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [one for one in wrong if "status of 409" not in one] == []  # pages that say so are what a test asks for


def texts(page: Page) -> list[str]:
    """Return what is shown at each place."""
    return page.locator(".card .text").all_inner_texts()


def go(page: Page, act: Callable[[], Any]) -> None:
    """Do what leads to another page, and wait for that."""
    with page.expect_navigation():
        act()


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def submit(page: Page) -> None:
    go(page, lambda: page.keyboard.press("Enter"))


def drag(page: Page, what: str, where: str) -> None:
    """Drag the middle of one element to the middle of another, in steps as a hand does."""
    boxes = [page.locator(selector).bounding_box() for selector in (what, where)]
    (x, y), (to_x, to_y) = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 9, y + 9)
    page.mouse.move(to_x, to_y, steps=3)
    page.mouse.up()


def chip(place: int) -> str:
    return f".chip[data-place='{place}']"


def test_what_is_chosen_by_keys_is_what_was_shown_there(site: Site, visit: Open) -> None:
    add_tasks(site.store, 16)
    page = visit()
    expected, orders = {}, set()
    rng = random.Random(1)
    for _ in range(16):
        shown = texts(page)
        orders.add(tuple(text.split()[1] for text in shown))
        place = rng.randrange(2)
        press(page, rng.choice([str(place + 1), ["ArrowLeft", "ArrowRight"][place]]))
        expected[shown[place]], expected[shown[1 - place]] = 0, 1
        submit(page)
    expect(page.locator("h1")).to_have_text("Nothing to do just now")
    assert {text: rank for one in recorded(site.store) for text, rank in one.items()} == expected
    assert orders == {("0", "1"), ("1", "0")}


@pytest.mark.parametrize("by", ["keys", "mouse"])
def test_rankings_of_two_to_nine(site: Site, visit: Open, by: str) -> None:
    for size in range(2, 10):
        add_tasks(site.store, 1, size)
    page = visit()
    expected: dict[tuple[str, ...], dict[str, int]] = {}
    rng = random.Random(2)
    for _ in range(2, 10):
        shown = texts(page)
        order = rng.sample(range(len(shown)), len(shown))
        steps = order if len(shown) > 2 else order[:1]  # of two, one says it all
        tied = len(shown) > 3  # then the second is tied with the first
        ranks = {shown[place]: at - (tied and at > 0) for at, place in enumerate(order)}
        expected[tuple(sorted(ranks))] = ranks
        if by == "keys":
            for at, place in enumerate(steps):
                press(page, *(["="] if tied and at == 1 else []), str(place + 1))
        else:
            for at, place in enumerate(steps):
                source = chip(place) if at % 2 else f".card[data-place='{place}'] .handle h2"
                page.locator(source).evaluate("node => node.scrollIntoView({block: 'center'})")
                last = page.locator("[data-drop^=before]").last.get_attribute("data-drop")
                drag(page, source, "[data-drop='with 0']" if tied and at == 1 else f"[data-drop='{last}']")
        submit(page)
    assert len(site.store.judgements()) == 8
    assert {tuple(sorted(one)): one for one in recorded(site.store)} == expected


def test_dragging_about(site: Site, visit: Open) -> None:
    add_tasks(site.store, 1, 4)
    page = visit()
    shown = texts(page)
    status = page.get_by_role("status")
    press(page, "1", "2", "3", "4")
    expect(status).to_have_text("1 › 2 › 3 › 4.")
    drag(page, chip(3), "[data-drop='before 0']")
    expect(status).to_have_text("4 › 1 › 2 › 3.")
    drag(page, chip(0), "[data-drop='with 3']")
    expect(status).to_have_text("4 › 2 › 3 = 1.")
    drag(page, chip(3), "[data-drop='with 0']")  # onto itself
    expect(status).to_have_text("4 › 2 › 3 = 1.")
    drag(page, chip(0), "[data-drop='before 3']")
    expect(status).to_have_text("4 › 2 › 3 › 1.")
    drag(page, chip(1), ".brand")  # nowhere
    expect(status).to_have_text("4 › 2 › 3 › 1.")
    page.click(chip(1))
    page.click(chip(0))
    expect(status).to_have_text("4 › 3. Left below, in no order: 1, 2.")
    drag(page, chip(2), ".pool")
    expect(status).to_have_text("4. Left below, in no order: 1, 2, 3.")
    page.click("#submit")
    page.wait_for_selector("text=Nothing to do")
    assert recorded(site.store) == [{shown[3]: 0, shown[0]: None, shown[1]: None, shown[2]: None}]


def test_the_ranking_by_the_keyboard_alone(site: Site, visit: Open) -> None:
    add_tasks(site.store, 1, 3)
    page = visit()
    status = page.get_by_role("status")
    press(page, "3", "1", "2", "Backspace", "2")
    expect(status).to_have_text("3 › 1 › 2.")
    page.locator(chip(1)).focus()
    press(page, "ArrowLeft")
    expect(status).to_have_text("3 › 1 = 2.")
    press(page, "ArrowLeft")
    expect(status).to_have_text("3 › 2 › 1.")
    expect(page.locator(chip(1))).to_be_focused()
    press(page, "Enter")  # on a chip it takes it back, and does not submit
    expect(status).to_have_text("3 › 1. Left below, in no order: 2.")
    press(page, "t")
    expect(status).to_have_text("All are equally good.")
    seen = set()
    for _ in range(40):
        press(page, "Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"text", "pick scripted", "chip", "tie", "note", "submit"} <= seen


def test_tie_both_bad_cant_tell_confidence_and_note(site: Site, visit: Open) -> None:
    add_tasks(site.store, 4)
    page = visit()
    press(page, "1", "t", "Shift+Digit5")
    submit(page)
    press(page, "2", "b", "n")
    page.keyboard.type("both bad, 1 b c u t?\nsecond line")
    press(page, "Escape")
    submit(page)
    press(page, "c", "Shift+Digit2", "Shift+Digit1")
    submit(page)
    press(page, "c", "1")  # a choice takes it back
    page.get_by_label("Note").fill("sent from the field")
    go(page, lambda: page.keyboard.press("Control+Enter"))
    found = site.store.judgements()
    assert [one.verdict for one in found] == ["ranked", "both_bad", "cant_tell", "ranked"]
    assert [one.confidence for one in found] == [5, None, 1, None]
    assert [one.note for one in found] == ["", "both bad, 1 b c u t?\nsecond line", "", "sent from the field"]
    assert list(found[0].ranks) == [0, 0]
    assert all(one.seconds is not None and 0 < one.seconds < 60 for one in found)


def test_undo_brings_back_what_was_sent(site: Site, visit: Open) -> None:
    add_tasks(site.store, 2)
    page = visit()
    shown = texts(page)
    press(page, "1", "Shift+Digit3")
    submit(page)
    assert texts(page) != shown
    go(page, lambda: page.keyboard.press("u"))
    assert texts(page) == shown
    expect(page.get_by_role("status")).to_have_text("1 is better than 2.")
    expect(page.get_by_label("3 of 5")).to_be_checked()
    assert site.store.judgements() == []
    press(page, "2")
    submit(page)
    press(page, "c")
    submit(page)
    assert recorded(site.store)[0] == {shown[1]: 0, shown[0]: 1}
    go(page, lambda: page.get_by_role("button", name="Undo").click())
    assert page.locator("#judge").count() == 1
    assert len(site.store.judgements()) == 1


def test_a_reload_in_the_middle_loses_nothing(browser: Browser, site: Site, visit: Open) -> None:
    add_tasks(site.store, 5, 4)
    page = visit()
    press(page, "1", "2")
    submit(page)
    shown = texts(page)
    press(page, "4", "=", "2", "Shift+Digit2", "n")
    page.keyboard.type("half a no")
    page.reload()
    assert texts(page) == shown
    expect(page.get_by_role("status")).to_have_text("4 = 2. Left below, in no order: 1, 3.")
    expect(page.get_by_label("2 of 5")).to_be_checked()
    expect(page.get_by_label("Note")).to_have_value("half a no")
    cookies: Any = page.context.cookies()
    again = browser.new_context(storage_state={"cookies": cookies, "origins": []}).new_page()
    again.goto(site.url)  # in another window: the same comparison, without the draft
    assert texts(again) == shown
    expect(again.locator("#done-text")).to_contain_text("1 of 5")
    press(page, "1", "3")
    submit(page)
    press(again, "1")
    with again.expect_navigation():
        again.keyboard.press("Enter")
    assert "already" in again.locator("[role=alert]").inner_text()
    assert len(site.store.judgements()) == 2
    again.context.close()


def test_two_annotators_at_once(site: Site, visit: Open) -> None:
    add_tasks(site.store, 3)
    add_tasks(site.store, 3, 3, judgements=2)
    pages = {name: visit(name) for name in ("ann", "بِن")}
    assert texts(pages["ann"]) != texts(pages["بِن"])
    expected: dict[str, list[dict[str, int]]] = {name: [] for name in pages}
    while any(page.locator("#judge").count() for page in pages.values()):
        for name, page in pages.items():
            if not page.locator("#judge").count():
                go(page, page.reload)
                continue
            shown = texts(page)
            best_first = sorted(range(len(shown)), key=lambda place: shown[place], reverse=name == "ann")
            press(page, *[str(place + 1) for place in best_first][: None if len(shown) > 2 else 1])
            expected[name].append({shown[place]: rank for rank, place in enumerate(best_first)})
            submit(page)
    assert sum(map(len, expected.values())) == 3 + 6
    for name, mine in expected.items():
        assert recorded(site.store, annotators=[site.store.annotator(name)]) == mine
    page = pages["ann"]
    page.goto(f"{site.url}state")
    expect(page.get_by_role("row").filter(has_text="ann").get_by_role("cell").first).to_have_text(
        str(len(expected["ann"]))
    )


def quality(*, completions: Sequence[str], **columns: Any) -> list[float]:
    """The figure in a text of ``add_tasks``; 3 is as good as 4, and so are 0 and 1."""
    return [{0: 1, 4: 3}.get(figure, figure) for figure in (int(text.split()[1]) for text in completions)]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_program_at_the_page_records_what_it_would_without(site: Site, visit: Open, size: int) -> None:
    add_tasks(site.store, 4, size, judgements=2)
    page = visit("somebody")
    go(page, lambda: page.get_by_role("button", name="Sign out").click())  # it signs in by itself
    url = f"{site.url}?owner={owner_key(KEY)}"
    assert annotate_page(page, url, site.store, FromReward(quality), "program", limit=1) == 1
    assert annotate_page(page, url, site.store, FromReward(quality), "program") == 3
    annotate(site.store, FromReward(quality), "its twin")
    mine, its = (
        sorted(sorted(one.items()) for one in recorded(site.store, annotators=[site.store.annotator(name)]))
        for name in ("program", "its twin")
    )
    assert len(mine) == 4
    assert mine == its
    assert {one.name: one.kind for one in site.store.annotators()}["program"] == "program"


@pytest.mark.parametrize(
    ("ranks", "verdict", "keys"),
    [
        ([None, None], "both_bad", "b"),
        ([None, None, None], "cant_tell", "c"),
        ([1, 0], "ranked", "2"),
        ([0, 0], "ranked", "t"),
        ([2, 0, 1], "ranked", "231"),
        ([1, 0, 1, None], "ranked", "21=3"),
        ([0, 0, 1], "ranked", "1=23"),
    ],
)
def test_keys_of_a_judgement(ranks: list[int | None], verdict: Any, keys: str) -> None:
    assert keys_of(ranks, verdict) == list(keys)


HOSTILE = {
    "script": "<script>document.title='run'</script><img src=x onerror=alert(1)>"
    "</div></form><h1>{{ 7*7 }}</h1>&lt;b&gt;",
    "long": "word " * 20_000 + "the end",
    "one long word": "x" * 100_000,
    "control characters": "a\x00b\x1b[31mc\x07d\re\x85f\u202egh\u2066i\u200bj\u2028k\ufeffl\U000e0041m",
    "right to left": "\u05e9\u05dc\u05d5\u05dd!\nLatin line.",
    "nothing": "",
    "white space": " \n\t ",
    "marks upon marks": "z" + "\u0336\u0489" * 200,
    "trap": "\"'><svg onload=alert(1)> javascript:alert(1) ${alert(1)} `x`",
}


def test_hostile_completions_are_text(site: Site, visit: Open) -> None:
    add_task(site.store, list(HOSTILE.values()), prompt="<script>alert('prompt')</script>\u202eabc")
    page = visit('<b>"ann"</b>')
    cards = {}
    for place in range(len(HOSTILE)):
        text = page.locator(".card .text").nth(place)
        content = text.evaluate("node => node.textContent")
        cards[content] = text
    assert HOSTILE["script"] in cards
    assert HOSTILE["trap"] in cards
    assert HOSTILE["long"] in cards
    assert HOSTILE["right to left"] in cards
    assert {"Empty", "Nothing but white space"} <= set(cards)
    told = "a\\x00b\\x1b[31mc\\x07d\\re\\x85f\\u202egh\\u2066i\\u200bj\\u2028k\\ufeffl\\U000e0041m"
    assert told in cards
    assert cards[told].locator(".hidden-character").count() == 11
    assert "Compare" in page.title()
    assert page.locator("script").count() == 1
    assert page.locator(".card svg, .card img, .card script, .prompt script").count() == 0
    assert page.locator(".who span").first.inner_text() == '<b>"ann"</b>'
    assert "\\u202eabc" in page.locator(".prompt").inner_text()
    # The Hebrew line begins at the right, the Latin one at the left of the same text.
    sides = cards[HOSTILE["right to left"]].evaluate(
        """node => { const range = document.createRange(), box = node.getBoundingClientRect(), found = [];
        for (const [from, to] of [[0, 4], [6, 11]]) {
          range.setStart(node.firstChild, from); range.setEnd(node.firstChild, to);
          const at = range.getBoundingClientRect();
          found.push((at.left + at.right) / 2 > (box.left + box.right) / 2 ? "right" : "left");
        } return found; }"""
    )
    assert sides == ["right", "left"]
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wide)
    press(page, "3", "1")
    submit(page)
    assert site.store.judgements()[0].verdict == "ranked"


def test_nothing_tells_who_wrote_what(site: Site, visit: Open) -> None:
    store = site.store
    prompt = store.add_prompt("Write a line.")
    policies = [store.add_policy("secret-sft", folder="/secret/a"), store.add_policy("secret-ppo", folder="/secret/b")]
    items = [store.add_completion(prompt, f"text {i}", policy=policies[i], details={"secret": i}) for i in range(2)]
    first = store.add_task(items, gold=[0, 1])
    store.add_task(items, repeat_of=first)
    page = visit()
    pages = []
    for _ in range(2):
        html = page.content()
        assert not re.search("secret|gold|repeat|polic", html.replace("repeat-of", ""), re.IGNORECASE)
        for token in ("#judge [name=assignment]", "#judge [name=token]", "#undo [name=judgement]"):
            html = html.replace(
                page.locator(token).get_attribute("value") or "", ""
            )  # nothing else stands for anything
        pages.append(re.sub(r"text [01]|\d of \d.*?<|value=\"\d\"| open=\"\"", "", html))
        press(page, "1")
        submit(page)
    plain = [re.sub(r"\s+", " ", html) for html in pages]
    assert plain[0] == plain[1], "a gold item and a repeated one look like any other"


@pytest.mark.parametrize("width", [320, 390])
def test_a_small_screen(site: Site, visit: Open, width: int) -> None:
    add_tasks(site.store, 1, 2)
    add_tasks(site.store, 1, 9)
    page = visit(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)
    for _ in range(2):
        assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        shown = texts(page)
        best = max(range(len(shown)), key=lambda place: shown[place])
        page.locator(".pick").nth(best).tap()
        go(page, lambda: page.locator("#submit").tap())
        assert min(recorded(site.store)[-1], key=lambda text: recorded(site.store)[-1][text] or 0) in shown
        assert recorded(site.store)[-1][shown[best]] == 0
    page.goto(f"{site.url}state")
    assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_answers_with_quotes(site: Site, visit: Open, scheme: str, width: int) -> None:
    quotes = "".join(
        f"[{number}] {'Heron ' * 5 * number}(birds.example)\n\n{'It eats fish. ' * 12}\n\n" for number in (1, 2)
    )
    answers = [f"{quotes.strip()}■{answer}" for answer in ("It eats fish [1], and frogs [2].", "verylong" * 30)]
    add_task(site.store, answers, prompt="What does a heron eat?■")
    page = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.locator(".prompt .text").inner_text() == "What does a heron eat?"
    assert page.locator(".card blockquote").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("TEXTENV_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"quoted-{scheme}-{width}.png"), full_page=True)
    press(page, "1")
    submit(page)
    assert sorted(recorded(site.store)[0]) == sorted(answers)


def test_without_scripts_the_form_still_works(site: Site, visit: Open) -> None:
    add_tasks(site.store, 1, 3)
    page = visit(java_script_enabled=False)
    shown = texts(page)
    for place, rank in enumerate("311"):
        page.get_by_label("Rank").nth(place).select_option(rank)
    page.get_by_label("4 of 5").check(force=True)
    go(page, lambda: page.get_by_role("button", name="Submit").click())
    assert recorded(site.store) == [{shown[0]: 1, shown[1]: 0, shown[2]: 0}]
    go(page, lambda: page.get_by_role("button", name="Undo").click())
    assert texts(page) == shown


CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a <b>heron</b>?"})


def add_chat(site: Site) -> None:
    """Add a ranking of three answers to a conversation."""
    prompt = site.store.add_prompt(CHAT)
    site.store.add_task([site.store.add_completion(prompt, text) for text in ("A bird.", "A fish.", "No.")])


def boxes(page: Page) -> list[str]:
    """Return what the boxes of an answer hold."""
    return [box.input_value() for box in page.locator(".boxes textarea").all()]


def test_a_better_answer_is_written_without_losing_the_ranking(site: Site, visit: Open) -> None:
    add_chat(site)
    page = visit()
    assert "What is a <b>heron</b>?" in page.locator(".prompt").inner_text()
    shown = texts(page)
    press(page, "2", "1", "w")
    page.keyboard.type("A wader, 1 2 3 u.")
    page.reload()  # in the middle: nothing is lost
    assert boxes(page) == ["A wader, 1 2 3 u."]
    press(page, "w")
    page.click("#go-on")
    page.keyboard.type("What does it eat?")
    press(page, "Tab")
    page.keyboard.type("Fish.\nAnd frogs.")
    go(page, lambda: page.keyboard.press("Control+Enter"))
    expect(page.locator("#stored")).to_have_text("Your answer is stored.")
    expect(page.locator("#said")).to_have_text("2 › 1. Left below, in no order: 3.")
    assert page.url == site.url
    assert texts(page) == shown
    assert boxes(page) == [""], "the draft has gone where it belongs"
    (written,) = site.store.demonstrations()
    assert written.texts == ("A wader, 1 2 3 u.", "What does it eat?", "Fish.\nAnd frogs.")
    press(page, "e")
    expect(page.locator("#said")).to_have_text("Press the number of the one to edit.")
    go(page, lambda: page.keyboard.press("3"))
    expect(page.locator("#own-heading")).to_contain_text("Edit completion 3")
    expect(page.locator(".boxes textarea")).to_be_focused()
    assert boxes(page) == [shown[2]]
    press(page, "Control+End")
    page.keyboard.type(" Indeed.")
    go(page, lambda: page.keyboard.press("Control+Enter"))
    edited = site.store.demonstrations()[1]
    assert edited.texts == (f"{shown[2]} Indeed.",)
    assert edited.item is not None
    assert site.store.completions()[edited.item - 1].text == shown[2]
    go(page, lambda: page.get_by_role("link", name="Change").nth(1).click())
    assert boxes(page) == [f"{shown[2]} Indeed."]
    page.keyboard.press("Control+a")
    page.keyboard.type("Changed.")
    go(page, lambda: page.get_by_role("button", name="Store this answer").click())
    go(page, page.get_by_role("button", name="Take back").first.click)
    assert [each.texts for each in site.store.demonstrations()] == [("Changed.",)]
    assert site.store.demonstrations()[0].item == edited.item
    press(page, "3")
    submit(page)
    assert recorded(site.store) == [{shown[1]: 0, shown[0]: 1, shown[2]: 2}]


def test_an_answer_that_is_refused_is_not_lost(site: Site, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise TextEnvError("The disk is full.")

    add_chat(site)
    page = visit()
    press(page, "w", "Control+Enter")  # an empty box is not sent
    assert page.url == site.url
    page.keyboard.type("A wader.")
    monkeypatch.setattr(site.store, "demonstrate", refuse)
    go(page, lambda: page.keyboard.press("Control+Enter"))
    expect(page.get_by_role("alert")).to_contain_text("The disk is full.")
    monkeypatch.undo()
    page.goto(site.url)
    assert boxes(page) == ["A wader."]
    press(page, "w")
    go(page, lambda: page.keyboard.press("Control+Enter"))
    assert [each.texts for each in site.store.demonstrations()] == [("A wader.",)]


def test_conversations_are_written_by_the_keyboard_alone(site: Site, visit: Open) -> None:
    for prompt in (CHAT, "The film", (*CHAT, {"role": "assistant", "content": "A bird."}, CHAT[1])):
        site.store.add_demonstration_task(site.store.add_prompt(prompt))
    page = visit()
    expect(page.locator("h1")).to_have_text("Write an answer")
    expect(page.locator(".boxes textarea")).to_be_focused()
    page.keyboard.type("A wader, u c 1.")
    press(page, "Tab")
    expect(page.locator("#go-on")).to_be_focused()
    press(page, "Enter")
    page.keyboard.type("Where?")
    press(page, "Tab")
    page.keyboard.type("By water.")
    page.reload()
    assert boxes(page) == ["A wader, u c 1.", "Where?", "By water."]
    go(page, lambda: page.keyboard.press("Control+Enter"))
    page.keyboard.type("is good")
    expect(page.locator(".joint")).to_have_text("The filmis good")
    press(page, "Control+a")
    page.keyboard.type(" is good.")
    expect(page.locator(".joint")).to_have_text("The film is good.")
    go(page, lambda: page.keyboard.press("Control+Enter"))
    press(page, "Escape")
    go(page, lambda: page.keyboard.press("u"))
    assert boxes(page) == [" is good."]
    go(page, lambda: page.get_by_role("button", name="Submit").click())
    assert page.locator(".turn").count() == 4
    press(page, "Escape")
    go(page, lambda: page.keyboard.press("c"))
    expect(page.locator("h1")).to_have_text("Nothing to do just now")
    assert [each.texts for each in site.store.demonstrations()] == [
        ("A wader, u c 1.", "Where?", "By water."),
        (" is good.",),
    ]
    assert [each.verdict for each in site.store.judgements()] == ["written", "written", "cant_tell"]
    assert all(each.seconds is not None and 0 < each.seconds < 60 for each in site.store.demonstrations())


def test_answers_are_written_without_scripts(site: Site, visit: Open) -> None:
    add_chat(site)
    site.store.add_demonstration_task(site.store.add_prompt(CHAT))
    page = visit(java_script_enabled=False)
    go(page, lambda: page.get_by_role("link", name="Edit completion 2").click())
    page.locator(".boxes textarea").first.fill("Edited.")
    go(page, lambda: page.get_by_role("button", name="Store this answer").click())
    page.get_by_label("Rank").first.select_option("1")
    go(page, lambda: page.get_by_role("button", name="Submit").click())
    for place, text in enumerate(("A wader.", "Where?", "By water.")):
        page.locator(".boxes textarea").nth(place).fill(text)
    go(page, lambda: page.get_by_role("button", name="Submit").click())
    assert [each.texts for each in site.store.demonstrations()] == [("Edited.",), ("A wader.", "Where?", "By water.")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_writing_on_a_small_screen_and_its_contrast(site: Site, visit: Open, scheme: str) -> None:
    add_chat(site)
    for prompt in (CHAT, "The " + "film" * 60):
        site.store.add_demonstration_task(site.store.add_prompt(prompt))
    page = visit(viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True, color_scheme=scheme)
    page.locator("#own summary").tap()
    for place in range(3):
        page.locator(".boxes textarea").first.fill("word " * 50)
        if place < 2:
            page.locator("#go-on").tap()
        page.wait_for_timeout(200)  # colors change over a moment
        assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("[...document.querySelectorAll('textarea')].every(box => box.labels.length)")
        go(page, page.locator("#demonstrate button.primary").tap)
        if place == 0:
            page.locator(".pick").first.tap()
            go(page, page.locator("#submit").tap)
    assert [len(each.texts) for each in site.store.demonstrations()] == [1, 1, 1]


def test_clips_are_shown(site: Site, visit: Open, tmp_path: Path) -> None:
    clips = []
    for width in (40, 60):
        (folder := tmp_path / f"clip-{width}").mkdir()
        frames = [Image.new("RGB", (width, 30), (shade, 90, 90)) for shade in (0, 120, 240)]
        frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
        clips.append(site.store.add_clip(str(folder), task="Pendulum-v1"))
    site.store.add_task(clips, kind="clip")
    page = visit()
    pictures = page.locator("img.clip")
    assert re.fullmatch(r"/media/\d+-\d-[0-9a-f]{32}", pictures.first.get_attribute("src") or "")
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    widths = pictures.evaluate_all("images => images.map(image => image.naturalWidth)")
    assert sorted(widths) == [40, 60]
    press(page, "r", str(widths.index(60) + 1))
    submit(page)
    (judgement,) = site.store.judgements()
    assert list(judgement.ranks) == [1, 0]


def test_an_open_page_keeps_its_lease_and_says_when_it_lost_it(tmp_path: Path, visit: Open) -> None:
    with serving(tmp_path / "other.sqlite", lease_seconds=2.0) as site:
        add_tasks(site.store, 1)
        page = visit("ann", site.url)
        other = site.store.annotator("ben")
        for _ in range(6):
            press(page, "1")
            page.wait_for_timeout(500)
            assert site.store.lease(other) is None
        page.wait_for_timeout(4500)  # nobody is there
        taken = site.store.lease(other)
        assert taken
        site.store.judge(taken.id, [0, 1])
        press(page, "2")
        expect(page.locator("#passed-on")).to_be_visible()
        expect(page.locator("#done-text")).to_contain_text("0")
        page.close()  # before the server, which it would miss


def test_an_open_page_says_when_the_server_has_gone(tmp_path: Path, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    with serving(tmp_path / "other.sqlite", lease_seconds=1.5) as site:
        add_tasks(site.store, 1)
        page.goto(site.url)
        page.get_by_label("Your name").fill("ann")
        go(page, lambda: page.keyboard.press("Enter"))
        expect(page.locator("#away")).to_be_hidden()
        site.store.sign_out(site.store.annotator("ann"))
        expect(page.locator("#away")).to_contain_text("no longer signed in")
    expect(page.locator("#away")).to_contain_text("The server does not answer.")
    expect(page.locator("#away")).to_have_attribute("role", "alert")
    context.close()


def test_labels_language_and_contrast(site: Site, visit: Open) -> None:
    add_tasks(site.store, 1, 3, judgements=2)
    for scheme in ("light", "dark"):
        page = visit(scheme, color_scheme=scheme)
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator(".card .text[dir=auto][translate=no]").count() == 3
        unnamed = page.evaluate(
            """[...document.querySelectorAll("input:not([type=hidden]), textarea, select, button, img, video")]
            .filter(node => !node.labels?.length && !node.ariaLabel && !node.textContent.trim())
            .filter(node => !node.hasAttribute("alt")).length"""
        )
        assert unnamed == 0
        press(page, "1")
        page.wait_for_timeout(200)  # colors change over a moment
        low = page.evaluate(CONTRAST)
        assert low == []
        page.close()


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const rgb = parse(getComputedStyle(node).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) return rgb;
    }
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode());) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest(":disabled, kbd")) continue;
    const [one, two] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (two + 0.05);
    if (ratio < 4.5) low.push(`${text.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""
