"""The labelling page: ``textenv label STORE``.

People compare completions or clips in a browser, several at once, by keys or by dragging. What they see tells nothing
of who wrote what: no policy, no number of an item, and no sign of a gold item or a repeated one. So the strengths of
the policies, and how often annotators agree with gold items, with each other and with themselves, are for the owner,
who has a link with a key: a judgement that can be undone would tell by how it moves them. Completions are text that may
be hostile, so nothing of them is ever run: everything is escaped, the browser is told to run our one script alone, and
requests that other sites make are refused.

Where other machines can reach the page, it asks for a password. A name is one browser's at a time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import tempfile
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from textenv.env.render import visible
from textenv.feedback.annotators import is_program
from textenv.feedback.figures import LiveFigures, blind_state, project_state
from textenv.feedback.store import Assignment, FeedbackStore, Verdict, annotator_name
from textenv.types import TextEnvError

try:
    import jinja2
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
    from starlette.exceptions import HTTPException  # what routing raises too
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"The labelling page needs fastapi, jinja2 and uvicorn, which cannot be imported ({error}). "
        "Run: pip install 'textenv[web]'"
    ) from error

from textenv.web import server as web_server
from textenv.web.guard import HEADERS, Guard, is_media_type, known_hosts

__all__ = ["create_app", "made_password", "only_here", "owner_key", "page_key", "serve"]

_log = logging.getLogger(__name__)
_WEB = Path(__file__).parent / "web"
_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_MEDIA = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".png": "image/png",  # animated ones too
}
_LARGEST_FORM = 64_000  # bytes
_LONGEST_NAME = 100
_LONGEST_NOTE = 4_000
_MONTH = 30 * 24 * 3600
_SHORTEST_PASSWORD = 8
_MOST_FAILURES = 20  # wrong passwords a minute, of all browsers together
_MOST_NAMES = 200  # new ones that are taken until the server is started again
_VERDICTS: dict[str, Verdict] = {"ranked": "ranked", "both_bad": "both_bad", "cant_tell": "cant_tell"}

_GUIDELINES = """\
Choose the better one: what a careful reader would rather have been given for this prompt.

- Read all of them to the end before you choose.
- Judge what is written, not how long it is.
- Use Tie if they are equally good, Both bad if none is of any use, and Can't tell if you cannot judge them.
- Say how sure you are where you can, and leave a note where something is odd.
"""


@dataclass(frozen=True, slots=True)
class _Session:
    """A browser: a random id, and the name that it signed in with, "" before it did.

    ``signed_out`` is how often that annotator had signed out before: when they do again, the session is over.
    """

    id: str
    name: str = ""
    signed_out: int = 0


def _nobody() -> _Session:
    return _Session(secrets.token_hex(16))


class _Signer:
    """Makes and checks what only this store's page can have made."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.cookie = f"textenv_{hashlib.sha256(key).hexdigest()[:8]}"  # ports of one host share their cookies

    def sign(self, *parts: str | int) -> str:
        return hmac.new(self._key, json.dumps(parts, allow_nan=False).encode(), hashlib.sha256).hexdigest()[:32]

    def token(self, session: _Session) -> str:
        return self.sign("form", session.id, session.name)

    def session(self, request: Request) -> _Session:
        """Return the session that a request's cookie says; a new one if it has none, or one that was not made here."""
        with contextlib.suppress(ValueError):  # binascii.Error and UnicodeDecodeError are such
            number, name, signed_out, signature = request.cookies.get(self.cookie, "").split(".")
            session = _Session(number, base64.urlsafe_b64decode(name).decode(), int(signed_out))
            if hmac.compare_digest(signature.encode(), self._of(session).encode()):
                return session
        return _nobody()

    def remember(self, response: Response, session: _Session) -> None:
        name = base64.urlsafe_b64encode(session.name.encode()).decode()
        value = f"{session.id}.{name}.{session.signed_out}.{self._of(session)}"
        response.set_cookie(self.cookie, value, max_age=_MONTH, httponly=True, samesite="strict")

    def numbers(self, kind: str, session: _Session, *numbers: int) -> str:
        """Return a token that stands for numbers, for this annotator alone."""
        return "-".join((*map(str, numbers), self.sign(kind, session.name, *numbers)))

    def read_numbers(self, kind: str, session: _Session, token: str) -> tuple[int, ...]:
        if re.fullmatch(r"(?:\d{1,18}-){1,2}[0-9a-f]{32}", token, re.ASCII):
            numbers = tuple(map(int, token.split("-")[:-1]))
            if hmac.compare_digest(token, self.numbers(kind, session, *numbers)):
                return numbers
        raise HTTPException(404, "There is no such page for you. It may have been meant for somebody else.")

    def _of(self, session: _Session) -> str:
        return self.sign("session", session.id, session.name, session.signed_out)


