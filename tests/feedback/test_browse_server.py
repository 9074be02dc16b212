"""The page of the text browser: its forms, what it refuses, and pages that are hostile to it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.webs import PAGES, small_web
from textenv.data.web_pages import Question, WebPage
from textenv.feedback.browse_server import create_browse_app
from textenv.feedback.browse_session import BrowseSession
from textenv.worlds.browser import Browser

OURS = "http://127.0.0.1:8903"


class Site:
    """The page, and the turn that it last showed."""

    def __init__(self, folder: Path, *web: Any, **settings: Any) -> None:
        self.out = folder / "d.jsonl"
        world = Browser(small_web(folder, *web), **settings)
        self.session = BrowseSession(world, self.out, annotator="ann")
        self.client = TestClient(create_browse_app(self.session), base_url=OURS)
        self.text = self.client.get("/").text

    @property
    def turn(self) -> str:
        (turn,) = set(re.findall('name="turn" value="(.*?)"', self.text))
        return str(turn)

    def post(self, path: str, status: int = 200, **form: str) -> str:
        response = self.client.post(path, data={"turn": self.turn, **form})
        assert response.status_code == status, response.text
        self.text = response.text
        return self.text

    def act(self, command: str, text: str = "", status: int = 200) -> str:
        return self.post("/act", status, command=command, text=text)

    def alert(self) -> str:
        return html.unescape(" ".join(re.findall('role="alert">(.*?)</', self.text)))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, max_actions=8)


def test_a_question_is_answered_from_start_to_end(site: Site) -> None:
    asked = site.session.question
    assert asked is not None
    assert html.escape(asked.question) in site.text
    assert "0 of 3 recorded" in site.text
    assert "Begin with a search." in site.text
    assert 'value="Clicked on link 2"' in site.act("Search", "heron")
    page = site.act("Clicked on link 0")
    assert 'aria-label="Link 0: bird"' in page
    assert "Actions <small>6 left</small>" in page
    page = site.act("Quote:", "it EATS fish")
    assert 'aria-label="Quote 1">It eats fish</div>' in page
    assert "[1] Heron (birds.example)</h3>" in page
    assert "References" in site.act("End: Answer")
    page = site.act("", "Fish,\r\n that is [1].")
    assert "Your answer is stored." in page
    assert "1 of 3 recorded" in page
    assert [json.loads(line)["completion"] for line in site.out.read_text().splitlines()] == [
        "Search heron", "Clicked on link 0", "Quote: it EATS fish", "End: Answer", "Fish, that is [1].",
    ]  # fmt: skip
    for _ in range(2):
        site.post("/skip")
        if site.session.question is None:
            break
    assert "No question is left" in site.text
    assert "1 of 3 recorded, 2 skipped" in site.text


def test_what_cannot_be_done_is_refused_and_what_was_typed_stays(site: Site) -> None:
    site.act("Search", "heron")
    assert 'id="quote"' not in site.text, "results are not quoted"
    site.act("Clicked on link 0")
    page = site.act("Quote:", "a <b>stork", 409)
    assert "It is not on this page, or longer than is left; select words there." in site.alert()
    assert "a &lt;b&gt;stork</textarea>" in page
    assert "Actions <small>6 left</small>" in page
    site.act("Find in page:", 'a "stork"', 409)
    assert 'value="a &#34;stork&#34;"' in site.text
    assert "expected 20,000 at most" in (site.act("Quote:", "x" * 20_001, 409) and site.alert())
    site.act("Quote:", "fish")
    assert "disabled>Back" not in site.text
    site.act("Back")
    site.act("Back", status=409)
    site.act("End: Answer")
    site.act("", "  ", 409)
    assert "Nothing was written" in site.alert()
    assert not site.out.exists()


def test_buttons_that_would_be_invalid_are_disabled(tmp_path: Path) -> None:
    site = Site(tmp_path, window=200)
    site.act("Search", "word7")

    def enabled() -> set[str]:
        buttons = re.findall('<button name="command" value="(.*?)"(.*?)>', site.text)
        return {name for name, rest in buttons if not rest.endswith("disabled")}

    ends = {"End: Nonsense", "End: Controversial"}
    assert enabled() == ends
    site.act("Clicked on link 0")
    down, up = ({f"Scrolled {way} {number}" for number in (1, 2, 3)} for way in ("down", "up"))
    assert enabled() == {"Back", *down, *ends}
    assert f"Shown are 0 to {round(100 * 200 / len(PAGES[3].text))} % of the page" in site.text, "a window"
    site.act("Scrolled down 3")
    assert enabled() == {"Back", "Top", *down, *up, *ends}
    site.act("Find in page:", "word299")
    assert enabled() == {"Back", "Top", *up, *ends}
    site.act("Quote:", "word299")
    assert enabled() == {"Back", "Top", *up, *ends, "End: Answer"}
    for name in enabled() - ends - {"End: Answer"}:
        site.post("/restart")
        for command, text in (("Search", "word7"), ("Clicked on link 0", ""), ("Find in page:", "word299")):
            site.act(command, text)
        site.act(name)


def test_browsing_that_ends_without_a_quote(site: Site) -> None:
    for _ in range(8):
        site.act("Search", "heron")
    assert "No answer without a quote" in site.text
    asked = site.session.question
    assert "Begin with a search." in site.post("/restart")
    assert site.session.question is asked
    assert not site.out.exists()


def test_a_page_that_is_out_of_date_does_nothing(site: Site) -> None:
    old = site.turn
    site.act("Search", "heron")
    for path, form in (("/act", {"command": "Search", "text": "bird"}), ("/skip", {}), ("/restart", {})):
        asked = site.session.question
        page = site.client.post(path, data={"turn": old, **form})
        assert page.url.query == b"late=1"
        assert "out of date, and nothing was done" in page.text
        assert [written for _, written in site.session.steps] == ["Search heron"]
        assert site.session.question is asked


@pytest.mark.parametrize(
    ("path", "form", "refusal"),
    [
        ("/act", {"command": "Top"}, (422, "fields named &#39;turn&#39;")),
        ("/act", {"turn": ["TURN", "TURN"]}, (422, "fields named &#39;turn&#39;")),
        ("/act", {"turn": "TURN", "command": ["Top", "Top"]}, (422, "fields named &#39;command&#39;")),
        ("/act", {"turn": "TURN", "text": "x" * 1_000_001}, (413, "larger than")),
        ("/none", {"a": "b"}, (404, "Not Found")),
    ],
    ids=["no turn", "two turns", "two commands", "large", "path"],
)
def test_what_is_no_form_of_ours_is_refused(
    path: str, form: dict[str, Any], refusal: tuple[int, str], site: Site
) -> None:
    status, told = refusal
    data = {name: site.turn if value == "TURN" else value for name, value in form.items()}
    response = site.client.post(path, data=data)
    assert (response.status_code, told in response.text) == (status, True)
    assert site.client.post(path, data=data, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert site.client.get("/", headers={"Host": "elsewhere.example"}).status_code == 403
    assert site.session.steps == []


EVIL = "<script>alert(1)</script> <img src=x onerror=alert(1)>"
HOSTILE = f'{EVIL} \x1b[31m \u202e ♦Quotes\n</textarea>" autofocus {{{{ 7*7 }}}} LINK'


def test_a_hostile_page_is_shown_escaped(tmp_path: Path) -> None:
    at = HOSTILE.index("LINK")
    pages = (
        WebPage("page", f"Page {HOSTILE}", HOSTILE, ((at, at + 4, "page"),), 'x" onclick="alert(1)'),
        WebPage("other", "Other", f"to {HOSTILE}", ((0, 2, "page"),), "y.example"),
    )
    site = Site(tmp_path, pages, (Question(f"What? {HOSTILE}", ("x",)),))
    seen = [site.text, site.act("Search", f"script {HOSTILE}"), site.act("Clicked on link 0")]
    seen += [site.act("Quote:", "alert(1)"), site.act("Search", "to"), site.act("Clicked on link 0")]
    seen += [site.act("Clicked on link 0"), site.act("Quote:", f"{EVIL}?", 409), site.act("End: Answer")]
    for text in seen:
        assert set(re.findall("<script[^>]*>", text)) == {
            '<script src="/web/browse.js" defer>', '<script src="/web/page.js" defer>'
        }  # fmt: skip
        assert "<img src=x" not in text
        assert not re.search(r"<[^>]*\son\w+=", re.sub('"[^"]*"', '""', text))
        assert not re.search("[\x00-\x08\x0e-\x1f\u202e]", text)
        assert not re.search('(?:href|src|action)="(?!/|#main)', text)
        assert "{{ 7*7 }}" in text
    assert r"\u202e" in seen[2]
    assert r"\u2666Quotes" in seen[2]
    policy = site.client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
