"""What runs a web application: it outlasts clients that never finish, and ends in time."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from tests.waiting import wait_for
from textenv.rollouts.runtime import Stopped, stopped_by_signals
from textenv.types import TextEnvError
from textenv.web.server import Limits, make_server, serve

LONG = 100  # seconds: longer than a test takes


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body, or with many megabytes if the path asks for them."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    if scope["path"] == "/large":
        body = bytes(50_000_000)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, max(1, len(body)), 2**16):
        await send({"type": "http.response.body", "body": body[start : start + 2**16], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def running(app: Any = echo, **limits: Any) -> Iterator[tuple[str, int, Any]]:
    """Run an application until the block ends; yield its address, its port and its server."""
    given: dict[str, Any] = {"header_seconds": LONG, "body_seconds": LONG, "idle_seconds": LONG, "grace_seconds": 1}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(app, Limits(**{**given, **limits}))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            port = listener.getsockname()[1]
            yield f"http://127.0.0.1:{port}/", port, server
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(sent)
    return client


def is_closed(client: socket.socket) -> bool:
    """Wait until the server closes the connection, without a word."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        (b"", {"header_seconds": 0.2}),
        (b"POST / HTTP/1.1\r\nHost: x\r\nX-Y", {"header_seconds": 0.2}),
        (HEAD, {"body_seconds": 0.2}),
        (HEAD + b"ab", {"body_seconds": 0.2}),
        (HEAD + b"abcde", {"idle_seconds": 1}),
        (HEAD + b"abcde" + HEAD[:20], {"header_seconds": 0.2}),
        (HEAD + b"abcde" + HEAD + b"a", {"body_seconds": 0.2}),
    ],
    ids=["nothing", "half a head", "a head", "half a body", "one request", "and half a head", "and half a body"],
)
def test_a_client_that_stops_is_left(sent: bytes, limit: dict[str, Any]) -> None:
    with running(**limit) as (_, port, server), connect(port, sent) as client:
        if b"abcde" in sent:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            while client.recv(1000)[-5:] != b"abcde":
                pass
        assert is_closed(client)
        wait_for(lambda: not server.server_state.connections)


@pytest.mark.parametrize("begin", [b"POST / HTTP/1.1\r\nHost: x\r\nX-Y: ", HEAD.replace(b"5", b"5000")])
def test_one_that_drips_is_left_too(begin: bytes) -> None:
    with running(header_seconds=0.5, body_seconds=0.5) as (url, port, _), connect(port, begin) as client:
        client.settimeout(0.01)
        dripped, is_open = 0, True
        while is_open:
            try:
                client.sendall(b"a")
                dripped += 1
                is_open = client.recv(1) != b""
            except TimeoutError:
                pass
            except ConnectionError:
                is_open = False
        assert dripped > 1
        assert httpx.post(url, content=b"abc").content == b"abc"


def test_one_that_does_not_take_its_answer_is_left() -> None:
    with running(write_seconds=0.3) as (url, port, server), connect(port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(server.server_state.connections) == 1)
        wait_for(lambda: not server.server_state.connections)
        assert len(httpx.get(f"{url}large").content) == 50_000_000


def test_a_slow_application_is_waited_for() -> None:
    import asyncio

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(1)
            await echo(scope, receive, send)

    with running(slow, header_seconds=0.2, body_seconds=0.2, idle_seconds=1, write_seconds=0.2) as (url, _, _):
        assert httpx.post(url, content=b"abc").content == b"abc"


def test_half_open_connections_shut_nobody_out() -> None:
    with running(connections=8) as (url, port, server), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port, HEAD[: 3 * (place % 2)])) for place in range(40)]
        for _ in range(5):
            assert httpx.post(url, content=b"abc").content == b"abc"
        wait_for(lambda: len(server.server_state.connections) <= 8)
        assert is_closed(clients[0]), "the one that has waited longest"


def test_requests_that_are_being_answered_are_not_given_up_for_new_ones() -> None:
    import asyncio

    async def blocked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/wait":
                while not go_on.is_set():
                    await asyncio.sleep(0.01)
            await echo(scope, receive, send)

    go_on = threading.Event()
    wait = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(blocked, connections=2) as (url, port, server), connect(port, wait) as one, connect(port, wait) as two:
        wait_for(lambda: len(server.server_state.tasks) == 2)
        with pytest.raises(httpx.TransportError):
            httpx.get(url)
        go_on.set()
        for client in (one, two):
            assert client.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("name", ["header_seconds", "body_seconds", "write_seconds", "idle_seconds", "connections"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_limits_are_checked(name: str, value: Any) -> None:
    with pytest.raises(TextEnvError, match=f"Limits\\({name}="):
        Limits(**{name: value})


STUCK = """
import os, signal, sys, threading, time
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
import httpx
from textenv.web.server import Limits, serve

app = FastAPI()

@app.get("/")
async def stuck():
    await run_in_threadpool(time.sleep, 3600)

def ask(url):
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    try:
        httpx.get(url, timeout=None)
    except httpx.TransportError:
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))  # which waits for the thread that computes
serve(app, host="127.0.0.1", port=0, limits=Limits(grace_seconds=1),
      announce=lambda url: threading.Thread(target=ask, args=[url], daemon=True).start())
"""


@pytest.mark.slow
def test_a_request_that_never_ends_does_not_keep_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], check=False, timeout=200, capture_output=True)
    assert done.returncode == 128 + 15, done.stderr


def test_a_signal_before_the_server_runs_ends_it_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that raised while the event loop was being made left a traceback of asyncio's."""
    run = uvicorn.Server.run
    ran = []

    def signalled(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        signal.raise_signal(signal.SIGTERM)
        run(server, sockets)
        ran.append(server.started)

    monkeypatch.setattr(uvicorn.Server, "run", signalled)
    with pytest.raises(Stopped) as stopped, stopped_by_signals():
        serve(echo, host="127.0.0.1", port=0, announce=lambda url: None)
    assert ran == [True]
    assert stopped.value.number == signal.SIGTERM
    left = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and thread.is_alive()]
    for thread in left:
        thread.join(1)  # one that was called off is about to end
    assert not any(thread.is_alive() for thread in left), "a process that goes on would be ended some seconds later"
