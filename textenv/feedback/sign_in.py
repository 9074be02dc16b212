"""Who is signed in on the labeling page: signed cookies and tokens, the password, and one browser for each name."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from textenv.feedback.annotators import is_program
from textenv.feedback.store import FeedbackStore
from textenv.types import TextEnvError

__all__ = [
    "Session",
    "SignIns",
    "Signer",
    "check_password",
    "made_password",
    "no_session",
    "only_here",
    "owner_key",
    "page_key",
]

_MONTH = 30 * 24 * 3600
_SHORTEST_PASSWORD = 8
_MOST_FAILURES = 20  # wrong passwords a minute, from all browsers together
_MOST_NAMES = 200  # new names that one run of the server accepts


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session.

    Attributes:
        id: A random id.
        name: The name that the browser signed in with; "" before it did.
        signed_out: How often that annotator had signed out before: when they do so again, the session has ended.
    """

    id: str
    name: str = ""
    signed_out: int = 0


def no_session() -> Session:
    """Return a new session in which nobody is signed in."""
    return Session(secrets.token_hex(16))


class Signer:
    """Signs cookies and tokens with the store's key, and checks them, so that only this store's page can make them."""

    def __init__(self, key: bytes) -> None:
        """Keep the key."""
        self._key = key
        self.cookie = f"textenv_{hashlib.sha256(key).hexdigest()[:8]}"  # servers on other ports get the same cookies

    def sign(self, *parts: str | int) -> str:
        """Return the signature of a sequence of texts and numbers."""
        return hmac.new(self._key, json.dumps(parts, allow_nan=False).encode(), hashlib.sha256).hexdigest()[:32]

    def token(self, session: Session) -> str:
        """Return the token that a session's forms have to send."""
        return self.sign("form", session.id, session.name)

    def session(self, request: Request) -> Session:
        """Return the session in a request's cookie; a new one if there is no cookie that was signed here."""
        with contextlib.suppress(ValueError):  # includes binascii.Error and UnicodeDecodeError
            number, name, signed_out, signature = request.cookies.get(self.cookie, "").split(".")
            session = Session(number, base64.urlsafe_b64decode(name).decode(), int(signed_out))
            if hmac.compare_digest(signature.encode(), self._of(session).encode()):
                return session
        return no_session()

    def remember(self, response: Response, session: Session) -> None:
        """Set the cookie that holds a session."""
        name = base64.urlsafe_b64encode(session.name.encode()).decode()
        value = f"{session.id}.{name}.{session.signed_out}.{self._of(session)}"
        response.set_cookie(self.cookie, value, max_age=_MONTH, httponly=True, samesite="strict")

    def numbers(self, kind: str, session: Session, *numbers: int) -> str:
        """Return a token that stands for numbers, and that only this annotator can use."""
        return "-".join((*map(str, numbers), self.sign(kind, session.name, *numbers)))

    def read_numbers(self, kind: str, session: Session, token: str) -> tuple[int, ...]:
        """Return the numbers that a token stands for.

        Raises:
            HTTPException: It was not made here, or for another annotator.
        """
        if re.fullmatch(r"(?:\d{1,18}-){1,2}[0-9a-f]{32}", token, re.ASCII):
            numbers = tuple(map(int, token.split("-")[:-1]))
            if hmac.compare_digest(token, self.numbers(kind, session, *numbers)):
                return numbers
        raise HTTPException(404, "There is no such page for you. It may have been meant for somebody else.")

    def _of(self, session: Session) -> str:
        return self.sign("session", session.id, session.name, session.signed_out)


