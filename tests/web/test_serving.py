"""``textenv reward serve``: what it answers, to whom, and that it ends well."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import httpx
import pytest
from fastapi.testclient import TestClient

from tests.rewards.test_http_reward import play
from tests.waiting import wait_for
from textenv.commands.cli import main
from textenv.rewards import Http, Length, Vader, WeightedSum
from textenv.types import TextEnvError
from textenv.web.reward_server import make_app, serve

BATCH: dict[str, Any] = {
    "prompts": ["The film", "A plot"],
    "completions": [" was great.", " to forget, awful."],
    "completion_ids": [[1, 2, 3], [4]],
    "columns": {"label": ["x", None]},
}
LIMIT = 2000
OURS = "http://127.0.0.1"


def client_of(reward: Callable[..., Any]) -> TestClient:
    return TestClient(make_app(reward, max_bytes=LIMIT), base_url=OURS, headers={"content-type": "application/json"})


def test_answers_with_the_scores_of_the_reward() -> None:
    answer = client_of(Vader()).post("/score", json=BATCH)
    assert answer.status_code == 200
    assert list(answer.json()) == ["scores"]
    assert answer.json()["scores"] == pytest.approx(Vader()(**{**BATCH, "columns": []}))


def test_the_reward_is_given_everything() -> None:
    seen: list[dict[str, Any]] = []

    def spy(**batch: Any) -> list[float]:
        seen.append(batch)
        return [1.0, 2.0]

    assert client_of(spy).post("/score", json=BATCH).json() == {"scores": [1.0, 2.0]}
    columns = BATCH["columns"]
    (batch,) = seen
    expected = {**{name: values for name, values in BATCH.items() if name != "columns"}, **columns}
    assert {name: batch[name] for name in expected} == expected
    assert batch.keys() - expected.keys() == {"log_extra", "log_metric", "trainer_state"}


def test_no_texts_have_no_scores() -> None:
    def never(**batch: Any) -> list[float]:
        raise AssertionError

    empty: dict[str, Any] = {"prompts": [], "completions": [], "completion_ids": []}
    for batch in (empty, {**empty, "columns": {}}, {**empty, "columns": {"label": []}}):
        answer = client_of(never).post("/score", json=batch)
        assert (answer.status_code, answer.json()) == (200, {"scores": []})


def test_health_names_the_reward() -> None:
    answer = client_of(Length(3)).get("/health")
    assert answer.json() == {"reward": "Length(target=3, unit='words')"}


def test_the_schema_describes_a_batch() -> None:
    schema = client_of(Vader()).get("/openapi.json").json()["paths"]["/score"]["post"]
    properties = schema["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert list(properties) == list(BATCH)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": None}, "prompts: Input should be a valid array"),
        ({"prompts": "The film"}, "prompts: Input should be a valid array"),
        ({"completions": ["a", 1]}, "completions.1: the value is 1; expected a text, or a list of messages"),
        ({"completions": ["a", []]}, r"completions.1: the value is \[\]"),
        ({"completions": ["a", [{"role": "x", "content": "b"}]]}, "completions.1: .*role 'x'"),
        ({"completions": ["a", [{"role": "assistant", "content": "b"}]]}, "completions.1: expected two texts"),
        ({"completion_ids": [[1], ["2"]]}, "completion_ids.1.0: Input should be a valid integer"),
        ({"completion_ids": [[1], [True]]}, "completion_ids.1.0: Input should be a valid integer"),
        ({"completion_ids": [1, 2]}, "completion_ids.0: Input should be a valid array"),
        ({"columns": ["label"]}, "columns: Input should be an object"),
        ({"columns": {"label": "xy"}}, "columns.label: Input should be a valid array"),
        ({"completion": ["a", "b"]}, "completion: Extra inputs are not permitted"),
        ({"prompts": ["a"]}, "'prompts': 1, 'completions': 2"),
        ({"completion_ids": []}, "'completion_ids': 0"),
        ({"columns": {"label": ["x"]}}, "'columns.label': 1"),
        ({"columns": {"prompts": ["x", "y"]}}, r"columns holds \['prompts'\]"),
        ({"prompts": [1] * 5}, r"prompts\.2: .*; and 2 more"),
    ],
    ids=str,
)
def test_a_request_of_another_shape_is_refused(change: dict[str, Any], said: str) -> None:
    answer = client_of(Vader()).post("/score", json={**BATCH, **change})
    assert answer.status_code == 422
    assert re.search(said, answer.json()["detail"])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"prompts": ["\xff"]}', b"[" * 1000, b'{"prompts": ["\\ud800"]}'], ids=str
)
def test_a_body_that_is_no_batch_is_refused(body: bytes) -> None:
    answer = client_of(Vader()).post("/score", content=body)
    assert answer.status_code == 422
    assert "/openapi.json" in answer.json()["detail"]


@pytest.mark.parametrize("length", ["declared", "not declared"])
def test_a_body_that_is_too_large_is_refused(length: str) -> None:
    parts = [b" " * (LIMIT // 2)] * 3
    content: Any = b"".join(parts) if length == "declared" else iter(parts)
    answer = client_of(Vader()).post("/score", content=content)
    assert answer.status_code == 413
    assert "larger than 2000 bytes" in answer.json()["detail"]
    fits = json.dumps(BATCH).encode().ljust(LIMIT)
    assert client_of(Vader()).post("/score", content=fits).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_of_another_site_could_send_is_refused(kind: str) -> None:
    client = TestClient(make_app(Vader()), base_url=OURS)
    content = json.dumps(BATCH).encode()
    answer = client.post("/score", content=content, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]
    for accepted in ("application/json", "Application/JSON; charset=utf-8"):
        assert client.post("/score", content=content, headers={"content-type": accepted}).status_code == 200


@pytest.mark.parametrize("path", ["/score", "/health", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [{"host": host} for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0")]
    + [{"origin": origin} for origin in ("http://evil.example", "null", "http://127.0.0.1:8902", "http://localhost")],
    ids=str,
)
def test_other_names_and_origins_are_refused(path: str, headers: dict[str, str]) -> None:
    def never(**batch: Any) -> list[float]:
        raise AssertionError

    answer = client_of(never).request("POST" if path == "/score" else "GET", path, json=BATCH, headers=headers)
    assert answer.status_code == 403
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost:1", "[::1]:80", "LOCALHOST", "gpu.example:8900"])
def test_its_own_names_and_origins_are_answered(host: str) -> None:
    client = TestClient(make_app(Vader(), hosts=["GPU.example"]), base_url=OURS)
    for headers in ({}, {"origin": f"http://{host}"}):
        assert client.post("/score", json=BATCH, headers={"host": host, **headers}).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_runs_scripts_of_another_site(path: str) -> None:
    assert client_of(Vader()).get(path).status_code == 404


@pytest.mark.parametrize("name", ["self", "reward", "columns", "cls", "class", "two words", "é", ""])
def test_a_column_may_have_any_name(name: str) -> None:
    seen: list[Any] = []

    def spy(**batch: Any) -> list[float]:
        seen.append(batch[name])
        return [1.0, 2.0]

    for reward in (spy, Vader(), WeightedSum([Vader(), Length(3)])):
        answer = client_of(reward).post("/score", json={**BATCH, "columns": {name: ["x", None]}})
        assert answer.status_code == 200, answer.text
    assert seen == [["x", None]]


def test_columns_that_the_reward_cannot_take_are_refused() -> None:
    class WithoutASlash:
        def __call__(self, *, completions: list[str], **columns: Any) -> list[float]:
            return [0.0] * len(completions)

    def without_columns(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        return [0.0] * len(completions)

    for reward, name in ((WithoutASlash(), "self"), (WithoutASlash().__call__, "self"), (without_columns, "label")):
        client = client_of(reward)
        answer = client.post("/score", json={**BATCH, "columns": {name: ["x", None]}})
        assert answer.status_code == 422
        assert f"'{name}'" in answer.json()["detail"]
        assert "cannot be called" in answer.json()["detail"]
        assert client.post("/score", json={**BATCH, "columns": {}}).status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/score", 405), ("POST", "/", 404)])
def test_another_address_is_refused(method: str, path: str, status: int) -> None:
    assert client_of(Vader()).request(method, path, json=BATCH).status_code == status


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (RuntimeError("the GPU is on fire"), "RuntimeError: the GPU is on fire"),
        ([1.0], "1 scores"),
        ([1, None], "None"),
    ],
    ids=str,
)
def test_a_reward_that_fails_is_reported(returned: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    def failing(**batch: Any) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    with_failure = client_of(failing)
    answer = with_failure.post("/score", json=BATCH)
    assert answer.status_code == 500
    assert said in answer.json()["detail"]
    assert any(record.exc_info for record in caplog.records if record.name == "textenv.web.reward_server")
    assert with_failure.get("/health").status_code == 200


def talk(reward: Callable[..., Any], conversation: Callable[[httpx.AsyncClient], Any]) -> None:
    """Have a conversation with a server, in one event loop as it runs in."""

    async def talking() -> None:
        transport = httpx.ASGITransport(make_app(reward))
        async with httpx.AsyncClient(transport=transport, base_url=OURS) as client:
            await conversation(client)

    asyncio.run(talking())


def test_batches_have_their_turn_one_after_the_other() -> None:
    inside: list[int] = []
    peak: list[int] = []

    def slow(completions: list[str], **batch: Any) -> list[float]:
        inside.append(1)
        peak.append(len(inside))
        time.sleep(0.005)
        inside.pop()
        return [float(completions[0])]

    async def conversation(client: httpx.AsyncClient) -> None:
        batches = [{"prompts": ["p"], "completions": [str(n)], "completion_ids": [[n]]} for n in range(6)]
        answers = await asyncio.gather(*(client.post("/score", json=batch) for batch in batches))
        assert [answer.json()["scores"] for answer in answers] == [[float(n)] for n in range(6)]

    talk(slow, conversation)
    assert peak == [1] * 6


def test_health_answers_while_a_reward_computes() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def blocked(**batch: Any) -> list[float]:
        begun.set()
        assert go_on.wait(60)
        return [0.0, 0.0]

    async def conversation(client: httpx.AsyncClient) -> None:
        scoring = asyncio.create_task(client.post("/score", json=BATCH))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert (await client.get("/health")).status_code == 200
        assert not scoring.done()
        go_on.set()
        assert (await scoring).status_code == 200

    talk(blocked, conversation)


@pytest.mark.parametrize("whole", [True, False])
def test_nothing_is_computed_for_a_client_that_has_gone(whole: bool) -> None:
    def never(**batch: Any) -> list[float]:
        raise AssertionError

    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": json.dumps(BATCH).encode(), "more_body": not whole},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/score",
        "headers": headers,
        "query_string": b"",
        "root_path": "",
    }
    asyncio.run(make_app(never)(scope, receive, send))
    assert sent[0]["status"] == 499


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_a_port_that_is_taken(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "serve", "--reward", "vader", "--port", str(taken)]) == 1
    assert f"Cannot listen at host '127.0.0.1', port {taken}" in capsys.readouterr().out


@pytest.mark.parametrize("address", [{"port": 70_000}, {"port": -1}, {"host": "no.such.host.invalid"}], ids=str)
def test_an_address_that_is_none(address: dict[str, Any]) -> None:
    with pytest.raises(TextEnvError, match="Cannot listen at"):
        serve(Vader(), **address)


def test_a_limit_below_one() -> None:
    with pytest.raises(TextEnvError, match="max_bytes=0"):
        serve(Vader(), max_bytes=0)


@pytest.mark.parametrize("reward", ["vadr", '{"name": "length"}', '{"name": ', "no_such_module:reward"])
def test_a_reward_that_is_none(reward: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "serve", "--reward", reward]) == 1
    assert "error:" in capsys.readouterr().out


def test_without_fastapi_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "textenv.web.reward_server")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["reward", "serve", "--reward", "vader"]) == 1
    assert "pip install 'textenv[web]'" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "shown"), [(["reward"], "serve"), (["reward", "serve"], "--reward")])
def test_the_command_line_has_help(command: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert shown in capsys.readouterr().out


SERVED = """
import pathlib, time
from textenv.rewards import Vader

