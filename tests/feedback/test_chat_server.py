"""The page of a conversation: its answers, its thumbs in the store, and the requests that it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.env.test_dialogue import ANSWERS, Scripted
from tests.env.test_dialogue import make as make_dialogue
from tests.families import make_family, save_family
from textenv.commands.cli import main
from textenv.env.dialogue import Dialogue
from textenv.feedback import chat_server
from textenv.feedback.chat_server import Thumbs, create_chat_app
from textenv.feedback.store import FeedbackStore
from textenv.types import TextEnvError
from textenv.web import server as web_server

OURS = "http://127.0.0.1:8902"
SCRIPT = {"Accept": "text/plain"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "store.sqlite") as store:
        yield store


@pytest.fixture
def dialogue() -> Any:
    lm = make_family("qwen2")
    return make_dialogue(lm, Scripted(lm, ANSWERS * 2))


def client_of(dialogue: Dialogue, store: FeedbackStore | None = None) -> TestClient:
    thumbs = None if store is None else Thumbs(store, annotator="ann", policy="bundled")
    return TestClient(create_chat_app(dialogue, thumbs, title="<b>a model</b>"), base_url=OURS)


def test_messages_are_answered_piece_by_piece(dialogue: Dialogue) -> None:
    client = client_of(dialogue)
    with client.stream("POST", "/say", data={"text": " How?\r\nWhy? "}, headers=SCRIPT) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert "".join(response.iter_text()) == ANSWERS[0]
    assert dialogue.messages[0]["content"] == "How?\nWhy?"
    page = client.post("/say", data={"text": "<script>alert(1)</script>"})  # without the script, which is not run
    assert page.url.path == "/"
    for text in (*ANSWERS[:2], "&lt;script&gt;alert(1)", "&lt;b&gt;a model"):
        assert text in page.text
    assert "thumb" not in page.text
    record = json.loads(client.get("/conversation.jsonl").text)
    assert record == {"messages": [dict(message) for message in dialogue.messages]}
    assert "Say something" in client.post("/reset", data={"reset": "1"}).text
    assert dialogue.messages == ()


def test_another_answer_takes_the_place_of_the_last(dialogue: Dialogue) -> None:
    client = client_of(dialogue)
    client.post("/say", data={"text": "Hello"})
    client.post("/again", data={"again": "1"})
    assert [message["content"] for message in dialogue.messages] == ["Hello", ANSWERS[1]]
    client.post("/say", data={"text": "Why?"})
    assert [message["content"] for message in dialogue.messages[1:]] == [ANSWERS[1], "Why?", ANSWERS[2]]


def test_thumbs_are_kept_and_make_comparisons(dialogue: Dialogue, store: FeedbackStore) -> None:
    client = client_of(dialogue, store)
    client.post("/say", data={"text": "Hello"})
    page = client.post("/thumb", data={"place": "1", "thumb": "down"}).text
    assert page.count('aria-pressed="true" disabled') == 1
    assert store.rankings() == []
    for thumb in ("up", "up"):
        client.post("/again", data={"again": "1"})
        client.post("/thumb", data={"place": "1", "thumb": thumb})
    kept = {item.text: item.details["thumb"] for item in store.completions()}
    assert kept == dict(zip(ANSWERS, ("down", "up", "up"), strict=True))
    rankings = [ranking for _, ranking in store.rankings()]
    assert [(ranking.prompt, ranking.completions, ranking.ranks) for ranking in rankings] == [
        (({"role": "user", "content": "Hello"},), (better, ANSWERS[0]), (0, 1)) for better in ANSWERS[1:]
    ]
    assert {ranking.annotator for ranking in rankings} == {"ann"}
    assert [policy.folder for policy in store.policies()] == ["bundled"]
    told = client.post("/thumb", data={"place": "1", "thumb": "down"})
    assert (told.status_code, "has a thumb already" in told.text) == (409, True)
    assert len(store.completions()) == 3
    Thumbs(store, annotator="bob", policy="bundled").add(dialogue.messages[:1], ANSWERS[2], "down")
    assert len(store.rankings()) == 2, "another person's thumbs are not compared with these"


@pytest.mark.parametrize(
    ("path", "form", "refusal"),
    [
        ("/say", {"text": "  "}, (422, "The message is empty")),
        ("/say", {"texts": "a"}, (422, "fields named")),
        ("/say", {"text": "the film " * 200}, (409, "Shorten the message, or begin anew")),
        ("/again", {"again": "1"}, (409, "There is no answer yet")),
        ("/thumb", {"place": "0", "thumb": "up"}, (422, "expected an answer")),
        ("/thumb", {"place": "-1", "thumb": "up"}, (422, "expected an answer")),
        ("/thumb", {"place": "1", "thumb": "sideways"}, (422, "expected an answer")),
        ("/none", {"a": "b"}, (404, "Not Found")),
    ],
    ids=["blank", "field", "long", "again", "nothing", "negative", "sideways", "path"],
)
def test_what_is_refused(
    path: str, form: dict[str, str], refusal: tuple[int, str], dialogue: Dialogue, store: FeedbackStore
) -> None:
    client, (status, told) = client_of(dialogue, store), refusal
    response = client.post(path, data=form, headers=SCRIPT)
    assert response.status_code == status
    assert told in response.text
    assert "That did not work" in client.post(path, data=form).text
    assert client.post(path, data=form, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 403
    assert dialogue.messages == ()


def test_of_two_answers_at_once_one_is_written() -> None:
    lm = make_family("qwen2")
    refused: list[int] = []

    def write(prompt: Any) -> Iterator[int]:
        refused.extend(
            client.post(path, data={"text": "Why?"}, headers=SCRIPT).status_code for path in ("/say", "/reset")
        )
        yield from Scripted(lm, ANSWERS[:1])(prompt)

    dialogue = make_dialogue(lm, write)
    client = client_of(dialogue)
    client.post("/say", data={"text": "Hello"})
    assert refused == [409, 409]
    assert [message["content"] for message in dialogue.messages] == ["Hello", ANSWERS[0]]


def test_whoever_leaves_makes_room_for_another_answer(dialogue: Dialogue) -> None:
    over: list[bool] = []
    pieces = chat_server._Pieces(dialogue.say("Hello"), lambda: over.append(True))
    assert over == []
    del pieces  # as a client does that is gone before the first piece is sent
    assert over == [True]
    pieces = chat_server._Pieces(iter(["a"]), lambda: over.append(True))
    assert list(pieces) == ["a"]
    del pieces
    assert over == [True, True]


def test_what_was_written_before_somebody_left_stays_said(dialogue: Dialogue) -> None:
    answer = dialogue.say("Hello")
    first = next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert dialogue.messages[-1] == {"role": "assistant", "content": first}
    assert "".join(dialogue.say("Go on.")) == ANSWERS[1]
    assert len(dialogue.messages) == 4


def test_there_is_no_other_answer_before_the_first(dialogue: Dialogue) -> None:
    with pytest.raises(TextEnvError, match="no answer yet"):
        dialogue.again()


def test_the_command_serves_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_family(tmp_path / "chat", "qwen2", max_position_embeddings=512)

    def serve(app: Any, *, host: str, port: int, announce: Any) -> None:
        announce(f"http://{host}:{port}")
        client = TestClient(app, base_url=OURS)
        client.post("/say", data={"text": "Hello"})
        client.post("/thumb", data={"place": "1", "thumb": "up"})

    monkeypatch.setattr(web_server, "serve", serve)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    chat = ["chat", model, "--max-new-tokens", "4", "--web", "--port", "8999"]
    assert main([*chat, "--store", str(tmp_path / "f.sqlite"), "--name", "ann"]) == 0
    assert "Chat at http://127.0.0.1:8999/" in capsys.readouterr().out
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        (item,) = store.completions()
        assert item.details == {"annotator": "ann", "thumb": "up"}
        assert [policy.folder for policy in store.policies()] == [model]
    for alone in (["--store", str(tmp_path / "f.sqlite")], ["--port", "0"], ["--name", "ann"]):
        assert main(["chat", model, *alone]) == 1
        assert f"{alone[0]} is a setting of the page: give --web too" in capsys.readouterr().out
    assert main(["chat", model, "--web", "--name", "ann"]) == 1
    assert "are kept in a --store" in capsys.readouterr().out
    assert main(["chat", "bundled", "--web"]) == 1
    assert "has no chat template" in capsys.readouterr().out
