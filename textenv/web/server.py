"""Run a web application until a signal ends it, with limits for clients that send a request slowly or never whole.

uvicorn sets no limit on how long a client may take to send a request, and none on how many connections are open. Here
both have one, so that clients that connect and send nothing cannot keep others from connecting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from textenv.types import TextEnvError

try:
    import h11
    import uvicorn
    from starlette.types import ASGIApp
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"A server needs uvicorn, which cannot be imported ({error}). Run: pip install 'textenv[web]'"
    ) from error

__all__ = ["Limits", "make_server", "serve"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of what a client may use.

    Attributes:
        header_seconds: From the connection, or the answer before, to the end of a request's headers.
        body_seconds: From there to the end of its body.
        write_seconds: For the client to read a part of the answer.
        idle_seconds: Before a connection is closed on which nothing more is asked.
        connections: Open at once. For one more, the one that has kept the server waiting for its request longest is
            closed; if every request is whole and being answered, the new one.
        grace_seconds: That requests have to finish after a signal.

    Raises:
        TextEnvError: If one is not above 0.
    """

    header_seconds: float = 10.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    idle_seconds: int = 5
    connections: int = 256
    grace_seconds: int = 10

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 < getattr(self, name) < float("inf"):
                raise TextEnvError(f"Limits({name}={getattr(self, name)!r}): expected a finite number above 0.")


def make_server(app: ASGIApp | Callable[..., Any], limits: Limits | None = None) -> uvicorn.Server:
    """Return a server of an application, not yet running; ``run(sockets=[...])`` runs it.

    Args:
        app: The ASGI application.
        limits: Of what a client may use; None for the defaults.
    """
    limits = limits or Limits()
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        ws="none",
        log_config=None,  # its own closes the handlers of others, and absl's, which rouge brings, closes stderr with it
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.grace_seconds,
    )
    return _Server(config, limits)


def serve(
    app: ASGIApp | Callable[..., Any],
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    limits: Limits | None = None,
) -> None:
    """Serve an application until SIGINT or SIGTERM; requests that are being answered then are finished.

    The signal is then raised again, so that it does what it does anywhere else.

    Args:
        app: The ASGI application.
        host: Address to listen at.
        port: Port to listen at; 0 for one that is free.
        announce: Called with the address, such as ``http://127.0.0.1:8900``, once the server listens.
        limits: Of what a client may use; None for the defaults.

    Raises:
        TextEnvError: The address cannot be listened at.
    """
    if not 0 <= port < 2**16:  # for these, create_server raises and leaves a socket open
        raise TextEnvError(f"Cannot listen at port {port}; expected one from 0 to 65535.")
    server = make_server(app, limits)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=server.config.backlog)
    except OSError as error:
        raise TextEnvError(
            f"Cannot listen at host {host!r}, port {port} ({error}). Give another port, or an address of this machine."
        ) from error
    # Signals are noted from here on: one that raised while the event loop is being made would leave it half made.
    with listener, server.capture_signals():
        bound = listener.getsockname()[1]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends the process some seconds after a signal if a thread of the application goes on then."""

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._limits = limits
        self._exit: threading.Timer | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        before = set(threading.enumerate())
        try:
            super().run(sockets)
        finally:
            if self._exit is not None and not _go_on(set(threading.enumerate()) - before):
                self._exit.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._exit is None:
            # A thread that computes cannot be cancelled, and the interpreter would wait for it.
            self._exit = threading.Timer(self._limits.grace_seconds + 2, _exit_at_once, [sig])
            self._exit.daemon = True
            self._exit.start()
        super().handle_exit(sig, frame)


def _go_on(threads: Iterable[threading.Thread]) -> bool:
    """Tell whether a thread that the interpreter would wait for still runs; one that is ending gets a second."""
    deadline = time.monotonic() + 1.0
    for thread in threads:
        if not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return True
    return False


def _exit_at_once(sig: int) -> None:
    _log.error("A request did not end within the time that it had after %s.", signal.Signals(sig).name)
    os._exit(128 + sig)


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with the limits on it: what a server makes one instance of for each connection."""

    class Protocol(_LimitedProtocol):
        allowed = limits

    return Protocol


class _LimitedProtocol(H11Protocol):
    allowed: Limits
    _waiting: str = ""  # for "header" or "body" of a request; "" while one is being answered
    _since: float = 0.0
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _request: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.allowed.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timers()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.allowed.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch(self) -> None:
        """Start the time of what the client has to send next; that it sends a part of it does not start it again."""
        states = {h11.IDLE: "header", h11.SEND_BODY: "body"}
        waiting = "" if self.transport.is_closing() else states.get(self.conn.their_state, "")
        request = self.cycle  # another request is another wait
        if waiting == self._waiting and request is self._request:
            return
        self._waiting, self._request, self._since = waiting, request, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if waiting:
            seconds = self.allowed.header_seconds if waiting == "header" else self.allowed.body_seconds
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _make_room(self) -> None:
        # Those without a request first, then those with a part of one: "header" > "body".
        late = [one for one in self.connections if isinstance(one, _LimitedProtocol) and one._waiting]
        others = [one for one in late if one is not self]
        oldest = min(others, key=lambda one: (one._waiting != "header", one._since), default=self)
        self.connections.discard(oldest)
        oldest.transport.abort()

    def _unset_timers(self) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None
