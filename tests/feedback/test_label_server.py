"""The labeling page's server: what it refuses, and that it loses nothing. The page itself is in test_label_page.py."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.label_site import KEY, add_task, add_tasks, recorded
from textenv.commands.cli import main
from textenv.feedback.label_server import create_app, serve_label_page
from textenv.feedback.project_state import LiveAgreement, project_state
from textenv.feedback.sign_in import made_password, only_here, owner_key, page_key
from textenv.feedback.store import FeedbackStore
from textenv.types import TextEnvError

OURS = "http://127.0.0.1"
FOREIGN = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "[::1", "0.0.0.0"]


class Clock:
    """Tells a time that only the test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "store.sqlite", clock=clock) as store:
        yield store


class Annotator:
    """A browser as far as the server can tell: keeps its cookie, and sends forms with what they hold."""

    def __init__(self, client: Any, name: str = "ann") -> None:
        self.client = client
        self.html = client.get("/").text
        if name:
            self.post("/sign-in", name=name)

    def hidden(self, name: str) -> str:
        found = re.search(rf'name="{name}" value="(.*?)"', self.html)
        assert found, self.html
        return found[1]

    def form(self, **fields: Any) -> dict[str, Any]:
        form = {"token": self.hidden("token"), "assignment": self.hidden("assignment"), "rank": ["1", "2"]}
        return {**form, "verdict": "ranked", **fields}

    def post(self, path: str, **fields: Any) -> Any:
        """Send a form with this page's token, and look at the page that it leads to."""
        answer = self.client.post(path, data={"token": self.hidden("token"), **fields}, follow_redirects=True)
        self.html = answer.text
        return answer

    def judge(self, **fields: Any) -> Any:
        return self.post("/judge", **self.form(**fields))

    def undo(self) -> Any:
        return self.post("/undo", judgement=self.hidden("judgement"))


def client_of(store: FeedbackStore, **settings: Any) -> TestClient:
    return TestClient(create_app(store, key=KEY, **settings), base_url=OURS)


def visit(store: FeedbackStore, name: str = "ann", **settings: Any) -> Annotator:
    return Annotator(client_of(store, **settings), name)


# Other sites


@pytest.mark.parametrize("path", ["/", "/state", "/web/page.js", "/nowhere"])
@pytest.mark.parametrize("host", FOREIGN)
def test_it_does_not_answer_by_a_foreign_name(store: FeedbackStore, host: str, path: str) -> None:
    answer = client_of(store).get(path, headers={"host": host})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8901", "localhost:1", "LOCALHOST", "[::1]:80", "label.example"]
)
def test_it_answers_by_its_own(store: FeedbackStore, host: str) -> None:
    answer = client_of(store, hosts=["Label.Example"]).get("/", headers={"host": host})
    assert answer.status_code == 200


def test_two_names_are_refused(store: FeedbackStore) -> None:
    names = [("host", "127.0.0.1"), ("host", "evil.example")]
    assert client_of(store).get("/", headers=names).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8902", "http://localhost", "", "127.0.0.1"]
)
def test_forms_of_other_sites_are_refused(store: FeedbackStore, origin: str) -> None:
    add_tasks(store, 1)
    ann = visit(store)
    answer = ann.client.post("/judge", data=ann.form(), headers={"origin": origin})
    assert answer.status_code == 403
    assert store.judgements() == []
    assert ann.client.post("/judge", data=ann.form(), headers={"origin": OURS}).is_success
    assert len(store.judgements()) == 1


@pytest.mark.parametrize("path", ["/", "/state", "/web/page.js", "/web/nothing", "/nowhere", "/judge", "/media/1-1-x"])
def test_every_answer_says_how_little_a_browser_may_do(store: FeedbackStore, path: str) -> None:
    answer = client_of(store).get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert not {"access-control-allow-origin", "etag", "last-modified"} & set(answer.headers)


