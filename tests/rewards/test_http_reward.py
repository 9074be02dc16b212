"""The reward that asks a server, against servers that behave, and against those that don't."""

from __future__ import annotations

import copy
import email.utils
import gzip
import json
import logging
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

from textenv.rewards import Http, Vader, _http_client, make
from textenv.rewards._http_format import excerpt, message_of
from textenv.testing import RewardContract
from textenv.types import Reward, TextEnvError

Answer = Callable[["Handler", dict[str, Any]], None]
TOKEN = "s3cret-token-of-mine"


class Handler(BaseHTTPRequestHandler):
    """Reads a request, has the server's ``answer`` reply to it, and counts."""

    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        batch = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.batches.append(batch)
            self.server.headers.append(dict(self.headers.items()))
            self.server.in_flight += 1
            self.server.peak = max(self.server.peak, self.server.in_flight)
        self.server.answer(self, batch)

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        """Answer with JSON, or with bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.server.lock:
            self.server.in_flight -= 1  # before the client can send its next one
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server on a port of its own; what it was sent, and how many requests it answered at once."""

    daemon_threads = False  # so that closing it waits for them
    request_queue_size = 64

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.batches: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.peak = 0
        self.errors: list[BaseException | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client may well hang up
            self.errors.append(error)


def vader(handler: Handler, batch: dict[str, Any]) -> None:
    """Do as ``textenv reward serve --reward vader`` does."""
    handler.reply({"scores": Vader()(**{name: batch[name] for name in ("prompts", "completions", "completion_ids")})})


def lengths(handler: Handler, batch: dict[str, Any]) -> None:
    handler.reply({"scores": [len(text) for text in batch["completions"]]})


def after(failures: list[Answer]) -> Answer:
    """Fail in these ways, one after the other, then answer."""
    left = iter(failures)

    def answer(handler: Handler, batch: dict[str, Any]) -> None:
        next(left, lengths)(handler, batch)

    return answer


def status(code: int, body: Any = b"", **headers: str) -> Answer:
    return lambda handler, batch: handler.reply(body, code, **headers)


def drop(sent: bytes) -> Answer:
    """Send some bytes and close the connection."""

    def answer(handler: Handler, batch: dict[str, Any]) -> None:
        handler.wfile.write(sent)
        handler.close_connection = True

    return answer


def run(reward: Reward, *completions: str, **columns: Any) -> list[float]:
    ids = [list(completion.encode()) for completion in completions]
    return list(reward(prompts=["p"] * len(ids), completions=list(completions), completion_ids=ids, **columns))


@pytest.fixture
def start() -> Iterator[Callable[[Answer], Server]]:
    """Start servers; at the end each is closed, and must have met with no error of its own."""
    servers: list[tuple[Server, threading.Thread]] = []

    def started(answer: Answer) -> Server:
        server = Server(answer)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return server

    yield started
    for server, _ in servers:
        server.over.set()
    _http_client.connections(os.getpid()).close()  # or its connections would keep the servers' threads
    _http_client.connections.cache_clear()
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
        assert server.errors == []


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds it would have waited; it doesn't, and the jitter is the same every time."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(_http_client, "_pause", pause)
    monkeypatch.setattr(_http_client, "_jitter", random.Random(0))
    return waited


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class TestContract(RewardContract):
    @pytest.fixture(autouse=True)
    def _server(self, start: Callable[[Answer], Server]) -> None:
        self.url = start(vader).url

    def make_reward(self) -> Reward:
        return make({"name": "http", "url": self.url, "batch_size": 4})

    def test_scores_as_the_reward_behind_it(self, reward: Reward) -> None:
        assert self.score(reward) == self.score(Vader())


class TestRequests:
    def test_send_what_the_documentation_says(self, start: Callable[[Answer], Server]) -> None:
        server = start(lengths)
        batch: Any = {"prompts": ["a", "b"], "completions": ["é", "\udc00 "], "completion_ids": [[1, 2], [3]]}
        assert Http(server.url)(**batch, label=[1, None]) == [1, 2]
        assert server.batches == [{**batch, "columns": {"label": [1, None]}}]
        assert server.headers[0]["content-type"] == "application/json"

    def test_no_texts_are_not_sent(self, start: Callable[[Answer], Server]) -> None:
        server = start(lengths)
        assert run(Http(server.url)) == []
        assert server.batches == []

    @pytest.mark.parametrize(("names", "sent"), [(None, ["a", "b"]), (["b"], ["b"]), ([], [])])
    def test_columns(self, names: list[str] | None, sent: list[str], start: Callable[[Answer], Server]) -> None:
        server = start(lengths)
        run(Http(server.url, columns=names), "x", a=[1], b=[[2.5, "two"]])
        assert sorted(server.batches[0]["columns"]) == sent

    def test_a_column_that_is_not_there(self) -> None:
        with pytest.raises(TextEnvError, match=r"columns \['c'\], but the prompts have \['a', 'b'\]"):
            run(Http("http://127.0.0.1:1", columns=["a", "c"]), "x", a=[1], b=[2])

    @pytest.mark.parametrize("value", [object(), float("nan"), b"bytes", {1, 2}])
    def test_a_column_that_json_cannot_hold(self, value: Any) -> None:
        with pytest.raises(TextEnvError, match=r"cannot send its columns, \['good', 'bad'\], as JSON"):
            run(Http("http://127.0.0.1:1"), "x", good=[1], bad=[value])

    def test_arrays_become_lists(self, start: Callable[[Answer], Server]) -> None:
        import numpy as np

        server = start(lengths)
        ids = np.array([[1, 2]])
        Http(server.url)(prompts=["p"], completions=["x"], completion_ids=ids, a=[np.arange(2)], b=np.ones(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert server.batches[0]["completion_ids"] == [[1, 2]]
        assert server.batches[0]["columns"] == {"a": [[0, 1]], "b": [1.0]}

    def test_speak_the_language_of_openrlhf(self, start: Callable[[Answer], Server]) -> None:
        server = start(lambda handler, batch: handler.reply({"rewards": [0.5, -1], "scores": ["?"], "extra_logs": {}}))
        reward = Http(server.url, protocol="openrlhf", columns=["answer"])
        assert run(reward, "x", "y", answer=["4", None], other=[object()] * 2) == [0.5, -1.0]
        assert run(Http(server.url, protocol="openrlhf"), "x", "y", answer=["4", None]) == [0.5, -1.0]
        assert server.batches == [
            {"query": ["px", "py"], "prompts": ["p", "p"], "labels": ["4", None]},
            {"query": ["px", "py"], "prompts": ["p", "p"], "labels": [None, None]},
        ]

    def test_hold_at_most_a_batch_and_the_answers_keep_their_order(self, start: Callable[[Answer], Server]) -> None:
        server = start(lengths)
        texts = ["x" * (place * 7 % 23) for place in range(23)]
        assert run(Http(server.url, batch_size=4, concurrency=3), *texts) == [len(text) for text in texts]
        assert sorted(len(batch["completions"]) for batch in server.batches) == [3, 4, 4, 4, 4, 4]

    def test_as_many_at_once_as_allowed_and_no_more(self, start: Callable[[Answer], Server]) -> None:
        # Three must be there at once, or the barrier breaks; each then waits for the one that was sent after it.
        barrier = threading.Barrier(3, timeout=60)
        answered = [threading.Event() for _ in range(9)]

        def backwards(handler: Handler, batch: dict[str, Any]) -> None:
            place = int(batch["completions"][0])
            barrier.wait()
            if place % 3 != 2:
                assert answered[place + 1].wait(60)
            handler.reply({"scores": [place]})
            answered[place].set()

        server = start(backwards)
        assert run(Http(server.url, batch_size=1, concurrency=3), *map(str, range(9))) == list(range(9))
        assert server.peak == 3

    def test_one_at_a_time(self, start: Callable[[Answer], Server]) -> None:
        server = start(lengths)
        run(Http(server.url, batch_size=1, concurrency=1), *"abcde")
        assert server.peak == 1
        assert [batch["completions"] for batch in server.batches] == [["a"], ["b"], ["c"], ["d"], ["e"]]

    def test_a_failure_waits_for_no_other_and_sends_nothing_more(self, start: Callable[[Answer], Server]) -> None:
        def answer(handler: Handler, batch: dict[str, Any]) -> None:
            if batch["completions"] == ["1"]:
                handler.reply({"detail": "no"}, 400)
            else:
                handler.server.over.wait(60)
                handler.close_connection = True

        server = start(answer)
        with pytest.raises(TextEnvError, match="HTTP 400 Bad Request"):
            run(Http(server.url, batch_size=1, concurrency=2), *map(str, range(9)))
        assert len(server.batches) <= 3


class TestRetries:
    @pytest.mark.parametrize(
        "failure",
        [
            status(500),
            status(503, b"<html>busy</html>"),
            status(429),
            drop(b""),
            drop(b"HTTP/1.1 200 OK\r\nContent-Le"),
            drop(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"scores": [1'),
        ],
        ids=["500", "503", "429", "no answer", "half a head", "half a body"],
    )
    def test_fails_and_recovers(self, failure: Answer, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        server = start(after([failure, failure]))
        assert run(Http(server.url), "abc") == [3.0]
        assert len(server.batches) == 3
        assert server.batches[0] == server.batches[2]
        assert len(pauses) == 2

    def test_pauses_double_up_to_a_limit_less_a_random_part(
        self, start: Callable[[Answer], Server], pauses: list[float]
    ) -> None:
        server = start(after([status(500)] * 6))
        run(Http(server.url, retries=6, backoff=1.0, max_wait=10.0), "x")
        drawn = random.Random(0)
        assert pauses == [most * (1 - drawn.random() / 2) for most in (1, 2, 4, 8, 10, 10)]

    @pytest.mark.parametrize("code", [429, 503])
    def test_waits_as_long_as_the_server_asks(
        self, code: int, start: Callable[[Answer], Server], pauses: list[float]
    ) -> None:
        soon = email.utils.formatdate(time.time() + 40, usegmt=True)
        wishes = ["7", soon, "0", "soon", "-3", "Wed, 21 Oct 2015 07:28:00 -0000"]
        server = start(after([status(code, Retry_After=wish) for wish in wishes]))
        run(Http(server.url, retries=6, backoff=0.0), "x")
        assert pauses[0] == 7.0
        assert 0 < pauses[1] <= 40  # however long the test took
        assert pauses[2:] == [0.0] * 4

    @pytest.mark.parametrize("wish", ["61", "9" * 400])
    def test_does_not_wait_for_ever(self, wish: str, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        server = start(status(429, Retry_After=wish))
        with pytest.raises(TextEnvError, match=r"told to wait (61|inf) s \(HTTP 429.*max_wait=60"):
            run(Http(server.url), "x")
        assert (len(server.batches), pauses) == (1, [])

    def test_a_server_that_fails_for_ever(self, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        server = start(status(503, b"out of memory"))
        with pytest.raises(TextEnvError) as caught:
            run(Http(server.url, retries=2), "x")
        for part in (server.url, "in 3 tries", "HTTP 503 Service Unavailable", "out of memory", "retries=2"):
            assert part in str(caught.value)
        assert len(server.batches) == 3
        assert len(pauses) == 2

    def test_a_server_that_stalls(self, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        def stall(handler: Handler, batch: dict[str, Any]) -> None:
            handler.server.over.wait(60)
            handler.close_connection = True

        server = start(stall)
        with pytest.raises(TextEnvError, match=r"in 2 tries .* no whole answer within timeout=0.1 s"):
            run(Http(server.url, timeout=0.1, retries=1), "x")
        assert len(pauses) == 1

    @pytest.mark.parametrize(
        ("begin", "drop"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
            (b"HTTP/1.1 200 OK\r\nX-Name: ", b"a"),
            (b"HTTP/1.1 200 OK\r\n", b"X-Name: a\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n", b" "),
        ],
        ids=["body", "chunks", "a header", "headers", "continue", "a flood of continue", "another encoding"],
    )
    def test_a_server_that_drips(self, begin: bytes, drop: bytes, start: Callable[[Answer], Server]) -> None:
        closed = threading.Event()

        def drip(handler: Handler, batch: dict[str, Any]) -> None:
            handler.close_connection = True
            try:
                handler.wfile.write(begin)
                while not handler.server.over.wait(0.01):
                    handler.wfile.write(drop)
            except ConnectionError:
                closed.set()
                raise

        server = start(drip)
        if b"gzip" in begin:  # it need not be read to know that it is of no use
            with pytest.raises(TextEnvError, match="answered with a body in the encoding 'gzip'"):
                run(Http(server.url, retries=0), "x")
        else:
            with pytest.raises(TextEnvError, match=r"no whole answer within timeout=0.2 s|RemoteProtocolError"):
                run(Http(server.url, timeout=0.2, retries=0), "x")
        assert closed.wait(60), "the connection is still open"

    def test_an_interrupt_gives_up_what_is_asked(self, start: Callable[[Answer], Server]) -> None:
        begun, closed = threading.Barrier(3, timeout=60), threading.Event()

        def stall(handler: Handler, batch: dict[str, Any]) -> None:
            handler.close_connection = True
            begun.wait()
            try:
                ended = handler.connection.recv(1) == b""
            except ConnectionError:  # closed with a reset
                ended = True
            if ended:
                closed.set()

        def interrupt() -> None:
            begun.wait()
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        server = start(stall)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run(Http(server.url, batch_size=1, concurrency=2, timeout=3600), "a", "b", "c", "d")
        thread.join()
        assert closed.wait(60)
        assert len(server.batches) == 2

    def test_nobody_there(self, pauses: list[float]) -> None:
        url = f"http://127.0.0.1:{closed_port()}/score"
        with pytest.raises(TextEnvError, match=rf"{url}.* in 6 tries .*ConnectError.*textenv reward serve"):
            run(Http(url), "x")
        assert len(pauses) == 5

    def test_something_that_does_not_speak_http(self, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        with pytest.raises(TextEnvError, match="RemoteProtocolError"):
            run(Http(start(drop(b"SSH-2.0-OpenSSH_9.7\r\n")).url, retries=0), "x")

    def test_each_is_logged(
        self, start: Callable[[Answer], Server], pauses: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        run(Http(start(after([status(500, b"oops")])).url), "x")
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "oops" in record.getMessage()
        assert "try 2 of 6" in record.getMessage()

    def test_the_global_generator_is_left_alone(self, start: Callable[[Answer], Server]) -> None:
        before = random.getstate()
        run(Http(start(after([status(500)])).url, backoff=0.0), "x")
        assert random.getstate() == before


BOMB = gzip.compress(gzip.compress(bytes(2**28)))  # 256 MiB

NONSENSE: dict[str, tuple[Answer, str]] = {
    "empty": (status(200, b""), "no JSON"),
    "no content": (status(204), "no JSON"),
    "page": (status(200, b"<html>Welcome to nginx!</html>"), "no JSON .*Welcome to nginx"),
    "not utf-8": (status(200, b'{"scores": ["\xff"]}'), "no JSON"),
    "deep": (status(200, b"[" * 100_000), "no JSON"),
    "long integer": (status(200, b'{"scores": [' + b"9" * 5000 + b"]}"), "no JSON"),
    "list": (status(200, [1.0]), "no list 'scores'"),
    "null": (status(200, None), "no list 'scores'"),
    "error document": (status(200, {"error": "model not loaded"}), "no list 'scores' .*model not loaded"),
    "one number": (status(200, {"scores": 1.0}), "no list 'scores'"),
    "too few": (status(200, {"scores": []}), "0 scores"),
    "too many": (status(200, {"scores": [1, 2]}), "2 scores"),
    "nan": (status(200, b'{"scores": [NaN]}'), "nan as number 0"),
    "infinity": (status(200, b'{"scores": [-Infinity]}'), "-inf as number 0"),
    "beyond float32": (status(200, b'{"scores": [1e39]}'), r"1e\+39 as number 0"),
    "beyond float64": (status(200, b'{"scores": [1e999]}'), "inf as number 0"),
    "large integer": (status(200, {"scores": [10**400]}), "1000.* as number 0"),
    "none": (status(200, {"scores": [None]}), "None as number 0"),
    "text": (status(200, {"scores": ["1.0"]}), "'1.0' as number 0"),
    "bool": (status(200, {"scores": [True]}), "True as number 0"),
    "nested": (status(200, {"scores": [[1.0]]}), "an array or object as number 0"),
    "huge": (status(200, b" " * (16 * 2**20 + 1)), "more than 16 MiB"),
    "not gzip": (status(200, b'{"scores": [1]}', Content_Encoding="gzip"), "a body in the encoding 'gzip'"),
    "bomb": (status(200, BOMB, Content_Encoding="gzip, gzip"), "a body in the encoding 'gzip, gzip'"),
    "other encoding": (status(200, b'{"scores": [1]}', Content_Encoding="br"), "a body in the encoding 'br'"),
}


class TestNonsense:
    @pytest.mark.parametrize("name", NONSENSE)
    def test_is_refused_at_once(self, name: str, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        answer, said = NONSENSE[name]
        server = start(answer)
        with pytest.raises(TextEnvError, match=f"answered with {said}.*Expected") as caught:
            run(Http(server.url), "x")
        assert server.url in str(caught.value)
        assert len(str(caught.value)) < 1500
        assert (len(server.batches), pauses) == (1, [])

    @pytest.mark.parametrize("code", [200, 400, 500])
    def test_nothing_is_unpacked(self, code: int, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        server = start(status(code, BOMB, Content_Encoding="gzip, gzip"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(TextEnvError):
            run(Http(server.url, retries=1), "x")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB: half of what the body holds

    def test_an_identity_is_no_encoding(self, start: Callable[[Answer], Server]) -> None:
        assert run(Http(start(status(200, {"scores": [2]}, Content_Encoding="Identity")).url), "x") == [2.0]

    @pytest.mark.parametrize("code", [400, 401, 404, 413, 422])
    def test_a_refusal_is_told_and_not_tried_again(
        self, code: int, start: Callable[[Answer], Server], pauses: list[float]
    ) -> None:
        server = start(status(code, {"detail": "prompts: too long"}))
        with pytest.raises(TextEnvError, match=rf"refused the request: HTTP {code} .*prompts: too long"):
            run(Http(server.url), "x")
        assert (len(server.batches), pauses) == (1, [])

    @pytest.mark.parametrize("code", [301, 302, 307, 308])
    def test_a_redirect_is_not_followed(self, code: int, start: Callable[[Answer], Server]) -> None:
        elsewhere = start(lengths)
        server = start(status(code, Location=elsewhere.url))
        with pytest.raises(TextEnvError, match=rf"is redirected \(HTTP {code}"):
            run(Http(server.url), "x")
        assert elsewhere.batches == []

    def test_a_long_error_page_is_shortened(self, start: Callable[[Answer], Server], pauses: list[float]) -> None:
        with pytest.raises(TextEnvError) as caught:
            run(Http(start(status(500, b"x" * (17 * 2**20))).url, retries=0), "x")
        assert len(str(caught.value)) < 1500


class TestSecrets:
    @pytest.fixture(autouse=True)
    def _token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REWARD_TOKEN", TOKEN)

    def test_come_from_the_environment(self, start: Callable[[Answer], Server]) -> None:
        server = start(lengths)
        reward = Http(server.url, headers={"Authorization": "Bearer ${REWARD_TOKEN}", "X-Cost": "$5"})
        assert run(reward, "x") == [1.0]
        assert server.headers[0]["authorization"] == f"Bearer {TOKEN}"
        assert server.headers[0]["x-cost"] == "$5"

    @pytest.mark.parametrize("headers", [{"X-Key": "${REWARD_TOKEN}"}, {"Authorization": f"Bearer {TOKEN}"}, {}])
    @pytest.mark.parametrize("code", [200, 401, 500])
    def test_are_shown_nowhere(
        self,
        headers: dict[str, str],
        code: int,
        start: Callable[[Answer], Server],
        pauses: list[float],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG, "textenv")
        server = start(lambda handler, batch: handler.reply(f"{handler.path} {handler.headers}", code))
        reward = Http(f"{server.url}?key={TOKEN}", headers=headers, retries=1)
        with pytest.raises(TextEnvError) as caught:
            run(reward, "x")
        assert "***" in str(caught.value)
        logged = [record.getMessage() for record in caplog.records if record.name.startswith("textenv")]
        assert len(logged) == (code == 500)
        for text in (str(caught.value), repr(reward), *logged):
            assert TOKEN not in text

    def test_do_not_travel_with_the_reward(self) -> None:
        reward = Http("http://127.0.0.1:1", headers={"X-Key": "${REWARD_TOKEN}"})
        assert TOKEN.encode() not in pickle.dumps(reward)
        assert pickle.loads(pickle.dumps(reward)) == copy.deepcopy(reward) == reward

    @pytest.mark.parametrize("value", ["", None])
    def test_a_variable_that_is_not_set(self, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REWARD_TOKEN") if value is None else monkeypatch.setenv("REWARD_TOKEN", value)
        with pytest.raises(TextEnvError, match="needs the environment variable 'REWARD_TOKEN'"):
            Http("http://127.0.0.1:1", headers={"X-Key": "${REWARD_TOKEN}"})

    @pytest.mark.parametrize("bad", ["{}\n", "{}\nX-Evil: 1", " {}", "{}é", "{}\0"])
    def test_a_value_that_no_header_can_hold(self, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if "\0" not in bad:  # which no variable can hold either
            monkeypatch.setenv("REWARD_TOKEN", bad.format(TOKEN))
        for value in ["${REWARD_TOKEN}\n", bad.format(TOKEN)]:
            with pytest.raises(TextEnvError, match="the value of 'X-Key'") as caught:
                Http("http://127.0.0.1:1", headers={"X-Key": value})
            assert TOKEN not in str(caught.value)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"url": "127.0.0.1:8900"}, "expected an address"),
            ({"url": "ftp://host/score"}, "expected an address"),
            ({"url": "http:///score"}, "expected an address"),
            ({"url": "http://host:99999999/"}, "expected an address"),
            ({"url": ""}, "expected an address"),
            ({"url": None}, "expected an address"),
            ({"url": f"http://me:{TOKEN}@host/"}, "a user or a password.*Authorization"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"batch_size": True}, "batch_size=True"),
            ({"concurrency": 1.5}, "concurrency=1.5"),
            ({"retries": -1}, "retries=-1"),
            ({"timeout": 0}, "timeout=0.*above 0"),
            ({"timeout": "60"}, "timeout='60'"),
            ({"backoff": float("inf")}, "backoff=inf"),
            ({"max_wait": -1}, "max_wait=-1.*at least 0"),
            ({"protocol": "trl"}, "protocol='trl'.*'textenv', 'openrlhf'"),
            ({"columns": "label"}, "columns='label'.*expected a list, each item a text"),
            ({"columns": [1]}, "expected a list, each item a text"),
            ({"tokenizer": "bundled"}, "protocol='textenv' sends conversations as messages"),
            ({"tokenizer": "bundled", "protocol": "openrlhf"}, "has no chat template"),
            ({"tokenizer": "/nowhere", "protocol": "openrlhf"}, "tokenizer='/nowhere': no such folder"),
            ({"tokenizer": "", "protocol": "openrlhf"}, "tokenizer=''"),
            ({"columns": ["a", "b"], "protocol": "openrlhf"}, "one at most"),
            ({"headers": ["X-Key"]}, "a mapping"),
            ({"headers": {"X Key": "1"}}, "'X Key' is not a header"),
            ({"headers": {"Content-Length": "7"}}, "leave it out"),
            ({"headers": {"X-Key": 1}}, "'X-Key' is not a header"),
            ({"headers": {"X-Key": "${MY-KEY}"}}, "begins no"),
        ],
        ids=str,
    )
    def test_are_checked(self, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(TextEnvError, match=said) as caught:
            make({"name": "http", "url": "http://127.0.0.1:8900/score", **arguments})
        assert TOKEN not in str(caught.value)

    def test_without_httpx_the_message_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "httpx", None)
        with pytest.raises(TextEnvError, match=r"pip install 'textenv\[web\]'"):
            Http("http://127.0.0.1:8900/score")

    def test_a_proxy_does_not_stand_before_this_machine(
        self, start: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
        monkeypatch.setenv("NO_PROXY", "")
        server = start(lengths)
        for host in ("127.0.0.1", "localhost"):
            assert run(Http(server.url.replace("127.0.0.1", host), retries=0), "x") == [1.0]
        with pytest.raises(TextEnvError, match="ConnectError"):
            run(Http("http://reward.invalid/", retries=0), "x")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"detail": "no \\"label\\""}', 'no "label"'),
        (b'{"detail": [1]}', '{"detail": [1]}'),
        (b"two\r\n lines\x1b[31m", "two lines [31m"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"", ""),
    ],
    ids=str,
)
def test_a_body_as_people_read_it(body: bytes, shown: str) -> None:
    assert excerpt(message_of(body)) == shown


def test_in_an_environment_it_scores_as_the_local_one(start: Callable[[Answer], Server], tmp_path: Path) -> None:
    rewards = ["vader", {"name": "http", "url": start(vader).url}]
    envs = [gymnasium.make("textenv/MovieReview-v0", reward=reward, max_new_tokens=6) for reward in rewards]
    spec = envs[1].spec
    assert spec is not None
    again = gymnasium.make(EnvSpec.from_json(spec.to_json()))
    played = [play(env) for env in (*envs, again)]
    assert played[0] == played[1] == played[2]
    assert any(score != 0 for score in played[0])


def play(env: gymnasium.Env[Any, Any]) -> list[float]:
    """Return the scores of some episodes of random words; the environment is closed."""
    scores = []
    env.action_space.seed(5)
    for seed in range(8):
        env.reset(seed=seed)
        over, info = False, dict[str, Any]()
        while not over:
            _, _, over, _, info = env.step(env.action_space.sample())
        scores.append(info["score"])
    env.close()
    return scores


@pytest.mark.slow
def test_after_a_fork_both_sides_have_connections_of_their_own(start: Callable[[Answer], Server]) -> None:
    server = start(lengths)
    program = f"""
import os, sys
from textenv.rewards import Http
reward = Http({server.url!r}, batch_size=1, retries=0)
def ask():
    return reward(prompts=["p"] * 4, completions=["a", "bb", "ccc", ""], completion_ids=[[1]] * 4)
assert ask() == [1, 2, 3, 0]
child = os.fork()
for _ in range(20):
    assert ask() == [1, 2, 3, 0]
if child == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(server.batches) == 4 * 41
