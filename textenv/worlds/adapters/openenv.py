"""Environments that an OpenEnv server plays: ``openenv:URL``."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textenv.types import TextEnvError, short
from textenv.validation import Positive, validate
from textenv.worlds.adapters._require import require

__all__ = ["OpenEnv"]


class _SessionLostError(TextEnvError):
    """A session that had been open is no longer."""


@dataclass
class OpenEnv:
    """A client of an OpenEnv server: a session of its own on the server's socket ``/ws``.

    The server's addresses ``/reset`` and ``/step`` make a new environment with each request, so that no episode can be
    played by them. A server plays for as many rows as its ``max_concurrent_envs`` allows, which is 1 by default.

    Prompts' columns go to the server's ``reset``. OpenEnv knows no truncation: every end is a termination, and a step
    without a reward pays 0.

    Attributes:
        url: The server's address, such as ``"http://127.0.0.1:8000"``.
        action: Field of the server's action that takes the text; None for the only one that is a text.
        observation: Field of its observation that is read, a text or messages; None for the only one that is a text.
        timeout: Seconds that an answer may take.
    """

    url: str
    action: str | None = None
    observation: str | None = None
    timeout: Positive = 30.0

    _session: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False, repr=False)
    _socket: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings, and look for the library; the server is asked with the first episode."""
        validate(self)
        if not self.url.startswith(("http://", "https://")):
            raise TextEnvError(f"The world 'openenv:{self.url}': expected an address such as 'http://127.0.0.1:8000'.")
        self.url = self.url.rstrip("/")
        how = {"world": f"openenv:{self.url}", "install": "textenv[openenv]"}
        self._client = require("websockets.sync.client", **how)
        self._closed = require("websockets.exceptions", **how).ConnectionClosed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, in a new session where the last one has ended."""
        self._find_fields()
        data = {**(options or {}), **({} if seed is None else {"seed": seed})}
        try:
            found = self._ask("reset", data)
        except _SessionLostError:  # a server closes sessions that are idle for long
            found = self._ask("reset", data)
        return self._said(found), found

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a turn."""
        found = self._ask("step", {str(self.action): action})
        said = self._said(found)
        reward = found.get("reward")
        return said, 0.0 if reward is None else float(reward), bool(found.get("done")), False, found

    def close(self) -> None:
        """End the session."""
        socket, self._socket = self._socket, None
        if socket is not None:
            with contextlib.suppress(Exception):
                socket.send(json.dumps({"type": "close"}, allow_nan=False))
        with contextlib.suppress(Exception):
            self._session.close()

    def _ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message, and return what the server answers.

        Raises:
            TextEnvError: It cannot be reached or answers with an error.
        """
        had_session = self._socket is not None
        try:
            if self._socket is None:
                address = "ws" + self.url.removeprefix("http")
                connection = self._client.connect(f"{address}/ws", open_timeout=self.timeout, max_size=None)
                self._socket = self._session.enter_context(connection)
            with contextlib.suppress(self._closed):  # it may have said why before it closed
                self._socket.send(json.dumps({"type": kind, "data": dict(data)}, allow_nan=False))
            answer = json.loads(self._socket.recv(timeout=self.timeout))
        except Exception as error:
            self.close()
            lost = had_session and not isinstance(error, (TimeoutError, TypeError, ValueError))
            raise (_SessionLostError if lost else TextEnvError)(
                f"The OpenEnv server {self.url} did not answer {kind} ({type(error).__name__}: {error}). Is it "
                "running, and does it take another session?"
            ) from error
        found = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(found, dict) or answer.get("type") != "observation":
            self.close()
            raise TextEnvError(f"The OpenEnv server {self.url} answered {kind} with {short(answer)}.")
        return found

    def _said(self, found: Mapping[str, Any]) -> Any:
        seen = found.get("observation")
        if not isinstance(seen, Mapping) or self.observation not in seen:
            raise TextEnvError(
                f"The OpenEnv server {self.url} sent the observation {seen!r:.160}, which has no {self.observation!r}."
            )
        said = seen[self.observation]
        return "" if said is None else said

    def _find_fields(self) -> None:
        """Ask the server's schema which fields are texts, where they were not given."""
        if self.action is not None and self.observation is not None:
            return
        try:
            with urllib.request.urlopen(f"{self.url}/schema", timeout=self.timeout) as answer:
                schema = json.load(answer)
            if not isinstance(schema, dict):
                raise ValueError(f"it sends {schema!r:.80}")
        except (OSError, ValueError) as error:
            raise TextEnvError(
                f"The OpenEnv server {self.url} does not say what it takes ({error}); expected JSON at /schema. Is it "
                "running? Give the fields as 'action' and 'observation' if it has no schema."
            ) from error
        for kind in ("action", "observation"):
            if getattr(self, kind) is None:
                setattr(self, kind, _only_text(schema.get(kind, {}), kind, self.url))


def _only_text(schema: Mapping[str, Any], kind: str, url: str) -> str:
    """Return the only field of a JSON schema that is a text."""
    fields = {name: about for name, about in schema.get("properties", {}).items() if name != "metadata"}
    texts = [
        name
        for name, about in fields.items()
        if any(each.get("type") == "string" for each in (about, *about.get("anyOf", ())))
    ]
    if len(texts) != 1:
        raise TextEnvError(
            f"The {kind} of the OpenEnv server {url} has the fields {sorted(fields)}, of which {texts or 'none'} are "
            f"texts; say which one is meant: {{'name': 'openenv:{url}', {kind!r}: ...}}."
        )
    return str(texts[0])
