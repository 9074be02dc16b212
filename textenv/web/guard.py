"""Refuses requests that pages of other sites make, before the application of a server sees them."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from textenv.types import TextEnvError

try:
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.responses import PlainTextResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"A server needs starlette, which cannot be imported ({error}). Run: pip install 'textenv[web]'"
    ) from error

__all__ = ["HEADERS", "Guard", "is_media_type", "known_hosts"]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with "no-referrer", browsers send forms with the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer, which restrict what a browser does with it."""


class Guard:
    """Middleware that refuses foreign names and origins with status 403, and adds ``HEADERS`` to every answer.

    A page of another site can make this machine's browser ask here; by a name of its own that it points at this machine
    (DNS rebinding), it could even read the answer. So the name must be one of ours, and an origin must be that name.

    Args:
        app: The application.
        hosts: Names that it answers by, as ``known_hosts`` returns them.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                for name in ("etag", "last-modified"):  # they would show a labeler that a clip is the same as before
                    del headers[name]
            await send(message)

        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            await PlainTextResponse(refusal, 403)(scope, receive, sending)
        else:
            await self._app(scope, receive, sending)

    def _refusal(self, headers: Headers) -> str | None:
        host = headers.getlist("host")
        if len(host) != 1 or _hostname(host[0]) not in self._hosts:
            return f"This server does not answer by the name {', '.join(host)!r}; --allow-host adds names."
        for origin in headers.getlist("origin"):
            if origin.partition("://")[2].lower() != host[0].lower():
                return f"A page of {origin!r} may not ask here."
        return None


def known_hosts(hosts: Sequence[str]) -> frozenset[str]:
    """Return the names that a server answers by: ``hosts``, ``localhost`` and the machine's own loopback addresses."""
    return frozenset({"localhost", "127.0.0.1", "::1", *(host.strip("[]").lower() for host in hosts)})


def is_media_type(content_type: str, expected: str) -> bool:
    """Tell whether a ``Content-Type`` header names a media type, whatever its parameters and case."""
    return content_type.partition(";")[0].strip().lower() == expected


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