class _Door:
    """Decides who is signed in: a name is one browser's until that signs out, or gives no sign of life for a while."""

    def __init__(self, store: FeedbackStore, signer: _Signer, password: str, seconds: float) -> None:
        self._store, self._signer, self._password, self._seconds = store, signer, password, seconds
        self._lock = threading.Lock()
        self._here: dict[str, tuple[str, float]] = {}  # by name: the session, and when it was seen last
        self._failures: deque[float] = deque(maxlen=_MOST_FAILURES)
        self._new = 0

    def session(self, request: Request) -> _Session:
        """Return the session of a request; one of nobody if it is over, or if another browser has its name."""
        session = self._signer.session(request)
        if not session.name:
            return session
        over = self._store.signed_out(self._store.annotator(session.name)) != session.signed_out
        return _nobody() if over or not self._take(session) else session

    def sign_in(self, name: str, password: str, before: _Session, *, owner: bool) -> _Session:
        """Let an annotator in; the owner under any name, without a password."""
        if not owner:
            self._check_password(password)
            if is_program(self._store, name):
                raise HTTPException(403, f"{name!r} is the name of a program. Give another one.")
            self._check_number(name)
        annotator = self._store.annotator(name)
        session = _Session(secrets.token_hex(16), name, self._store.signed_out(annotator))
        if not self._take(session, instead_of=before.id, always=owner):
            raise HTTPException(
                409,
                f"{name!r} is signed in in another browser. Sign out there, wait {self._seconds:g} seconds after that "
                "was closed, or give another name.",
            )
        return session

    def sign_out(self, session: _Session) -> None:
        """End what this and every earlier browser was let in with under a name."""
        if session.name:
            self._store.sign_out(self._store.annotator(session.name))
            with self._lock:
                self._here.pop(session.name, None)

    def _take(self, session: _Session, *, instead_of: str = "", always: bool = False) -> bool:
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


Form = Mapping[str, list[str]]


