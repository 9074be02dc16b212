"""The client of the reward ``http``: connections that a process shares, one deadline for each try, and retries.

The retries are written out rather than taken from a library: ``urllib3.Retry`` is synchronous and limits each read
instead of the whole try, and with ``tenacity`` the wait, the stop, the log and the last error, which all depend on the
server's ``Retry-After``, would each be a callback.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from textenv.rewards._http_format import (
    MOST_BYTES,
    ScoreRequest,
    bad_answer,
    excerpt,
    message_of,
    read_scores,
    retry_after,
)
from textenv.rewards._http_settings import HttpSettings, httpx
from textenv.types import TextEnvError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # neither the global generator, which people seed, nor a state that forks share


def fetch_scores(settings: HttpSettings, requests: Sequence[ScoreRequest]) -> list[list[float]]:
    """Send requests, ``concurrency`` at once, and return the scores of each.

    Raises:
        TextEnvError: One has no answer in the end, or one without scores.
    """
    shared = connections(os.getpid())
    return shared.run(_ask_all(settings, shared.client, requests))


class _Failure(NamedTuple):
    """A failed try that is worth another: why it failed, and how many seconds the server asked to wait."""

    reason: str
    least_wait: float = 0.0


async def _ask_all(settings: HttpSettings, client: Any, requests: Sequence[ScoreRequest]) -> list[list[float]]:
    """Send requests, ``concurrency`` at once; if one fails, the others are given up."""
    slots = asyncio.Semaphore(settings.concurrency)

    async def ask(request: ScoreRequest) -> list[float]:
        async with slots:
            return await _ask(settings, client, request)

    asked = [asyncio.create_task(ask(request)) for request in requests]
    try:
        return await asyncio.gather(*asked)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _ask(settings: HttpSettings, client: Any, request: ScoreRequest) -> list[float]:
    """Send a request until it is answered."""
    headers, secrets = settings.filled_headers()
    began = time.monotonic()
    tried = 0
    while True:
        tried += 1
        outcome = await _try(settings, client, request, headers, secrets)
        if not isinstance(outcome, _Failure):
            return outcome
        if outcome.least_wait > settings.max_wait or tried > settings.retries:
            raise _given_up(settings, outcome, tried, time.monotonic() - began)
        most = min(settings.max_wait, settings.backoff * 2.0 ** min(tried - 1, 60))
        seconds = max(outcome.least_wait, most * (1 - _jitter.random() / 2))
        _log.warning(
            "%r: %s; try %d of %d in %.1f s", settings, outcome.reason, tried + 1, settings.retries + 1, seconds
        )
        await _pause(seconds)


def _given_up(settings: HttpSettings, failure: _Failure, tried: int, seconds: float) -> TextEnvError:
    if failure.least_wait > settings.max_wait:
        return TextEnvError(
            f"{settings!r} was told to wait {failure.least_wait:.0f} s ({failure.reason}), longer than "
            f"max_wait={settings.max_wait:g}. Try later, raise max_wait, or send less at once: "
            f"concurrency={settings.concurrency}, batch_size={settings.batch_size}."
        )
    return TextEnvError(
        f"{settings!r} gave no scores in {tried} tries and {seconds:.1f} s. The last one: "
        f"{failure.reason}. Is the server up, and is this its address? ('textenv reward serve' starts one.)"
        f" If it needs longer, raise timeout={settings.timeout:g} or retries={settings.retries}, or send less at "
        f"once: batch_size={settings.batch_size}, concurrency={settings.concurrency}."
    )


async def _try(
    settings: HttpSettings, client: Any, request: ScoreRequest, headers: Mapping[str, str], secrets: Sequence[str]
) -> list[float] | _Failure:
    """Send a request once; return its scores, or why it is to be sent again.

    One deadline holds for the whole try. A limit on each read would start again with every byte from a slow server.
    """
    library = httpx()
    try:
        async with (
            asyncio.timeout(settings.timeout),
            client.stream("POST", settings.url, content=request.body, headers=headers, timeout=None) as response,
        ):
            content = await _body(response)
    except TimeoutError:
        return _Failure(f"no whole answer within timeout={settings.timeout:g} s")
    except (library.UnsupportedProtocol, library.LocalProtocolError):
        # The reason is left out because it may quote a header.
        raise TextEnvError(f"{settings!r} cannot send its request. Look at url and headers.") from None
    except library.TransportError as error:
        return _Failure(excerpt(f"{type(error).__name__}: {error}", secrets))
    return _outcome(settings, request, response, content, secrets)


def _encoding(response: Any) -> str:
    """Return how an answer is encoded; "" for not at all."""
    encoding = str(response.headers.get("content-encoding", "")).strip().lower()
    return "" if encoding == "identity" else encoding


async def _body(response: Any) -> bytes:
    """Read the body of an answer, up to a little more than ``MOST_BYTES``.

    An encoded body is not read, because a few bytes of it may decode to gigabytes.
    """
    content = bytearray()
    if not _encoding(response):
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MOST_BYTES:
                break
    return bytes(content)


def _outcome(
    settings: HttpSettings, request: ScoreRequest, response: Any, content: bytes, secrets: Sequence[str]
) -> list[float] | _Failure:
    """Return the scores of an answer, or why its request is to be sent again.

    Raises:
        TextEnvError: The request was refused, redirected, or answered without scores.
    """
    status = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    if response.has_redirect_location:
        # The new address is left out because it may hold a secret; it is not followed because a POST may become a GET.
        raise TextEnvError(f"{settings!r} is redirected ({status}). Give the address that it leads to.")
    said = f"{status}: {excerpt(message_of(content), secrets)}".rstrip(". :")
    if response.status_code == 429 or response.status_code >= 500:
        return _Failure(said, retry_after(response.headers.get("retry-after", "")))
    if not response.is_success:
        raise TextEnvError(
            f"{settings!r} refused the request: {said}. Look at its address, headers and columns; a request that was "
            "refused is not sent again."
        )
    if encoding := _encoding(response):
        shown = excerpt(encoding, secrets)
        raise bad_answer(settings, request, f"a body in the encoding {shown!r}, not asked for")
    if len(content) > MOST_BYTES:
        raise bad_answer(settings, request, f"more than {MOST_BYTES // 2**20} MiB")
    return read_scores(settings, request, content, said)


class Connections:
    """The connections that all rewards of a process share, and a thread that runs their event loop.

    In an event loop, whatever a request waits for can be given up at once: at its deadline, or when the program is
    interrupted. No redirects are followed. Proxies that the environment names are used, but not for this machine.
    """

    def __init__(self) -> None:
        library = httpx()
        own = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
        limits = library.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = library.AsyncClient(mounts=own, limits=limits)
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="textenv-reward", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine returns; if this thread is interrupted, the coroutine is cancelled."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing if it is done

    def close(self) -> None:
        """Close the connections and end the thread; does nothing in a fork, where the thread does not exist."""
        if self._process != os.getpid() or self._loop.is_closed():
            return
        self.run(self.client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@cache
def connections(process: int) -> Connections:
    """Return the connections of a process, which cannot be shared with a fork of it."""
    opened = Connections()
    atexit.register(opened.close)
    return opened


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)