def reward(completions, **columns):
    if completions == ["wait"]:
        pathlib.Path("begun").touch()
        while not pathlib.Path("go on").exists():
            time.sleep(0.01)
    return Vader()(prompts=[], completions=completions, completion_ids=[])
"""


@pytest.mark.slow
def test_the_command_serves_an_environment_and_finishes_what_it_began(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "textenv", "reward", "serve", "--reward", "served:reward", "--port", "0"]
    path = os.pathsep.join((str(root), str(tmp_path)))
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(r"reward answers at (http://127\.0\.0\.1:(\d+)/score)\n", line)
        assert found, line
        url, port = found[1], int(found[2])
        assert httpx.get(url.replace("/score", "/health")).json() == {"reward": "reward"}
        scores = [
            play(gymnasium.make("textenv/MovieReview-v0", reward=reward, max_new_tokens=6))
            for reward in ("vader", {"name": "http", "url": url, "batch_size": 2})
        ]
        assert scores[0] == scores[1]
        assert any(score != 0 for score in scores[0])
        with pytest.raises(TextEnvError, match=r"HTTP 422 .*'columns\.label': 1"):
            Http(url)(prompts=["a", "b"], completions=["", ""], completion_ids=[[1], [1]], label=["x"])

        answers: list[Any] = []
        batch = {"prompts": [""], "completions": ["wait"], "completion_ids": [[1]]}
        asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=batch, timeout=60)))
        asking.start()
        wait_for((tmp_path / "begun").exists)
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(port))
        assert server.poll() is None, "it left a request unanswered"
        (tmp_path / "go on").touch()
        asking.join()
        assert answers[0].json() == {"scores": [0.0]}
        assert server.wait(60) == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.communicate()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return True
    return False