class SignIns:
    """Decides who is signed in: a name belongs to one browser until it signs out, or is inactive for a while."""

    def __init__(self, store: FeedbackStore, signer: Signer, password: str, seconds: float) -> None:
        """Start with nobody signed in; a name is free again after ``seconds`` without a request."""
        self._store, self._signer, self._password, self._seconds = store, signer, password, seconds
        self._lock = threading.Lock()
        self._here: dict[str, tuple[str, float]] = {}  # by name: the session's id, and the time of its last request
        self._failures: deque[float] = deque(maxlen=_MOST_FAILURES)
        self._new = 0

    def session(self, request: Request) -> Session:
        """Return the session of a request; ``no_session`` if it has ended, or if another browser has its name."""
        session = self._signer.session(request)
        if not session.name:
            return session
        over = self._store.signed_out(self._store.annotator(session.name)) != session.signed_out
        return no_session() if over or not self._take(session) else session

    def sign_in(self, name: str, password: str, before: Session, *, owner: bool) -> Session:
        """Sign an annotator in; the owner under any name, without a password.

        Args:
            name: The annotator's name.
            password: What was typed as the password.
            before: The browser's session so far.
            owner: Whether the browser has the owner's key.

        Raises:
            HTTPException: The password is wrong, or the name is a program's or in use in another browser.
        """
        if not owner:
            self._check_password(password)
            if is_program(self._store, name):
                raise HTTPException(403, f"{name!r} is the name of a program. Give another one.")
            self._check_number(name)
        annotator = self._store.annotator(name)
        session = Session(secrets.token_hex(16), name, self._store.signed_out(annotator))
        if not self._take(session, instead_of=before.id, always=owner):
            raise HTTPException(
                409,
                f"{name!r} is signed in in another browser. Sign out there, wait {self._seconds:g} seconds after it "
                "was closed, or give another name.",
            )
        return session

    def sign_out(self, session: Session) -> None:
        """End this session and every earlier one with the same name."""
        if session.name:
            self._store.sign_out(self._store.annotator(session.name))
            with self._lock:
                self._here.pop(session.name, None)

    def _take(self, session: Session, *, instead_of: str = "", always: bool = False) -> bool:
        with self._lock:
            now = time.monotonic()
            holder, seen = self._here.get(session.name, (session.id, now))
            if holder not in (session.id, instead_of) and now - seen < self._seconds and not always:
                return False
            self._here[session.name] = (session.id, now)
            return True

    def _check_password(self, password: str) -> None:
        if not self._password:
            return
        with self._lock:
            now = time.monotonic()
            if len(self._failures) == _MOST_FAILURES and now - self._failures[0] < 60:
                raise HTTPException(429, "There were too many wrong passwords. Wait a minute, and try again.")
            if not hmac.compare_digest(password.encode(), self._password.encode()):
                self._failures.append(now)
                raise HTTPException(403, "The password is wrong. Ask whoever runs this page for it.")

    def _check_number(self, name: str) -> None:
        if any(annotator.name == name for annotator in self._store.annotators()):
            return
        with self._lock:
            if self._new >= _MOST_NAMES:
                raise HTTPException(
                    429, f"{_MOST_NAMES} new names were taken already. Ask whoever runs this page to start it again."
                )
            self._new += 1


def check_password(password: str) -> None:
    """Check that a password is long enough, or empty for none.

    Raises:
        TextEnvError: It is too short.
    """
    if password and len(password) < _SHORTEST_PASSWORD:
        raise TextEnvError(f"The password has {len(password)} characters: expected at least {_SHORTEST_PASSWORD}.")


def page_key(store: str | Path) -> bytes:
    """Return the key that signs a store's cookies and forms, from the file beside it, which is made if it is missing.

    Since the key is in a file, a page that is open in a browser can still be submitted after a restart of the server.

    Args:
        store: The store's file; the key is in ``<store>.key``, which only its owner can read.

    Returns:
        32 random bytes.

    Raises:
        TextEnvError: The file cannot be read or written, or holds something else.
    """
    path = Path(f"{store}.key")
    try:
        if not path.exists():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # only the owner can read it
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(secrets.token_hex(32))
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):  # another server has made a key meanwhile, which is used
                    os.link(temporary, path)
            finally:
                os.unlink(temporary)
        key = bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise TextEnvError(
            f"{path}: expected the key of the labeling page ({error}). Delete the file to have a new one made."
        ) from error
    if len(key) != 32:
        raise TextEnvError(f"{path} holds {len(key)} bytes: expected a key of 32. Delete the file to have one made.")
    return key


def owner_key(key: bytes) -> str:
    """Return the owner's key, for the owner's figures (``/state?owner=…``) and for any name (``/?owner=…``)."""
    return Signer(key).sign("owner")


def made_password(key: bytes) -> str:
    """Return a password of 80 bits that is derived from the store's key."""
    letters = base64.b32encode(hmac.new(key, b"password", hashlib.sha256).digest()).decode().lower()
    return "-".join(letters[start : start + 4] for start in range(0, 16, 4))


def only_here(host: str) -> bool:
    """Return whether a server that listens on this host can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # another name, or "", which means all addresses
