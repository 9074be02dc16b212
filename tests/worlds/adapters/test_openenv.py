"""A client of OpenEnv, against a server that speaks as OpenEnv's does; ``examples/openenv_world.py`` asks that one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError
from textenv.testing import WorldContract
from textenv.worlds import find
from textenv.worlds.adapters.openenv import OpenEnv
from textenv.worlds.guess_number import GuessNumber

pytest.importorskip("websockets")

TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "action": {"properties": {"message": TEXT, "metadata": {"type": "object"}}},
    "observation": {
        "properties": {
            "done": {"type": "boolean"},
            "metadata": {"type": "object"},
            "said": {"anyOf": [TEXT, {"type": "null"}]},
            "turn": {"type": "integer"},
        }
    },
    "state": {},
}


class Server:
    """Plays ``guess_number``, one game a connection.

    Attributes:
        sessions: Those that it can still begin.
        columns: What ``reset`` has been given, of each.
    """

    def __init__(self, sessions: int) -> None:
        from websockets.sync.server import serve

        self.sessions, self.columns = threading.Semaphore(sessions), list[dict[str, Any]]()
        self.schema: Any = SCHEMA
        self._server = serve(self._play, "127.0.0.1", 0, process_request=self._answer_http)
        self._running = self._server.__enter__()
        self.url = f"http://127.0.0.1:{self._running.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._running.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.__exit__(None, None, None)
        self._running.shutdown()
        self._thread.join()

    def _answer_http(self, connection: Any, request: Any) -> Any:
        if request.path == "/schema":
            return connection.respond(HTTPStatus.OK, json.dumps(self.schema))
        return None if request.path == "/ws" else connection.respond(HTTPStatus.NOT_FOUND, "no")

    def _play(self, connection: Any) -> None:
        if not self.sessions.acquire(blocking=False):
            _send(connection, "error", message="Server at capacity", code="CAPACITY_REACHED")
            return
        try:
            self._answer(connection)
        finally:
            self.sessions.release()

    def _answer(self, connection: Any) -> None:
        world, turn = GuessNumber(), 0
        for message in map(json.loads, connection):
            data, done, reward = message.get("data", {}), False, None
            if message["type"] == "close" or data.get("message") == "hang up":
                break
            if message["type"] == "reset":
                self.columns.append({key: value for key, value in data.items() if key != "seed"})
                said, turn = world.reset(seed=data.get("seed"))[0], 0
            elif "message" not in data:
                _send(connection, "error", message="Invalid message", code="VALIDATION_ERROR")
                continue
            else:
                turn += 1
                said, reward, done, *_ = world.step(data["message"])
            seen: dict[str, Any] = {"said": said or None, "turn": turn, "metadata": {}}
            _send(connection, "observation", observation=seen, reward=reward, done=done or turn == 6)


def _send(connection: Any, kind: str, **data: Any) -> None:
    connection.send(json.dumps({"type": kind, "data": data}))


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server(sessions=8)
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.schema = SCHEMA
    running.columns.clear()
    return running


@pytest.fixture
def worlds() -> Iterator[list[OpenEnv]]:
    """Worlds that are closed after the test."""
    made: list[OpenEnv] = []
    yield made
    for world in made:
        world.close()


class TestOpenEnv(WorldContract):
    most_turns = 6
    texts = ("1", "4", "7", "none", "", "日本の猫 😀")

    @pytest.fixture(autouse=True)
    def _take(self, server: Server, worlds: list[OpenEnv]) -> None:
        self.server, self.worlds = server, worlds

    def make_world(self) -> OpenEnv:
        self.worlds.append(OpenEnv(self.server.url))
        return self.worlds[-1]

    def options(self) -> dict[str, Any]:
        return {"prompt": "Play.", "level": 3}


def test_an_episode(server: Server, worlds: list[OpenEnv]) -> None:
    name, make = find(f"openenv:{server.url}/")
    world: Any = make()
    worlds.append(world)
    assert name == f"openenv:{server.url}/"
    assert world.reset(seed=5, options={"level": 3})[0] == "Guess my number from 1 to 8.\n"
    assert server.columns == [{"level": 3}]
    assert (world.action, world.observation) == ("message", "said")
    other = GuessNumber()
    other.reset(seed=5)
    for guess in "12345678":
        said, reward, terminated, *_ = other.step(guess)
        assert world.step(guess)[:4] == (said, reward, terminated, False)
        if terminated:
            break


def test_an_observation_may_be_messages_and_fields_can_be_named(server: Server, worlds: list[OpenEnv]) -> None:
    server.schema = {}
    worlds.append(OpenEnv(server.url, action="message", observation="turn"))
    assert worlds[0].reset()[0] == 0  # which the environment refuses: it is no text
    with env_of_server(server, observation="turn") as env, pytest.raises(TextEnvError, match="said in reset is 0"):
        env.reset()


def test_a_session_that_was_lost_between_episodes_is_opened_again(server: Server, worlds: list[OpenEnv]) -> None:
    worlds.append(OpenEnv(server.url))
    first = worlds[0].reset(seed=1)[0]
    with pytest.raises(TextEnvError, match=rf"The OpenEnv server {server.url} did not answer step \(Connection"):
        worlds[0].step("hang up")
    assert worlds[0].reset(seed=1)[0] == first
    worlds[0]._socket.close()
    assert worlds[0].reset(seed=1)[0] == first


def test_a_server_that_plays_no_more_games_says_so() -> None:
    server = Server(sessions=1)
    worlds = [OpenEnv(server.url), OpenEnv(server.url)]
    try:
        worlds[0].reset(seed=0)
        with pytest.raises(TextEnvError, match=r"answered reset with .*at capacity.*CAPACITY_REACHED"):
            worlds[1].reset(seed=0)
    finally:
        for world in worlds:
            world.close()
        server.stop()


def env_of_server(server: Server, **settings: Any) -> Any:
    from tests.conftest import build_lm

    world = {"name": f"openenv:{server.url}", "action": "message", **settings}
    return env_of(build_lm(), world)


@pytest.mark.parametrize(
    ("schema", "settings", "message"),
    [
        (
            {"action": SCHEMA["action"], "observation": {"properties": {"a": TEXT, "b": TEXT}}},
            {},
            r"\['a', 'b'\] are t",
        ),
        ({"action": {}, "observation": SCHEMA["observation"]}, {}, r"has the fields \[\], of which none are texts"),
        ([], {}, r"does not say what it takes \(it sends \[\]\)"),
        (SCHEMA, {"observation": "board"}, "which has no 'board'"),
        (SCHEMA, {"action": "move"}, "answered step with .*Invalid message"),
    ],
)
def test_fields_that_cannot_be_told_are_asked_for(
    schema: Any, settings: dict[str, Any], message: str, server: Server, worlds: list[OpenEnv]
) -> None:
    server.schema = schema
    worlds.append(OpenEnv(server.url, **settings))
    with pytest.raises(TextEnvError, match=f"OpenEnv server {server.url}.*{message}"):  # noqa: PT012
        worlds[0].reset(seed=0)
        worlds[0].step("1")


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("127.0.0.1:8000", {}, "expected an address such as 'http://127.0.0.1:8000'"),
        ("ftp://127.0.0.1", {}, "expected an address"),
        ("http://127.0.0.1:1", {}, r"http://127.0.0.1:1 does not say what it takes .*Is it running\?"),
        ("http://127.0.0.1:1", {"action": "a", "observation": "b"}, r"did not answer reset \(.*Is it running"),
        ("http://127.0.0.1:1", {"timeout": 0}, "timeout=0: expected a finite number above 0"),
        ("http://127.0.0.1:1", {"action": 3}, "action=3: expected a text"),
    ],
)
def test_who_cannot_be_asked_is_one_line(url: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        find({"name": f"openenv:{url}", **settings})[1]().reset(seed=0)


def test_in_an_environment(server: Server, tiny_lm: CausalLM) -> None:
    passes_both_checkers(tiny_lm, f"openenv:{server.url}", max_new_tokens=2)
    with env_of(tiny_lm, f"openenv:{server.url}", kl_coef=0.0) as env:
        env.reset(seed=0)
        assert write(env, "none")[:3] == (0.0, False, False)