def test_so_does_one_that_fails(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    add_tasks(store, 1)
    ann = Annotator(TestClient(create_app(store, key=KEY), base_url=OURS, raise_server_exceptions=False))
    monkeypatch.setattr(store, "judge", fail)
    answer = ann.judge()
    assert answer.status_code == 500
    assert answer.headers["x-frame-options"] == "DENY"
    assert "Nothing was stored" in answer.text
    assert "disk" not in answer.text


def test_the_cookie_is_the_pages_alone(store: FeedbackStore) -> None:
    cookie = client_of(store).get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    other = TestClient(create_app(store, key=bytes(32)), base_url=OURS).get("/").headers["set-cookie"]
    assert cookie.split("=")[0] != other.split("=")[0], "two pages on one host would sign each other out"


# Forms


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out", "/judge", "/undo", "/alive", "/demonstrate", "/take-back"])
def test_no_form_is_read_without_its_token(store: FeedbackStore, path: str) -> None:
    add_tasks(store, 2)
    ann, ben = visit(store), visit(store, "ben")
    form = {**ann.form(), "name": "eve"}
    for token in (None, "", "x" * 32, ben.hidden("token"), "é"):
        fields = {name: value for name, value in form.items() if name != "token"}
        answer = ann.client.post(path, data=fields if token is None else {**fields, "token": token})
        assert answer.status_code == (422 if token is None else 403)
    stranger = client_of(store)
    assert stranger.post(path, data=form).status_code == 403
    assert store.judgements() == []
    assert store.demonstrations() == []
    assert {one.name for one in store.annotators()} == {"ann", "ben"}


def test_another_name_means_another_token(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    ann = visit(store)
    left_open = ann.form()
    ann.post("/sign-out", assignment=ann.hidden("assignment"))
    ann.post("/sign-in", name="ben")
    assert ann.client.post("/judge", data=left_open).status_code == 403
    mixed = {**left_open, "token": ann.hidden("token")}
    assert ann.client.post("/judge", data=mixed).status_code == 404
    assert store.judgements() == []


@pytest.mark.parametrize(
    "cookie", ["", "a", "a.b", "a.b.c", "....", "x.YW5u.0.0123", "x.\xff.y", "x.____.0.y", "x.YW5u.one.y"]
)
def test_a_cookie_that_is_none_means_nobody(store: FeedbackStore, cookie: str) -> None:
    client = client_of(store)
    name = client.get("/").headers["set-cookie"].split("=")[0]
    answer = client_of(store).get("/", headers=[(b"cookie", f"{name}={cookie}".encode("latin-1"))])
    assert answer.status_code == 200
    assert "Your name" in answer.text


def test_a_form_that_comes_again_counts_once(store: FeedbackStore) -> None:
    add_tasks(store, 2)
    ann = visit(store)
    form = ann.form(confidence="3", note=" odd\r\nlines ", seconds="2.5")
    for _ in range(3):
        assert ann.client.post("/judge", data=form, follow_redirects=False).status_code == 303
    (judgement,) = store.judgements(effective=False)
    assert (judgement.confidence, judgement.note, judgement.seconds) == (3, "odd\nlines", 2.5)
    changed = ann.client.post("/judge", data={**form, "rank": ["2", "1"]})
    assert changed.status_code == 409
    assert "undo that first" in changed.text
    assert len(store.judgements(effective=False)) == 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"verdict": "best"}, 422),
        ({"verdict": ""}, 422),
        ({"verdict": ["ranked", "ranked"]}, 422),
        ({"rank": ["1"]}, 409),
        ({"rank": ["1", "2", "3"]}, 409),
        ({"rank": []}, 409),
        ({"rank": ["", ""]}, 409),
        ({"rank": ["0", "1"]}, 422),
        ({"rank": ["1", "10"]}, 422),
        ({"rank": ["1", "²"]}, 422),
        ({"rank": ["1", "-1"]}, 422),
        ({"confidence": "6"}, 422),
        ({"confidence": "1.5"}, 422),
        ({"note": "x" * 4001}, 422),
        ({"note": "x" * 70_000}, 413),
        ({"seconds": "nan"}, 422),
        ({"seconds": "-1"}, 422),
        ({"seconds": "1e400"}, 422),
        ({"assignment": "1"}, 404),
        ({"assignment": f"1-{'0' * 32}"}, 404),
        ({"assignment": "9" * 400}, 404),
        ({"assignment": ""}, 404),
        ({str(field): "x" for field in range(80)}, 422),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_refused(store: FeedbackStore, fields: dict[str, Any], status: int) -> None:
    add_tasks(store, 1)
    answer = visit(store).judge(**fields)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert store.judgements() == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"token=x", "text/plain", 415),
        (b"token=%ff", "application/x-www-form-urlencoded", 422),
        ("token=é".encode(), "application/x-www-form-urlencoded", 422),
        (b"", "application/x-www-form-urlencoded", 422),
        (b"&&&", "application/x-www-form-urlencoded", 422),
    ],
)
def test_what_is_no_form_is_refused(store: FeedbackStore, content: bytes, kind: str, status: int) -> None:
    answer = client_of(store).post("/judge", content=content, headers={"content-type": kind})
    assert answer.status_code == status


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\x00b", "a\u202eb"])
def test_a_name_that_is_none(store: FeedbackStore, name: str) -> None:
    assert visit(store, "").post("/sign-in", name=name).status_code == 422
    assert store.annotators() == []


def test_gaps_in_ranks_are_closed_and_a_single_blank_is_the_last(store: FeedbackStore) -> None:
    for _ in range(4):
        add_task(store, ["a", "b", "c", "d"])
    ann = visit(store)
    for ranks in (["9", "9", "2", "5"], ["2", "1", "", "2"], ["", "3", "", "7"]):
        assert ann.judge(rank=ranks).is_success
    assert ann.judge(rank=["1", "2", "3", "4"], verdict="cant_tell").is_success
    in_order = [sorted(one.values(), key=lambda rank: (rank is None, rank)) for one in recorded(store)]
    assert in_order == [[0, 1, 2, 2], [0, 1, 1, 2], [0, 1, None, None], [None] * 4]


