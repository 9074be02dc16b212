"""JSON over HTTP to one server: many requests at once, a time limit, and every failure as one line."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from textenv.data.files import parse_json, to_json
from textenv.types import TextEnvError, short

__all__ = ["KEY_VARIABLE", "JsonClient"]

KEY_VARIABLE = "TEXTENV_ENGINE_KEY"
"""Environment variable with the key that a server asks for; it is sent as a bearer token, and is in no message."""

_AT_ONCE = 256
"""Requests at a time; the server puts what is running together into batches."""
_MOST_BYTES = 2**30


class JsonClient:
    """Asks one server.

    Attributes:
        label: The server's name and address, for messages.
    """

    def __init__(self, name: str, url: str, *, timeout: float) -> None:
        """Take an address; nothing is sent yet.

        Args:
            name: What the server is.
            url: Its address, without the paths of its requests.
            timeout: Seconds without a byte of an answer after which a request is given up.

        Raises:
            TextEnvError: It is no such address.
        """
        expected = "expected an address like 'http://127.0.0.1:8000', without '/v1'."
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise TextEnvError(f"rollout_engine_url={url!r}: {error}; {expected}") from None
        if parts.username is not None or parts.password is not None:
            raise TextEnvError(
                "rollout_engine_url holds a user or a password, which would be written down with the settings. Set "
                f"{KEY_VARIABLE} to the server's key instead."
            )
        base = parts.path.rstrip("/")
        if parts.scheme not in {"http", "https"} or not host or base.endswith("/v1") or parts.query or parts.fragment:
            raise TextEnvError(f"rollout_engine_url={url!r}: {expected}")
        self.label = f"{name} at {url}"
        self._secure, self._host, self._port, self._base = parts.scheme == "https", host, port, base
        self._timeout = timeout
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def get(self, path: str) -> Any:
        """Return what the server answers to a request without a body; see ``post``."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """Return what the server answers, as the value of its JSON; None for an empty answer.

        Raises:
            TextEnvError: It cannot be reached, does not answer in time, refuses the request, or answers with no JSON.
        """
        return self._ask("POST", path, body)

    def post_all(self, path: str, bodies: Sequence[Any]) -> list[Any]:
        """Return the answers to several requests, which are sent at once; if one fails, the others are given up."""
        threads = ThreadPoolExecutor(min(len(bodies), _AT_ONCE) or 1, thread_name_prefix="textenv-engine")
        try:
            return [future.result() for future in [threads.submit(self.post, path, body) for body in bodies]]
        except BaseException:
            self.give_up()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def give_up(self) -> None:
        """End the requests that wait for an answer, so that their threads do."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def unexpected(self, path: str, answer: Any, expected: str) -> TextEnvError:
        """Return the error for an answer that is of another form."""
        return TextEnvError(
            f"{self.label} answered {path} with {short(answer)}; expected {expected}. Is it the engine that "
            "rollout_engine names, in a version that the documentation lists?"
        )

    def _ask(self, method: str, path: str, body: Any) -> Any:
        headers = {"accept": "application/json", "content-type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            if not re.fullmatch(r"[!-~]+", key):
                raise TextEnvError(f"The environment variable {KEY_VARIABLE}: expected printable ASCII without spaces.")
            headers["authorization"] = f"Bearer {key}"
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        with self._lock:
            self._open.add(connection)
        try:
            connection.request(method, self._base + path, None if body is None else to_json(body), headers)
            response = connection.getresponse()
            content, status = response.read(_MOST_BYTES), f"HTTP {response.status} {response.reason}".strip()
        except TimeoutError:
            raise TextEnvError(
                f"{self.label} gave no answer to {path} within rollout_engine_timeout={self._timeout:g} s. Raise it if "
                "the server needs longer, or look into the server's log."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise TextEnvError(
                f"{self.label} cannot be reached ({reason}). Is the server up, and is this its address?"
            ) from None
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if response.status != http.client.OK:
            raise TextEnvError(f"{self.label} refused {method} {path}: {status}: {_message_of(content)}")
        return parse_json(content, f"What {self.label} answered to {path}") if content.strip() else None


def _message_of(content: bytes) -> str:
    """Return what a server says of its refusal, in one line, from one of the forms that such servers have."""
    try:
        found = parse_json(content, "")
    except TextEnvError:
        found = content.decode(errors="replace")
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    text = " ".join(str(found).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