def create_app(
    store: FeedbackStore,
    *,
    key: bytes,
    guidelines: str = "",
    hosts: Sequence[str] = (),
    lease_seconds: float = 600.0,
    password: str = "",
    clip_folders: Sequence[str | Path] = (),
) -> FastAPI:
    """Return the application: the page to compare on, and the page with the state of the project.

    Args:
        store: Where the work comes from and the judgements go; it stays the caller's to close.
        key: Signs cookies and forms; a page that is open outlives a restart if the next server has the same.
        guidelines: What the annotators are told: paragraphs, ``# headings`` and ``- lists``. Empty for a short text.
        hosts: Names that the page answers by, besides ``localhost`` and this machine's own loopback addresses.
        lease_seconds: How long a comparison, and a name, is one annotator's after the last sign of life.
        password: What to ask for at signing in; "" for nothing.
        clip_folders: Folders that clips may lie in, besides the store's own: a store that somebody else made must not
            show other pictures of this machine.

    Raises:
        TextEnvError: ``lease_seconds`` is not a positive number, or the password is too short.
    """
    if not (math.isfinite(lease_seconds) and lease_seconds > 0):
        raise TextEnvError(f"lease_seconds={lease_seconds}: expected a number of seconds above 0.")
    if password and len(password) < _SHORTEST_PASSWORD:
        raise TextEnvError(f"The password has {len(password)} characters: expected at least {_SHORTEST_PASSWORD}.")
    signer = _Signer(key)
    door = _Door(store, signer, password, lease_seconds)
    media_files = _MediaFiles([store.path.parent, *clip_folders])
    templates = _templates()
    figures = LiveFigures(store)
    told = list(_blocks(guidelines.strip() or _GUIDELINES))
    app = FastAPI(title="textenv label", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=known_hosts(hosts))

    def page(session: _Session, template: str, *, status: int = 200, here: str = "", **context: Any) -> Response:
        shown = templates.get_template(template).render(
            name=session.name, token=signer.token(session), here=here, **context
        )
        response = HTMLResponse(shown, status)
        signer.remember(response, session)
        return response

    def error_page(request: Request, status: int, heading: str, message: str) -> Response:
        return page(signer.session(request), "error.html", status=status, heading=heading, message=message)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return error_page(request, error.status_code, "That did not work", str(error.detail))

    @app.exception_handler(TextEnvError)
    async def unfit(request: Request, error: TextEnvError) -> Response:
        return error_page(request, 409, "That was not stored", str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _log.exception("The labelling page failed.", exc_info=error)
        response = error_page(
            request, 500, "Something went wrong", "Nothing was stored. Go back and send it again; the log says more."
        )
        response.headers.update(HEADERS)  # this handler is outside of the guard
        return response

    def posted(path: str) -> Callable[[Callable[[_Session, Form], Response]], None]:
        """Register what a form is sent to. None is read without the token that this browser was given."""

        def register(handle: Callable[[_Session, Form], Response]) -> None:
            async def endpoint(request: Request) -> Response:
                return await run_in_threadpool(checked, request, await _read_form(request))

            def checked(request: Request, form: Form) -> Response:
                session = door.session(request)
                if not hmac.compare_digest(_only(form, "token").encode(), signer.token(session).encode()):
                    raise HTTPException(
                        403, "This page is out of date, or was opened under another name. Open it again."
                    )
                return handle(session, form)

            app.add_api_route(path, endpoint, methods=["POST"])

        return register

    def is_owner(given: str) -> bool:
        return hmac.compare_digest(given.encode(), owner_key(key).encode())

    def undoes(session: _Session, annotator: int) -> str:
        """Return what the form to undo says: which judgement was the last when the page was made."""
        last = store.last_judgement(annotator)
        return "" if last is None else signer.numbers("judgement", session, last)

    def seen(annotator: int) -> dict[str, Any]:
        """Return what changes on an open page."""
        progress = store.progress(annotator)
        text = f"{progress.done:,} of {progress.wanted:,} judged"
        return {"done": progress.done, "wanted": progress.wanted, "text": text, "agreement": figures.agreement()}

    @app.get("/")
    def compare(request: Request, owner: str = "") -> Response:
        session = door.session(request)
        if not session.name:
            known = is_owner(owner)
            return page(session, "sign_in.html", here="label", asks=bool(password) and not known, owner=owner)
        annotator = store.annotator(session.name)
        assignment = store.lease(annotator, seconds=lease_seconds)
        now = seen(annotator)
        if assignment is None:
            return page(
                session,
                "done.html",
                here="label",
                progress=now,
                agreement=now["agreement"],
                undoes=undoes(session, annotator),
            )
        return page(
            session,
            "label.html",
            here="label",
            progress=now,
            agreement=now["agreement"],
            assignment=signer.numbers("assignment", session, assignment.id),
            undoes=undoes(session, annotator),
            prompt=assignment.prompt,
            clips=assignment.kind == "clip",
            items=_shown(assignment, lambda place: signer.numbers("media", session, assignment.id, place), media_files),
            guidelines=told,
            fresh=now["done"] == 0,
            lease_seconds=lease_seconds,
            alive_seconds=max(0.5, min(15.0, lease_seconds / 3)),
        )

    @posted("/sign-in")
    def sign_in(session: _Session, form: Form) -> Response:
        name = annotator_name(_only(form, "name"))
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise HTTPException(422, f"A name has 1 to {_LONGEST_NAME} letters, and no control characters.")
        owner = is_owner(_only(form, "owner", ""))
        return go_on(door.sign_in(name, _only(form, "password", ""), session, owner=owner))

    @posted("/sign-out")
    def sign_out(session: _Session, form: Form) -> Response:
        if form.get("assignment"):
            store.release(*signer.read_numbers("assignment", session, _only(form, "assignment")))
        door.sign_out(session)
        return go_on(_nobody())

    @posted("/judge")
    def judge(session: _Session, form: Form) -> Response:
        (assignment,) = signer.read_numbers("assignment", session, _only(form, "assignment"))
        verdict = _only(form, "verdict")
        if verdict not in _VERDICTS:
            raise HTTPException(422, f"verdict={verdict!r}: expected one of {', '.join(_VERDICTS)}.")
        ranks = _ranks(form.get("rank", []))
        if verdict != "ranked":
            ranks = [None] * len(ranks)
        store.judge(
            assignment,
            ranks,
            verdict=_VERDICTS[verdict],
            confidence=_confidence(_only(form, "confidence", "")),
            note=_note(_only(form, "note", "")),
            seconds=_seconds(_only(form, "seconds", "")),
        )
        return go_on(session)

    @posted("/undo")
    def undo(session: _Session, form: Form) -> Response:
        if session.name and (judgement := _only(form, "judgement")):
            (number,) = signer.read_numbers("judgement", session, judgement)
            store.undo(store.annotator(session.name), judgement=number, seconds=lease_seconds)
        return go_on(session)

    @posted("/alive")
    def alive(session: _Session, form: Form) -> Response:
        if not session.name:
            raise HTTPException(403, "Sign in first.")
        passed_on = ""
        if form.get("assignment"):
            numbers = signer.read_numbers("assignment", session, _only(form, "assignment"))
            try:
                store.renew(*numbers, seconds=lease_seconds)
            except TextEnvError as error:
                passed_on = f"{error} Reload the page to go on."
        return JSONResponse({**seen(store.annotator(session.name)), "passed_on": passed_on})

    def go_on(session: _Session) -> Response:
        response = RedirectResponse("/", 303)
        signer.remember(response, session)
        return response

    @app.get("/state")
    def state(request: Request, owner: str = "") -> Response:
        session = door.session(request)
        if is_owner(owner):
            return page(session, "state.html", here="state", owner=True, **project_state(store))
        if password and not session.name:
            return go_on(session)
        return page(session, "state.html", here="state", owner=False, **blind_state(store))

    @app.get("/media/{token}")
    def media(request: Request, token: str) -> Response:
        number, place = signer.read_numbers("media", door.session(request), token)
        path = media_files.of(store.assignment(number).items[place].path)
        if path is None:
            raise HTTPException(404, "The file of this clip cannot be found.")
        return FileResponse(path, media_type=_MEDIA[path.suffix.lower()])

    @app.get("/web/{name}")
    def web(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(_WEB / name, media_type=_FILES[name])

    return app


def serve(
    store: FeedbackStore,
    *,
    key: bytes,
    host: str = "127.0.0.1",
    port: int = 8901,
    guidelines: str = "",
    hosts: Sequence[str] = (),
    lease_seconds: float = 600.0,
    password: str = "",
    clip_folders: Sequence[str | Path] = (),
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until a signal ends it; requests that are being answered then are finished.

    Args:
        store: Where the work comes from and the judgements go.
        key: Signs cookies and forms; ``page_key`` keeps one beside the store.
        host: Address to listen at.
        port: Port to listen at; 0 for one that is free.
        guidelines: What the annotators are told.
        hosts: Other names that the page answers by, such as a proxy's.
        lease_seconds: How long a comparison, and a name, is one annotator's after the last sign of life.
        password: What to ask for at signing in; ``made_password`` makes one.
        clip_folders: Folders that clips may lie in, besides the store's own.
        announce: Told the address to open, once it can be.

    Raises:
        TextEnvError: The address cannot be listened at, or other machines could reach it and there is no password.
    """
    if not (password or only_here(host)):
        raise TextEnvError(f"Other machines can reach host {host!r}: expected a password, such as made_password(key).")
    app = create_app(
        store,
        key=key,
        guidelines=guidelines,
        hosts=[host, *hosts],
        lease_seconds=lease_seconds,
        password=password,
        clip_folders=clip_folders,
    )
    web_server.serve(app, host=host, port=port, announce=lambda address: announce(f"{address}/"))


def page_key(store: str | Path) -> bytes:
    """Return the key that signs a store's cookies and forms, from the file beside it, which is made if there is none.

    With it in a file, who has the page open can send it after a restart of the server.

    Args:
        store: The store's file; the key is in ``<store>.key``, which only its owner can read.

    Raises:
        TextEnvError: The file cannot be read or written, or holds something else.
    """
    path = Path(f"{store}.key")
    try:
        if not path.exists():
            handle, temporary = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name}."
            )  # readable by its owner alone
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(secrets.token_hex(32))
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):  # another server was faster: its key it is
                    os.link(temporary, path)
            finally:
                os.unlink(temporary)
        key = bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise TextEnvError(
            f"{path}: expected the key of the labelling page ({error}). Delete the file to have a new one made."
        ) from error
    if len(key) != 32:
        raise TextEnvError(f"{path} holds {len(key)} bytes: expected a key of 32. Delete the file to have one made.")
    return key


def owner_key(key: bytes) -> str:
    """Return what opens the owner's figures, ``/state?owner=…``, and signs in under any name, ``/?owner=…``."""
    return _Signer(key).sign("owner")


def made_password(key: bytes) -> str:
    """Return a password of 80 bits, which is the same as long as the store's key is."""
    letters = base64.b32encode(hmac.new(key, b"password", hashlib.sha256).digest()).decode().lower()
    return "-".join(letters[start : start + 4] for start in range(0, 16, 4))


def only_here(host: str) -> bool:
    """Return whether what listens at a host can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # some name, or "", which means all addresses


async def _read_form(request: Request) -> Form:
    if not is_media_type(request.headers.get("content-type", ""), "application/x-www-form-urlencoded"):
        raise HTTPException(415, "Expected a form (application/x-www-form-urlencoded).")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            raise HTTPException(413, f"The form is larger than {_LARGEST_FORM} bytes; write a shorter note.")
    try:
        return parse_qs(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=64
        )
    except ValueError as error:
        raise HTTPException(422, f"The form cannot be read ({error}).") from error


def _only(form: Form, name: str, default: str | None = None) -> str:
    values = form.get(name, [] if default is None else [default])
    if len(values) != 1:
        raise HTTPException(422, f"The form has {len(values)} fields named {name!r}; expected one.")
    return values[0]


def _ranks(values: Sequence[str]) -> list[int | None]:
    """Return ranks from 0 without gaps. Of those that have none, a single one is simply the last."""
    if not all(re.fullmatch("[1-9]?", value, re.ASCII) for value in values):
        raise HTTPException(422, f"rank={list(values)}: expected numbers from 1 to 9, or nothing.")
    known = sorted({int(value) for value in values if value})
    ranks = [known.index(int(value)) if value else None for value in values]
    return [len(known) if rank is None else rank for rank in ranks] if ranks.count(None) == 1 else ranks


def _confidence(value: str) -> int | None:
    if not re.fullmatch("[1-5]?", value, re.ASCII):
        raise HTTPException(422, f"confidence={value!r}: expected a number from 1 to 5, or nothing.")
    return int(value) if value else None


def _note(value: str) -> str:
    note = value.replace("\r\n", "\n").strip()  # browsers send lines so
    if len(note) > _LONGEST_NOTE:
        raise HTTPException(422, f"A note has at most {_LONGEST_NOTE} characters; this one has {len(note)}.")
    return note


def _seconds(value: str) -> float | None:
    if not re.fullmatch(r"(?:\d{1,9}(?:\.\d{1,9})?)?", value, re.ASCII):
        raise HTTPException(422, f"seconds={value!r}: expected a number of seconds, or nothing.")
    return float(value) if value else None


# What is shown


@dataclass(frozen=True, slots=True)
class _Clip:
    address: str
    video: bool


class _MediaFiles:
    """Finds the pictures and videos of clips, in folders that may be shown and nowhere else."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self._folders = [Path(folder).resolve() for folder in folders]
        self._refused: set[str] = set()

    def of(self, registered: str) -> Path | None:
        """Return what a clip is shown by: the file, or the first of its folder; None if there is none to be shown."""
        try:
            path = Path(registered).resolve()  # through links, too
            candidates = sorted(path.iterdir()) if self._may_show(path) and path.is_dir() else [path]
            found = [one.resolve() for one in candidates if one.suffix.lower() in _MEDIA and one.is_file()]
        except (OSError, ValueError, RuntimeError):  # no name of a file, or links in a circle
            return None
        for one in found:
            if self._may_show(one) and one.suffix.lower() in _MEDIA:
                return one
            if registered not in self._refused and len(self._refused) < 100:
                self._refused.add(registered)
                _log.warning(
                    "%s is not shown: it does not lie in %s. If it is to be, name its folder (--clip-folders).",
                    visible(registered),
                    ", ".join(map(str, self._folders)),
                )
        return None

    def _may_show(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._folders)


def _shown(assignment: Assignment, token: Callable[[int], str], files: _MediaFiles) -> list[str | _Clip | None]:
    """Return what is shown at each place: a text, or a clip, or None for one without a file."""
    if assignment.kind == "completion":
        return [item.text for item in assignment.items]
    paths = [files.of(item.path) for item in assignment.items]
    return [
        None if path is None else _Clip(f"/media/{token(place)}", _MEDIA[path.suffix.lower()].startswith("video"))
        for place, path in enumerate(paths)
    ]


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    environment.filters["pieces"] = _pieces
    macros: Any = environment.get_template("macros.html").module
    environment.globals.update(
        {name: getattr(macros, name) for name in ("marked", "written", "prompt_of", "progress_of")}
    )
    return environment


_JOINERS = "\u200c\u200d"  # Persian and emoji are written with them


def _is_hidden(character: str) -> bool:
    return (
        unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        and character not in "\n\t"
        and character not in _JOINERS
    )


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield pieces of a text: ``(piece, "")`` as it is, and ``(escapes, name)`` for characters that nobody would see.

    Such characters could reorder a line, or hide in it; they are written as Python escapes them.
    """
    text = text.replace("\r\n", "\n")
    start = 0
    while start < len(text):
        hidden = _is_hidden(text[start])
        end = start + 1
        while end < len(text) and _is_hidden(text[end]) == hidden:
            end += 1
        piece = text[start:end]
        if hidden:
            name = unicodedata.name(piece[0], "control character").lower()
            yield piece.encode("unicode_escape").decode(), name
        else:
            yield piece, ""
        start = end


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the headings, lists and paragraphs of a text."""
    for block in re.split(r"\n\s*\n|(?<=\n)(?=#)|(?<=^)(?=#)", text.strip().replace("\r\n", "\n")):
        lines = [line.strip() for line in block.strip().split("\n")]
        if lines == [""]:
            continue
        if lines[0].startswith("#"):
            yield "heading", [lines.pop(0).lstrip("# ")]
        if lines and all(line.startswith(("- ", "* ")) for line in lines):
            yield "list", [line[2:] for line in lines]
        elif lines:
            yield "paragraph", lines