# Work


def test_a_lease_that_ran_out_goes_to_the_next(store: FeedbackStore, clock: Clock) -> None:
    add_tasks(store, 1)
    ann, ben = visit(store, lease_seconds=60), visit(store, "ben", lease_seconds=60)
    assert "Nothing to do" in ben.html
    clock.now += 50
    alive = ann.client.post("/alive", data={"token": ann.hidden("token"), "assignment": ann.hidden("assignment")})
    assert alive.json()["passed_on"] == ""
    clock.now += 50  # it was renewed
    assert "Nothing to do" in ben.client.get("/").text
    clock.now += 20
    ben.html = ben.client.get("/").text
    assert ben.judge().is_success
    late = ann.judge()
    assert late.status_code == 409
    assert "others have judged" in late.text
    assert [store.annotators()[one.annotator - 1].name for one in store.judgements()] == ["ben"]


def test_an_open_page_is_told_that_its_work_is_done(store: FeedbackStore, clock: Clock) -> None:
    add_tasks(store, 1)
    ann = visit(store, lease_seconds=60)
    form = {"token": ann.hidden("token"), "assignment": ann.hidden("assignment")}
    clock.now += 70
    assert visit(store, "ben", lease_seconds=60).judge().is_success
    assert "others have judged" in ann.client.post("/alive", data=form).json()["passed_on"]


