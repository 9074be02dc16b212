"""Scores that are computed elsewhere, by a server."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from textenv.rewards._require import require
from textenv.types import TextEnvError

__all__ = ["Http"]

_MOST_BYTES = 16 * 2**20  # of an answer: half a million scores
_SHOWN = 500  # characters of an answer in a message
_LARGEST = float(np.finfo(np.float32).max)  # the environment keeps scores in float32
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[!-~]([ -~\t]*[!-~])?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # neither the global generator, which people seed, nor a state that forks share


@dataclass(frozen=True, slots=True, repr=False)
class Http:
    """Scores from a server: a reward model on another machine, in another language, on its own version of torch.

    ``textenv reward serve`` is such a server, and this is all that one has to do. It is sent UTF-8 JSON with at most
    ``batch_size`` texts, several requests at once::

        POST /score
        {"prompts": ["The film", "A plot"], "completions": [" was great.", " to forget."],
         "completion_ids": [[373, 1049, 13], [284, 6044, 13]], "columns": {"reference": ["...", "..."]}}

    and answers with as many finite numbers, in the same order; it may add other keys::

        200 OK
        {"scores": [0.62, -0.23]}

    ``completion_ids`` are the policy's tokens, the end-of-sequence token included; a server with a tokenizer of its own
    reads the texts. ``columns`` holds the prompts' other columns, ``{}`` if there are none. A request may come more
    than once: a score must depend on nothing but what it holds. What goes wrong is told by the status, and in words in
    the body: 429 and 5xx are tried again, after ``Retry-After`` at the earliest; other 4xx are not. These too are not
    tried again: a redirect, and an answer of any other shape. ``GET /health``, which this class doesn't use, answers
    ``{"reward": "..."}``, for people and load balancers.

    ``protocol="openrlhf"`` asks a server made for OpenRLHF's ``--remote_rm_url``: ``{"query": [prompt + completion,
    ...], "prompts": [...], "labels": [...]}``, answered by ``{"rewards": [...]}``.

    The n-th try after the first comes ``min(max_wait, backoff * 2**(n - 1))`` seconds later, of which a random part,
    half at most, is taken off, so that many environments don't come back all at once (Brooker, 2015: *Exponential
    Backoff And Jitter*).

    Attributes:
        url: Where to post to, such as ``"http://127.0.0.1:8900/score"``. Without a user and a password: these are a
            header, ``Authorization``. What follows a ``?`` isn't shown in messages.
        headers: Further headers. ``${NAME}`` in a value stands for an environment variable, read with every batch, so
            that a token needn't be written down: ``{"Authorization": "Bearer ${REWARD_TOKEN}"}``. Not shown in
            messages.
        columns: Names of the prompts' columns to send; all unless given. With ``protocol="openrlhf"`` one at most, the
            labels, which are null unless given.
        protocol: ``"textenv"`` or ``"openrlhf"``.
        batch_size: Texts in a request.
        concurrency: Requests at once.
        timeout: Seconds that a try may take in all, from looking up the server's name to the end of its answer.
        retries: Tries after the first.
        backoff: Seconds before the first of them, at most.
        max_wait: Seconds between two tries, at most. A server that asks for more with ``Retry-After`` is given up.

    Raises:
        TextEnvError: If an argument is out of range, a variable isn't set, or ``httpx`` is not installed; when it is
            called, if there is no answer in the end, or one that holds no scores.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    protocol: Literal["textenv", "openrlhf"] = "textenv"
    batch_size: int = 64
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 0.5
    max_wait: float = 60.0

    def __post_init__(self) -> None:
        _check_url(self.url)
        for name, least in (("batch_size", 1), ("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TextEnvError(f"Http({name}={value!r}): expected a whole number, at least {least}.")
        for name, zero in (("timeout", False), ("backoff", True), ("max_wait", True)):
            value = getattr(self, name)
            if not _is_finite(value) or value < 0 or (value == 0 and not zero):
                raise TextEnvError(f"Http({name}={value!r}): expected seconds, {'at least' if zero else 'above'} 0.")
        if self.protocol not in ("textenv", "openrlhf"):
            raise TextEnvError(f"Http(protocol={self.protocol!r}): expected 'textenv' or 'openrlhf'.")
        given: Any = self.columns
        if given is not None:
            if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(c, str) for c in given):
                raise TextEnvError(f"Http(columns={given!r}): expected a list of names of the prompts' columns.")
            if self.protocol == "openrlhf" and len(given) > 1:
                raise TextEnvError(f"Http(columns={given!r}): protocol='openrlhf' sends one at most, as the labels.")
            object.__setattr__(self, "columns", tuple(given))
        if not isinstance(self.headers, Mapping):
            raise TextEnvError("Http(headers=...): expected a mapping of names to texts.")
        object.__setattr__(self, "headers", dict(self.headers))
        self._filled_headers()

    def __repr__(self) -> str:
        """Return the address: a query or the headers may hold secrets."""
        return f"Http(url={self.url.partition('?')[0]!r})"

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return the server's ``n`` scores."""
        sent = self._sent_columns(columns)
        requests = []
        for start in range(0, len(completions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            cells = {name: values[rows] for name, values in sent.items()}
            body = self._body(prompts[rows], completions[rows], completion_ids[rows], cells)
            requests.append(_Request(body, len(completions[rows])))
        connections = _connections(os.getpid())
        answers = connections.run(self._ask_all(connections.client, requests))
        return [score for answer in answers for score in answer]

    def _sent_columns(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        if self.columns is None:
            return {} if self.protocol == "openrlhf" else dict(columns)
        if missing := [name for name in self.columns if name not in columns]:
            raise TextEnvError(
                f"{self!r} was told to send the columns {missing}, but the prompts have {sorted(columns) or 'none'}."
            )
        return {name: columns[name] for name in self.columns}

    def _body(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
    ) -> bytes:
        """Return a request's body; in ASCII, which can also write half of a surrogate pair."""
        cells = {name: list(values) for name, values in columns.items()}
        batch: dict[str, Any] = {"prompts": list(prompts)}
        if self.protocol == "openrlhf":
            batch["query"] = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
            (batch["labels"],) = cells.values() or ([None] * len(completions),)
        else:
            ids = [list(map(int, row)) for row in completion_ids]
            batch |= {"completions": list(completions), "completion_ids": ids, "columns": cells}
        try:
            return _dumps(batch)
        except (TypeError, ValueError, RecursionError) as error:
            raise TextEnvError(
                f"{self!r} cannot send its columns, {list(cells)}, as JSON ({error}). Choose others, columns=[...], or "
                "turn their values into texts, finite numbers or lists of these."
            ) from error

    async def _ask_all(self, client: Any, requests: Sequence[_Request]) -> list[list[float]]:
        """Send requests, ``concurrency`` at once; where one fails, the others are given up."""
        slots = asyncio.Semaphore(self.concurrency)

        async def ask(request: _Request) -> list[float]:
            async with slots:
                return await self._ask(client, request)

        asked = [asyncio.create_task(ask(request)) for request in requests]
        try:
            return await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, client: Any, request: _Request) -> list[float]:
        """Send a request until it is answered."""
        headers, secrets = self._filled_headers()
        began = time.monotonic()
        tried = 0
        while True:
            tried += 1
            outcome = await self._try(client, request, headers, secrets)
            if not isinstance(outcome, _Failure):
                return outcome
            if outcome.least_wait > self.max_wait:
                raise TextEnvError(
                    f"{self!r} was told to wait {outcome.least_wait:.0f} s ({outcome.reason}), longer than "
                    f"max_wait={self.max_wait:g}. Try later, raise max_wait, or send less at once: "
                    f"concurrency={self.concurrency}, batch_size={self.batch_size}."
                )
            if tried > self.retries:
                raise TextEnvError(
                    f"{self!r} gave no scores in {tried} tries and {time.monotonic() - began:.1f} s. The last one: "
                    f"{outcome.reason}. Is the server up, and is this its address? ('textenv reward serve' starts one.)"
                    f" If it needs longer, raise timeout={self.timeout:g} or retries={self.retries}, or send less at "
                    f"once: batch_size={self.batch_size}, concurrency={self.concurrency}."
                )
            most = min(self.max_wait, self.backoff * 2.0 ** min(tried - 1, 60))
            seconds = max(outcome.least_wait, most * (1 - _jitter.random() / 2))
            _log.warning("%r: %s; try %d of %d in %.1f s", self, outcome.reason, tried + 1, self.retries + 1, seconds)
            await _pause(seconds)

    async def _try(
        self, client: Any, request: _Request, headers: Mapping[str, str], secrets: Sequence[str]
    ) -> list[float] | _Failure:
        """Send a request once; return its scores, or why it is to be sent again.

        One deadline holds for all of it: a limit on each read would start again with every byte that a server drips.
        """
        httpx = _httpx()
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout),
                client.stream("POST", self.url, content=request.body, headers=headers, timeout=None) as response,
            ):
                encoding = response.headers.get("content-encoding", "").strip().lower()
                if is_plain := encoding in ("", "identity"):  # else it is not read: a few bytes may hold gigabytes
                    async for chunk in response.aiter_raw():
                        content += chunk
                        if len(content) > _MOST_BYTES:
                            break
        except TimeoutError:
            return _Failure(f"no whole answer within timeout={self.timeout:g} s")
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
            # Not the reason itself, which may quote a header.
            raise TextEnvError(f"{self!r} cannot send its request. Look at url and headers.") from None
        except httpx.TransportError as error:
            return _Failure(_excerpt(f"{type(error).__name__}: {error}", secrets))
        status = f"HTTP {response.status_code} {response.reason_phrase}".strip()

        def said() -> str:
            return f"{status}: {_excerpt(_message(bytes(content)), secrets)}".rstrip(". :")

        if response.status_code == 429 or response.status_code >= 500:
            return _Failure(said(), _retry_after(response.headers.get("retry-after", "")))
        if response.has_redirect_location:
            # The place itself may hold a secret, and a POST that follows it may become a GET.
            raise TextEnvError(f"{self!r} is redirected ({status}). Give the address that it leads to.")
        if not response.is_success:
            raise TextEnvError(
                f"{self!r} refused the request: {said()}. Look at its address, headers and columns; a request that was "
                "refused is not sent again."
            )
        if not is_plain:
            raise self._nonsense(f"a body in the encoding {_excerpt(encoding, secrets)!r}, not asked for", request)
        if len(content) > _MOST_BYTES:
            raise self._nonsense(f"more than {_MOST_BYTES // 2**20} MiB", request)
        return self._scores(bytes(content), request, said)

    def _scores(self, content: bytes, request: _Request, said: Callable[[], str]) -> list[float]:
        key = "rewards" if self.protocol == "openrlhf" else "scores"
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:  # also text that isn't UTF-8, and integers of 5,000 digits
            raise self._nonsense(f"no JSON ({said()})", request) from error
        scores = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise self._nonsense(f"no list {key!r} ({said()})", request)
        if len(scores) != request.texts:
            raise self._nonsense(f"{len(scores)} {key}", request)
        for place, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= _LARGEST:
                shown = _excerpt(repr(score)) if isinstance(score, str | int | float | None) else "an array or object"
                raise self._nonsense(f"{shown} as number {place} of its {key}", request)
        return [float(score) for score in scores]

    def _nonsense(self, what: str, request: _Request) -> TextEnvError:
        key = "rewards" if self.protocol == "openrlhf" else "scores"
        return TextEnvError(
            f"{self!r} answered with {what}. Expected {{{key!r}: [...]}} with {request.texts} finite float32 numbers, "
            "one for each text in their order. Is this the right address? help(textenv.rewards.Http) has the format."
        )

    def _filled_headers(self) -> tuple[dict[str, str], list[str]]:
        """Return the headers with their variables filled in, and the words in them that no message may show."""
        headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
        secrets = set(re.split("[?&=]", self.url.partition("?")[2]))
        for name, value in self.headers.items():
            if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or not isinstance(value, str):
                raise TextEnvError(f"Http(headers=...): the header {name!r} is none; expected a name and a text.")
            if name.lower() in {"content-length", "transfer-encoding"}:
                raise TextEnvError(f"Http(headers=...): {name!r} follows from what is sent; leave it out.")
            variables = _VARIABLE.findall(value)
            if value.count("${") != len(variables):
                raise TextEnvError(f"Http(headers=...): {name!r} has a '${{' that begins no '${{NAME}}' of a variable.")
            if unset := [variable for variable in variables if not os.environ.get(variable)]:
                raise TextEnvError(f"Http(headers=...): {name!r} needs the environment variable {unset[0]!r}; set it.")
            filled = _VARIABLE.sub(lambda match: os.environ[match[1]], value)
            if not _HEADER_VALUE.fullmatch(filled):
                raise TextEnvError(
                    f"Http(headers=...): the value of {name!r} is empty, holds a character that a header cannot hold, "
                    "or has a space or line break at an end. Expected printable ASCII."
                )
            headers[name.lower()] = filled
            secrets |= {filled, *filled.split(), *(os.environ[variable] for variable in variables)}
        return headers, sorted((secret for secret in secrets if len(secret) > 3), key=len, reverse=True)


class _Request(NamedTuple):
    """``texts`` texts as JSON."""

    body: bytes
    texts: int


class _Failure(NamedTuple):
    """Why a try failed that is worth another, and how many seconds the server asked to wait."""

    reason: str
    least_wait: float = 0.0


def _httpx() -> Any:
    return require("httpx", user="http", install="textenv[web]")


class _Connections:
    """The connections that all rewards of a process share, and a thread with the event loop that they live in.

    In an event loop, whatever a request waits for can be given up at once: at its deadline, or when the program is
    interrupted. No redirects are followed, and proxies that the environment names, but never to this machine itself.
    """

    def __init__(self) -> None:
        httpx = _httpx()
        own = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = httpx.AsyncClient(mounts=own, limits=limits)
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="textenv-reward", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine returns; where this is interrupted, so is the coroutine."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing if it is done

    def close(self) -> None:
        if self._process != os.getpid() or self._loop.is_closed():  # after a fork, the thread is the parent's alone
            return
        self.run(self.client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@cache
def _connections(process: int) -> _Connections:
    """Return the connections of a process: they are no use to both sides of a fork."""
    connections = _Connections()
    atexit.register(connections.close)
    return connections


def _check_url(url: object) -> None:
    httpx = _httpx()
    expected = "expected an address like 'http://127.0.0.1:8900/score'."
    if not isinstance(url, str):
        raise TextEnvError(f"Http(url={url!r}): {expected}")
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise TextEnvError(f"Http(url=...): {error}; {expected}") from None
    if parts.userinfo:
        raise TextEnvError(
            "Http(url=...) holds a user or a password, which would be written down with the settings. Use a header: "
            "headers={'Authorization': 'Basic ${NAME}'}, NAME being an environment variable."
        )
    if parts.scheme not in {"http", "https"} or not parts.host or not 0 < (parts.port or 80) < 2**16:
        raise TextEnvError(f"Http(url={url.partition('?')[0]!r}): {expected}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    """Turn arrays, tensors and their scalars into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")


def _message(content: bytes) -> str:
    """Return what a body says to people: its ``detail``, where FastAPI and others put it, or all of it."""
    try:
        detail = json.loads(content)["detail"]
    except (ValueError, TypeError, LookupError, RecursionError):
        detail = None
    return detail if isinstance(detail, str) else content.decode("utf-8", "replace")


def _excerpt(text: str, secrets: Sequence[str] = ()) -> str:
    """Return the text on one line, without the secrets, which a server may repeat, shortened."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _SHOWN])
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _retry_after(value: str) -> float:
    """Return the seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3), 0 if it says nothing sensible."""
    if re.fullmatch(r"[0-9]+", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)