def test_signing_out_gives_the_work_back(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    ann, ben = visit(store), visit(store, "ben")
    assert "Nothing to do" in ben.html
    ann.post("/sign-out", assignment=ann.hidden("assignment"))
    assert "Your name" in ann.html
    assert 'id="judge"' in ben.client.get("/").text


def test_a_page_outlives_the_server(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    ann = visit(store)
    form, cookies = ann.form(), ann.client.cookies
    restarted = client_of(store)
    restarted.cookies = cookies
    assert restarted.post("/judge", data=form).is_success
    assert len(store.judgements()) == 1


def test_undo_without_anything_to_undo(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    ann = visit(store)
    assert ann.hidden("judgement") == ""
    assert ann.undo().is_success
    assert ann.judge().is_success
    assert ann.undo().is_success
    assert store.judgements() == []
    assert ann.judge(rank=["2", "1"]).is_success
    assert len(store.judgements()) == 1


def test_an_undo_that_comes_again_counts_once(store: FeedbackStore) -> None:
    add_tasks(store, 3)
    ann = visit(store)
    ann.judge()
    older = ann.hidden("judgement")
    ann.judge()
    form = {"token": ann.hidden("token"), "judgement": ann.hidden("judgement")}
    refused = ann.client.post("/undo", data={**form, "judgement": older})  # from a page that is out of date
    assert refused.status_code == 409
    assert "newer ones" in refused.text
    for _ in range(3):
        assert ann.client.post("/undo", data=form, follow_redirects=False).status_code == 303
    assert len(store.judgements()) == 1
    assert len(store.judgements(effective=False)) == 3
    ann.html = ann.client.get("/").text
    assert ann.hidden("judgement") == older  # another undo, from a page that was loaded since, goes on
    assert ann.undo().is_success
    assert store.judgements() == []
    ben = visit(store, "ben")
    assert ben.client.post("/undo", data={**form, "token": ben.hidden("token")}).status_code == 404
    assert ben.client.post("/undo", data={"token": ben.hidden("token")}).status_code == 422


# Answers that are written

CHAT = ({"role": "user", "content": "What is a heron?"},)


def add_chat(store: FeedbackStore) -> None:
    """Add a ranking of two answers to a conversation."""
    prompt = store.add_prompt(CHAT)
    store.add_task([store.add_completion(prompt, text) for text in ("A bird.", "A fish.")])


def tokens(html: str) -> list[str]:
    """Return the tokens of the answers that a page lists."""
    return re.findall(r'name="demonstration" value="(.*?)"', html)


def test_an_answer_beside_a_ranking(store: FeedbackStore) -> None:
    add_chat(store)
    ann = visit(store)
    form = ann.form(text=[" A wader.\r\nTall. ", "Why?", "Long legs.", " ", ""], edited="2", seconds="1.5")
    for _ in range(3):
        answer = ann.client.post("/demonstrate", data=form, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/?stored=1")
    (written,) = store.demonstrations(effective=False)
    assert written.texts == ("A wader.\nTall.", "Why?", "Long legs.")
    assert written.item in (1, 2)
    assert written.seconds == 1.5
    ann.html = ann.client.get("/?stored=1").text
    assert "Your answer is stored." in ann.html
    assert "Edited from completion 2." in ann.html
    (token,) = tokens(ann.html)
    changing = ann.client.get("/", params={"change": token}).text
    assert "A wader.\nTall.</textarea>" in changing
    assert changing.count("<textarea name") == 3 + 4 + 2, "what was written, without scripts, and what scripts add"
    ann.html = changing
    assert ann.post("/demonstrate", **ann.form(text="A bird.", changes=token)).is_success
    assert [each.texts for each in store.demonstrations()] == [("A bird.",)]
    assert ann.client.post("/take-back", data={"token": ann.hidden("token"), "demonstration": token}).status_code == 409
    (newer,) = tokens(ann.html)
    for _ in range(2):
        assert ann.post("/take-back", demonstration=newer).is_success
    assert store.demonstrations() == []
    assert "Your answers" not in ann.html
    assert ann.client.get("/", params={"change": newer}).is_success, "of a page that is out of date"
    assert ann.judge().is_success
    assert len(store.judgements()) == 1


def test_answers_are_shown_with_their_quotes(store: FeedbackStore) -> None:
    quoted = "[1] <b>Heron</b> (birds.example)\n\nIt eats fish.\n\n[2] Fish (x)\n\nwet■"
    add_task(store, [f"{quoted}Fish [1].", f"{quoted}meat"], prompt="What does a heron eat?■")
    page = visit(store).html
    assert "■" not in page
    assert page.count("[1] &lt;b&gt;Heron&lt;/b&gt; (birds.example)</h3>") == 2
    assert page.count('aria-label="Quote 2">wet</div>') == 2
    assert re.search(r'aria-label="Answer of completion [12]">Fish \[1\].</div>', page)
    assert "Write a better answer" not in page, "which would have no quotes"
    assert "not in the quotes is not shown to be true" in page


def test_only_whoever_wrote_an_answer_can_change_it(store: FeedbackStore) -> None:
    add_chat(store)
    add_chat(store)
    ann, ben = visit(store), visit(store, "ben")
    ann.post("/demonstrate", **ann.form(text="A wader."))
    (token,) = tokens(ann.html)
    assert tokens(ben.html) == []
    assert ben.client.get("/", params={"change": token}).status_code == 404
    stolen = {"token": ben.hidden("token"), "demonstration": token}
    assert ben.client.post("/take-back", data=stolen).status_code == 404
    assert ben.client.post("/demonstrate", data=ben.form(text="x", changes=token)).status_code == 404
    assert [each.texts for each in store.demonstrations(effective=False)] == [("A wader.",)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 422),
        ({"text": ""}, 422),
        ({"text": " \r\n "}, 422),
        ({"text": ["", "Why?", "Because."]}, 422),
        ({"text": ["A bird.", "", "Because."]}, 422),
        ({"text": ["A bird.", "Why?"]}, 409),
        ({"text": "x" * 20_001}, 422),
        ({"text": "x" * 1_000_001}, 413),
        ({"text": ["x"] * 70}, 422),
        ({"text": "x", "edited": "3"}, 422),
        ({"text": "x", "edited": "0"}, 422),
        ({"text": "x", "edited": "one"}, 422),
        ({"text": "x", "edited": ["1", "2"]}, 422),
        ({"text": "x", "changes": "1"}, 404),
        ({"text": "x", "seconds": "-1"}, 422),
        ({"text": "x", "assignment": "1"}, 404),
    ],
    ids=lambda value: str(value)[:40],
)
def test_answers_that_are_refused(store: FeedbackStore, fields: dict[str, Any], status: int) -> None:
    add_chat(store)
    ann = visit(store)
    answer = ann.post("/demonstrate", **ann.form(**fields))
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert store.demonstrations(effective=False) == []


def test_the_longest_answer_is_taken(store: FeedbackStore) -> None:
    add_chat(store)
    ann = visit(store)
    assert ann.post("/demonstrate", **ann.form(text=["\U0001f426" * 20_000] * 3)).is_success
    assert [len(text) for text in store.demonstrations()[0].texts] == [20_000] * 3


def test_a_text_goes_on_from_its_prompt_as_it_stands(store: FeedbackStore) -> None:
    add_task(store, [" a", " b"], prompt="The film")
    ann = visit(store)
    assert ann.post("/demonstrate", **ann.form(text=["  is\r\n good. \r\n"])).is_success
    assert store.demonstrations()[0].texts == ("  is\n good.",)
    assert ann.client.post("/demonstrate", data=ann.form(text=["a", "b", "c"])).status_code == 409
    assert "begin with a space" in ann.html


@pytest.mark.parametrize(
    "query", [{"edit": "3"}, {"edit": "x"}, {"edit": "-1"}, {"change": "1-2"}, {"change": "x" * 99}]
)
def test_addresses_that_name_nothing(store: FeedbackStore, query: dict[str, str]) -> None:
    add_chat(store)
    answer = visit(store).client.get("/", params=query)
    assert answer.status_code in (404, 422)
    assert 'role="alert"' in answer.text


def test_a_page_that_asks_for_an_answer(store: FeedbackStore, clock: Clock) -> None:
    store.add_demonstration_task(store.add_prompt(CHAT))
    ann, ben = visit(store, lease_seconds=60), visit(store, "ben", lease_seconds=60)
    assert 'id="judge"' not in ann.html
    assert "Nothing to do" in ben.html
    alive = {"token": ann.hidden("token"), "assignment": ann.hidden("assignment")}
    clock.now += 50
    assert ann.client.post("/alive", data=alive).json()["passed_on"] == ""
    form = ann.form(text=["A bird.", "Why?", "It has feathers."], seconds="30")
    for _ in range(2):
        assert ann.client.post("/demonstrate", data=form).is_success
    changed = ann.client.post("/demonstrate", data={**form, "text": "A fish."})
    assert changed.status_code == 409
    assert "undo that first" in changed.text
    ann.html = ann.client.get("/").text
    assert "1 of 1 done" in ann.html
    assert ann.undo().is_success
    assert store.demonstrations() == []
    assert "It has feathers.</textarea>" in ann.html, "what was undone can be corrected"
    assert ann.post("/judge", assignment=ann.hidden("assignment"), verdict="cant_tell").is_success
    ben.html = ben.client.get("/").text
    assert "It has feathers" not in ben.html
    assert ben.client.post("/judge", data=ben.form(rank=[])).status_code == 409
    assert ben.post("/demonstrate", **ben.form(text="A wader.")).is_success
    assert [each.texts for each in store.demonstrations()] == [("A wader.",)]
    state = ben.client.get("/state").text
    assert "<dt>demonstrations</dt><dd>1</dd>" in state


def test_clips_are_not_written(store: FeedbackStore) -> None:
    store.add_task([store.add_clip(f"{place}.gif", task="t") for place in range(2)], kind="clip")
    ann = visit(store)
    assert 'id="own"' not in ann.html
    assert ann.client.post("/demonstrate", data=ann.form(text="x")).status_code == 409


def test_what_is_to_be_edited_is_escaped_and_shows_no_hidden_characters(store: FeedbackStore) -> None:
    text = "\n</textarea><script>alert(1)</script>\u202ea\x00b"
    add_task(store, [text, "b"], prompt="</script>{{ 7*7 }}\"'")
    ann = visit(store)
    place = 1 if ann.html.index("alert(1)") < ann.html.index("Completion 2") else 2
    html = ann.client.get("/", params={"edit": str(place)}).text
    assert "\n\n&lt;/textarea&gt;&lt;script&gt;alert(1)&lt;/script&gt;ab</textarea>" in html
    assert "<script>alert" not in html
    assert 'data-before="&lt;/script&gt;{{ 7*7 }}&#34;&#39;"' in html


# Names and passwords


def signed_in(ann: Annotator) -> bool:
    return "Sign out" in ann.client.get("/").text


def test_a_cookie_is_worth_nothing_after_signing_out(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    app = create_app(store, key=KEY)
    ann = Annotator(TestClient(app, base_url=OURS))
    form, cookies = ann.form(), dict(ann.client.cookies)
    ann.post("/sign-out")
    for server in (app, create_app(store, key=KEY)):  # also after a restart
        thief = TestClient(server, base_url=OURS, cookies=cookies)
        assert "Your name" in thief.get("/").text
        thief.cookies.update(cookies)
        assert thief.post("/judge", data=form).status_code == 403
    assert store.judgements() == []
    ann.post("/sign-in", name="ann")
    assert signed_in(ann)


def test_a_name_is_one_browsers_at_a_time(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("textenv.feedback.sign_in.time.monotonic", lambda: now[0])
    add_tasks(store, 1)
    app = create_app(store, key=KEY, lease_seconds=60)
    ann, eve = (Annotator(TestClient(app, base_url=OURS), name) for name in ("Rene\u0301e", ""))
    answer = eve.post("/sign-in", name="Ren\u00e9e ")
    assert answer.status_code == 409
    assert "signed in in another browser" in answer.text
    now[0] += 59
    assert signed_in(ann)
    now[0] += 59
    eve.html = eve.client.get("/").text
    assert eve.post("/sign-in", name="Ren\u00e9e").status_code == 409
    now[0] += 61  # she has gone
    eve.html = eve.client.get("/").text
    assert eve.post("/sign-in", name="Ren\u00e9e").is_success
    assert (signed_in(eve), signed_in(ann)) == (True, False)
    eve.html = eve.client.get("/").text
    eve.post("/sign-out")
    ann.html = ann.client.get("/").text
    assert ann.post("/sign-in", name="Ren\u00e9e").is_success
    assert [each.name for each in store.annotators()] == ["Ren\u00e9e"]


@pytest.mark.parametrize("name", ["gold reward", "Gold  Reward", "program", "my judge", "MY JUDGE"])
def test_names_of_programs_are_taken(store: FeedbackStore, name: str) -> None:
    store.annotator("my judge", "program")
    ann = visit(store, "")
    answer = ann.post("/sign-in", name=name)
    assert answer.status_code == 403
    assert "the name of a program" in answer.text
    assert not signed_in(ann)
    owner = client_of(store)
    ann = Annotator(owner, "")
    ann.html = owner.get("/", params={"owner": owner_key(KEY)}).text
    assert ann.post("/sign-in", name="my judge", owner=ann.hidden("owner")).is_success
    assert signed_in(ann)


def test_a_password(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    password = made_password(KEY)
    assert re.fullmatch("(?:[a-z2-7]{4}-){3}[a-z2-7]{4}", password)
    assert made_password(bytes(32)) != password
    app = create_app(store, key=KEY, password=password)
    eve = Annotator(TestClient(app, base_url=OURS), "")
    assert "Password" in eve.html
    assert "Your name" in eve.client.get("/state").text
    for wrong in ({}, {"password": ""}, {"password": password[:-1]}, {"password": "é"}, {"owner": "x"}):
        answer = eve.client.post("/sign-in", data={"token": eve.hidden("token"), "name": "eve", **wrong})
        assert answer.status_code == 403, wrong
        assert "password is wrong" in answer.text
    assert not signed_in(eve)
    assert store.annotators() == []
    ann = Annotator(TestClient(app, base_url=OURS), "")
    assert ann.post("/sign-in", name="ann", password=password).is_success
    assert signed_in(ann)
    assert "State of the project" in ann.client.get("/state").text
    for _ in range(30):
        answer = eve.client.post("/sign-in", data={"token": eve.hidden("token"), "name": "eve", "password": "x"})
    assert answer.status_code == 429
    answer = eve.client.post("/sign-in", data={"token": eve.hidden("token"), "name": "eve", "password": password})
    assert answer.status_code == 429, "the right one among many guesses tells nothing"
    with pytest.raises(TextEnvError, match="7 characters: expected at least 8"):
        create_app(store, key=KEY, password="x" * 7)


def test_only_so_many_names_are_taken(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textenv.feedback.sign_in._MOST_NAMES", 3)
    store.annotator("known")
    app = create_app(store, key=KEY)
    accepted = [
        Annotator(TestClient(app, base_url=OURS), "").post("/sign-in", name=name).status_code
        for name in ("a", "b", "c", "d", "known", "e")
    ]
    assert accepted == [200, 200, 200, 429, 200, 429]
    assert [each.name for each in store.annotators()] == ["known", "a", "b", "c"]


@pytest.mark.parametrize(
    ("host", "only"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("LocalHost", True), ("0.0.0.0", False), ("::", False),
     ("", False), ("192.168.1.5", False), ("label.example", False)],
)  # fmt: skip
def test_what_other_machines_can_reach(store: FeedbackStore, host: str, *, only: bool) -> None:
    assert only_here(host) == only
    if not only:
        with pytest.raises(TextEnvError, match="expected a password"):
            serve_label_page(store, key=KEY, host=host)


def test_guidelines(store: FeedbackStore) -> None:
    add_tasks(store, 1)
    text = "# What to go by\nBe <b>kind</b>.\nTwo lines.\n\n- one\n- two\n\n## More\n\nEnd."
    html = re.sub(r"\s+", " ", visit(store, guidelines=text).html)
    assert "<h3>What to go by</h3>" in html
    assert "<p>Be &lt;b&gt;kind&lt;/b&gt;. Two lines.</p>" in html
    assert "<ul><li>one</li><li>two</li></ul>" in html
    assert "<h3>More</h3>" in html


# Clips


def add_clips(store: FeedbackStore, folder: Path) -> list[bytes]:
    files = [b"\x1aE\xdf\xa3 first", b"\x1aE\xdf\xa3 second"]
    for number, content in enumerate(files):
        (folder / f"{number}.webm").write_bytes(content)
    store.add_task([store.add_clip(folder / f"{number}.webm", task="x") for number in range(2)], kind="clip")
    return files


def test_clips_are_served_to_whom_they_were_given(store: FeedbackStore, tmp_path: Path) -> None:
    files = add_clips(store, tmp_path)
    ann = visit(store)
    addresses = re.findall(r'src="(/media/[^"]+)"', ann.html)
    assert len(addresses) == 2
    shown = store.lease(store.annotator("ann"))
    assert shown
    for address, item in zip(addresses, shown.items, strict=True):
        answer = ann.client.get(address)
        assert answer.content == Path(item.path).read_bytes()
        assert answer.headers["content-type"] == "video/webm"
        part = ann.client.get(address, headers={"range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, files[0][1:4])
        assert visit(store, "ben").client.get(address).status_code == 404
        assert client_of(store).get(address).status_code == 404
        changed = address[:-1] + ("0" if address[-1] != "0" else "1")
        assert ann.client.get(changed).status_code == 404
    assert str(tmp_path) not in ann.html


@pytest.mark.parametrize(
    "path",
    [
        "/media/../store.sqlite",
        "/media/%2e%2e%2fstore.sqlite",
        "/media/1-0-" + "0" * 32,
        "/web/../label_server.py",
        "/web/%2e%2e%2flabel_server.py",
        "/web/base.html",
        "/web/%2e%2e",
    ],
)
def test_no_other_file_is_served(store: FeedbackStore, tmp_path: Path, path: str) -> None:
    add_clips(store, tmp_path)
    assert visit(store).client.get(path).status_code == 404


def test_a_clip_that_is_no_picture_or_is_gone(store: FeedbackStore, tmp_path: Path) -> None:
    (tmp_path / "0.webm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "secret.txt").write_text("secret")
    store.add_task([store.add_clip(tmp_path / name, task="x") for name in ("0.webm", "secret.txt")], kind="clip")
    ann = visit(store)
    assert ann.html.count("The file of this clip cannot be found.") == 2
    assert "/media/" not in ann.html
    assert ann.judge(verdict="cant_tell").is_success


def test_pictures_of_this_machine_are_not_shown(
    store: FeedbackStore, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    private = tmp_path_factory.mktemp("private")
    (private / "me.png").write_bytes(b"private")
    (tmp_path / "link.png").symlink_to(private / "me.png")
    (tmp_path / "folder").symlink_to(private)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.png").symlink_to(private / "me.png")
    hostile = [
        private / "me.png", private, tmp_path / "link.png", tmp_path / "folder", tmp_path / "folder" / "me.png",
        tmp_path / "inside", tmp_path / ".." / private.name / "me.png", tmp_path / "\x1b[31m\x00", Path("~/x.png"),
    ]  # fmt: skip
    store.add_task([store.add_clip(path, task="x") for path in hostile], kind="clip")
    ann = visit(store)
    assert ann.html.count("The file of this clip cannot be found.") == len(hostile)
    assert "/media/" not in ann.html
    assert "--clip-folders" in caplog.text
    assert "\x1b" not in caplog.text
    shown = visit(store, clip_folders=[private])
    addresses = re.findall(r'src="(/media/[^"]+)"', shown.html)
    assert len(addresses) == 7
    assert {shown.client.get(address).content for address in addresses} == {b"private"}
    assert visit(store).client.get(addresses[0]).status_code == 404


# The state of the project


def test_the_state_of_the_project(store: FeedbackStore) -> None:
    policies = [store.add_policy(name) for name in ("<b>one</b>", "two")]
    for number in range(4):
        prompt = store.add_prompt(f"prompt {number}")
        items = [store.add_completion(prompt, f"text {policy}", policy=policy) for policy in policies]
        first = store.add_task(items, judgements=2, gold=[1, 0] if number == 3 else None)
        if number == 0:
            store.add_task(items, repeat_of=first, judgements=2)
    client = client_of(store)
    link = f"/state?owner={owner_key(KEY)}"
    assert "No two policy versions have been compared yet." in client.get(link).text
    live = LiveAgreement(store)
    assert live.text() == "Agreement not known yet"
    for name in ("ann", "ben"):
        annotator = store.annotator(name)
        while assignment := store.lease(annotator):
            texts = [item.text for item in assignment.items]
            first_wins = name == "ann" or assignment.task != 3
            order = sorted(texts, reverse=not first_wins)
            store.judge(assignment.id, [order.index(text) for text in texts], seconds=3.0 if name == "ann" else 8.0)
    state = project_state(store)
    rows = {row["name"]: row for row in state["annotators"]}
    assert rows["ann"] == {
        "name": "ann", "count": 5, "seconds": "3.0", "own": "1 of 1", "others": "3 of 4", "gold": "0 of 1",
        "demonstrations": "0",
    }  # fmt: skip
    assert [row["name"] for row in state["strengths"]] == ["<b>one</b>", "two"]
    assert [row["count"] for row in state["strengths"]] == [6, 6]  # three tasks that are neither gold nor repeated
    best = state["strengths"][0]
    assert 8 <= best["left"] < best["middle"] < best["right"] <= 248
    html = client.get(link).text
    assert "&lt;b&gt;one&lt;/b&gt;" in html
    assert dict(state["tiles"])["judgements"] == "10"
    # Four pairs, of which three have (-1, -1) and one (-1, 1): D_o = 8, D_e = 2 * 7 * 1 * 4, over n - 1 = 7.
    assert live.text() == "Agreement α = 0.00 on 4 pairs"


@pytest.mark.parametrize("query", ["", "?owner=", f"?owner={'0' * 32}", "?owner=%C3%A9"])
def test_judging_and_undoing_does_not_tell_who_wrote_what(store: FeedbackStore, query: str) -> None:
    policies = [store.add_policy(name) for name in ("first policy", "second policy")]
    for number in range(6):
        prompt = store.add_prompt(f"prompt {number}")
        items = [store.add_completion(prompt, f"text {number} {place}", policy=policies[place]) for place in (0, 1)]
        task = store.add_task(items, gold=[0, 1] if number % 3 == 1 else None)
        if number % 3 == 2:
            store.add_task(items, repeat_of=task)
    ann = visit(store)
    seen: dict[int, set[str]] = {}
    for count in range(8):
        for rank in (["1", "2"], ["2", "1"]):
            ann.judge(rank=rank)
            state = ann.client.get(f"/state{query}").text
            assert "policy" not in state
            assert "gold" not in re.sub(r"agree with each other and with gold items", "", state).lower()
            plain = re.sub(r'value="[^"]*"|<td>\d+\.\d</td>', "", state)
            seen.setdefault(count, set()).add(plain)
            ann.undo()
        ann.judge()
    assert len(store.judgements()) == 8
    assert [len(pages) for pages in seen.values()] == [1] * 8, "either answer leads to the same page"


# The command


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    key = page_key(tmp_path / "s.sqlite")
    assert len(key) == 32
    assert page_key(tmp_path / "s.sqlite") == key != page_key(tmp_path / "t.sqlite")
    assert (tmp_path / "s.sqlite.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.sqlite.key", "t.sqlite.key"]
    for wrong in ("", "xyz", "00"):
        (tmp_path / "s.sqlite.key").write_text(wrong)
        with pytest.raises(TextEnvError, match="Delete the file"):
            page_key(tmp_path / "s.sqlite")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_of_no_time(store: FeedbackStore, seconds: float) -> None:
    with pytest.raises(TextEnvError, match="lease_seconds"):
        create_app(store, key=KEY, lease_seconds=seconds)


@pytest.mark.parametrize("address", [{"port": 70_000}, {"port": -1}, {"host": "no.such.host.invalid"}], ids=str)
def test_an_address_that_is_none(store: FeedbackStore, address: dict[str, Any]) -> None:
    with pytest.raises(TextEnvError, match="Cannot listen at"):
        serve_label_page(store, key=KEY, password=made_password(KEY), **address)


def test_a_port_that_is_taken(store: FeedbackStore, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main(["label", str(store.path), "--port", str(listener.getsockname()[1])]) == 1
    assert "Cannot listen at" in capsys.readouterr().out


def test_what_the_command_needs(tmp_path: Path, store: FeedbackStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(tmp_path / "none.sqlite")]) == 1
    assert "textenv feedback" in capsys.readouterr().out
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "latin").write_bytes(b"\xff")
    for name in ("latin", "nowhere", "no\0where", "."):
        assert main(["label", str(store.path), "--guidelines", str(tmp_path / name)]) == 1
        said = "holds no NUL" if "\0" in name else "expected a file of text"
        assert said in capsys.readouterr().out.replace("\n", " ")


def test_without_fastapi_the_message_says_what_to_install(
    store: FeedbackStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "textenv.feedback.label_server")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["label", str(store.path)]) == 1
    assert "pip install 'textenv[web]'" in capsys.readouterr().out


def start(path: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command on a free port; return it and its address."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "textenv", "label", str(path), "--port", "0"]
    server = subprocess.Popen(
        command, cwd=path.parent, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.fullmatch(r"Compare at (http://127\.0\.0\.1:\d+)/\n", line)
    assert found, line
    return server, found[1]


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill_under_load(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    names = [f"annotator {number}" for number in range(4)]
    with FeedbackStore(path) as store, store.transaction():
        add_tasks(store, 600, judgements=len(names))
    acknowledged: dict[str, str] = {}  # the note of each judgement that was answered with success, and its winner
    tried: set[str] = set()
    enough = threading.Event()

    def work(name: str, url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            try:
                ann = Annotator(client, name)
                for number in range(600):
                    best = number % 2
                    texts = re.findall(r"quality \d of task \d+", ann.html)
                    note = f"{name}, {texts[0].split()[-1]}"
                    tried.add(note)
                    form = ann.form(note=note, rank=["1", "2"] if best == 0 else ["2", "1"])
                    answer = client.post("/judge", data=form)  # the redirect is not followed: this is the receipt
                    assert answer.status_code == 303, answer.text
                    acknowledged[note] = texts[best]
                    if len(acknowledged) >= 60:
                        enough.set()
                    ann.html = client.get("/").text
            except httpx.HTTPError:
                return  # killed

    server, url = start(path)
    threads = [threading.Thread(target=work, args=(name, url)) for name in names]
    try:
        for thread in threads:
            thread.start()
        assert enough.wait(120)
        assert all(thread.is_alive() for thread in threads)
    finally:
        server.send_signal(signal.SIGKILL)
        server.communicate()
        for thread in threads:
            thread.join()

    again, url = start(path)  # on what the dead one left
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            ann = Annotator(client, names[0])
            note = "after the kill"
            texts = re.findall(r"quality \d of task \d+", ann.html)
            assert ann.judge(note=note).is_success
            acknowledged[note] = texts[0]
            tried.add(note)
    finally:
        again.terminate()
        assert again.wait(60) == 128 + signal.SIGTERM
        again.communicate()
    with FeedbackStore(path, create=False) as store:
        judgements = store.judgements()
        best = [next(text for text, rank in one.items() if rank == 0) for one in recorded(store)]
    found = {judgement.note: text for judgement, text in zip(judgements, best, strict=True)}
    assert len(found) == len(judgements), "none was stored twice"
    assert acknowledged.items() <= found.items()
    assert found.keys() <= tried
    assert len(found) - len(acknowledged) <= len(names), "at most what was on its way"
