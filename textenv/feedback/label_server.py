"""The labeling page: ``textenv label STORE``.

People compare completions or clips in a browser, several at once, with keys or by dragging, and write answers of their
own: a better one than those that they compare, or one to a prompt that asks for nothing else.

The page must not reveal who wrote what: it shows no policy, no number of an item, and no sign that an item is gold or
repeated. The strengths of the policies, and how often annotators agree with gold items, with each other and with
themselves, are therefore for the owner alone, who has a link with a key: an annotator who judges, looks at such a
figure and undoes the judgement would learn from how the figure moved.

Completions are text that may be hostile, so nothing in them is executed: everything is escaped, the browser is told to
run our one script alone, and requests that pages of other sites make are refused.

If other machines can reach the page, it asks for a password. A name can be signed in in one browser at a time.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textenv.types import TextEnvError

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
    from starlette.exceptions import HTTPException  # also raised where no route fits
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"The labeling page needs fastapi, jinja2 and uvicorn, which cannot be imported ({error}). "
        "Run: pip install 'textenv[web]'"
    ) from error

from textenv.feedback.display import (
    ANSWER_GUIDELINES,
    GUIDELINES,
    MEDIA_TYPES,
    QUOTED_GUIDELINES,
    MediaFiles,
    blocks,
    has_quotes,
    make_templates,
    only_visible,
    shown_items,
    web_file,
)
from textenv.feedback.forms import (
    LARGEST_ANSWER,
    LONGEST_TEXT,
    Form,
    confidence_of,
    note_of,
    only_value,
    place_of,
    ranks_of,
    read_form,
    seconds_of,
    texts_of,
    verdict_of,
)
from textenv.feedback.project_state import LiveAgreement, blind_state, project_state
from textenv.feedback.sign_in import Session, Signer, SignIns, check_password, no_session, only_here, owner_key
from textenv.feedback.store import Assignment, FeedbackStore, annotator_name
from textenv.validation import Positive, validate
from textenv.web import server as web_server
from textenv.web.guard import HEADERS, Guard, known_hosts

__all__ = ["create_app", "serve_label_page"]

_log = logging.getLogger(__name__)
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _PageSettings:
    """What ``create_app`` is given besides the store and the key."""

    guidelines: str
    lease_seconds: Positive
    password: str
    clip_folders: Sequence[str | Path]

    def __post_init__(self) -> None:
        validate(self)
        check_password(self.password)


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
    """Return the web application: the page for comparing, and the page with the state of the project.

    Args:
        store: Supplies the tasks and takes the judgements; the caller closes it.
        key: Signs cookies and forms. A page that is open in a browser still works after a restart of the server with
            the same key.
        guidelines: What the annotators are told: paragraphs, ``# headings`` and ``- lists``. Empty for a short default.
        hosts: Host names that the page answers to, besides ``localhost`` and this machine's loopback addresses.
        lease_seconds: How long a comparison, and a name, stays with one annotator after the last sign of activity.
        password: What to ask for at sign-in; "" for no password.
        clip_folders: Folders that clips may be in, besides the store's own: a store that somebody else made must not
            show other pictures of this machine.

    Raises:
        TextEnvError: ``lease_seconds`` is not a positive number, or the password is too short.
    """
    settings = _PageSettings(
        guidelines=guidelines, lease_seconds=lease_seconds, password=password, clip_folders=clip_folders
    )
    app = FastAPI(title="textenv label", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=known_hosts(hosts))
    page = _LabelPage(store, key, settings)
    app.add_exception_handler(HTTPException, page.on_http_error)
    app.add_exception_handler(TextEnvError, page.on_textenv_error)
    app.add_exception_handler(Exception, page.on_failure)
    app.add_api_route("/", page.compare)
    app.add_api_route("/state", page.state)
    app.add_api_route("/media/{token}", page.media)
    app.add_api_route("/web/{name}", web_file)
    for path, handle in (
        ("/sign-in", page.sign_in),
        ("/sign-out", page.sign_out),
        ("/judge", page.judge),
        ("/take-back", page.take_back),
        ("/undo", page.undo),
        ("/alive", page.alive),
    ):
        app.add_api_route(path, page.endpoint(handle), methods=["POST"])
    app.add_api_route("/demonstrate", page.endpoint(page.demonstrate, largest=LARGEST_ANSWER), methods=["POST"])
    return app


class _LabelPage:
    """Answers the requests of the labeling page."""

    def __init__(self, store: FeedbackStore, key: bytes, settings: _PageSettings) -> None:
        self._store, self._key = store, key
        self._password, self._lease_seconds = settings.password, settings.lease_seconds
        self._signer = Signer(key)
        self._sign_ins = SignIns(store, self._signer, settings.password, settings.lease_seconds)
        self._media_files = MediaFiles([store.path.parent, *settings.clip_folders])
        self._templates = make_templates()
        self._agreement = LiveAgreement(store)
        given = settings.guidelines.strip()
        self._guidelines = list(blocks(given or GUIDELINES))
        self._quoted_guidelines = list(blocks(given or QUOTED_GUIDELINES))
        self._answer_guidelines = list(blocks(given or ANSWER_GUIDELINES))

    # -- answers in general

    def _page(self, session: Session, template: str, *, status: int = 200, here: str = "", **context: Any) -> Response:
        text = self._templates.get_template(template).render(
            name=session.name, token=self._signer.token(session), here=here, **context
        )
        response = HTMLResponse(text, status)
        self._signer.remember(response, session)
        return response

    def _error_page(self, request: Request, status: int, heading: str, message: str) -> Response:
        session = self._signer.session(request)
        return self._page(session, "error.html", status=status, heading=heading, message=message)

    def _to_start(self, session: Session, address: str = "/") -> Response:
        response = RedirectResponse(address, 303)
        self._signer.remember(response, session)
        return response

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Answer a request that was refused."""
        assert isinstance(error, HTTPException)
        return self._error_page(request, error.status_code, "That did not work", str(error.detail))

    async def on_textenv_error(self, request: Request, error: Exception) -> Response:
        """Answer a request that the store refused."""
        return self._error_page(request, 409, "That was not stored", str(error))

    async def on_failure(self, request: Request, error: Exception) -> Response:
        """Answer a request that failed because of a fault of ours."""
        _log.exception("The labeling page failed.", exc_info=error)
        response = self._error_page(
            request,
            500,
            "Something went wrong",
            "Nothing was stored. Go back and send it again; the server's log has the details.",
        )
        response.headers.update(HEADERS)  # the middleware does not see what this handler returns
        return response

    def endpoint(self, handle: Callable[[Session, Form], Response], **limits: int) -> Callable[[Request], Any]:
        """Return the endpoint of a form. A form is read only if it has the token that this browser was given."""

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(checked, request, await read_form(request, **limits))

        def checked(request: Request, form: Form) -> Response:
            session = self._sign_ins.session(request)
            if not hmac.compare_digest(only_value(form, "token").encode(), self._signer.token(session).encode()):
                raise HTTPException(403, "This page is out of date, or was opened under another name. Open it again.")
            return handle(session, form)

        return endpoint

    def _is_owner(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), owner_key(self._key).encode())

    # -- pages

    def compare(
        self, request: Request, owner: str = "", edit: str = "", change: str = "", stored: str = ""
    ) -> Response:
        """Show what to judge or to answer next, the form to sign in, or that there is nothing left.

        Args:
            request: The request.
            owner: The owner's key, to sign in under any name.
            edit: The number of the completion that is to be edited.
            change: Token of the demonstration that is to be changed.
            stored: Whether an answer was stored just now.
        """
        session = self._sign_ins.session(request)
        if not session.name:
            known = self._is_owner(owner)
            asks = bool(self._password) and not known
            return self._page(session, "sign_in.html", here="label", asks=asks, owner=owner)
        annotator = self._store.annotator(session.name)
        assignment = self._store.lease(annotator, seconds=self._lease_seconds)
        progress = self._progress(annotator)
        context = {
            "progress": progress,
            "agreement": progress["agreement"],
            "undoes": self._undo_token(session),
            "stored": bool(stored),
        }
        if assignment is None:
            return self._page(session, "done.html", here="label", **context)
        context |= {"fresh": not progress["done"], "own": self._own_answer(session, assignment, edit, change)}
        template = "write.html" if assignment.kind == "demonstration" else "label.html"
        return self._page(session, template, here="label", **context, **self._comparison(session, assignment))

    def _progress(self, annotator: int) -> dict[str, Any]:
        """Return the figures that are kept up to date on an open page."""
        progress = self._store.progress(annotator)
        text = f"{progress.done:,} of {progress.wanted:,} done"
        agreement = self._agreement.text()
        return {"done": progress.done, "wanted": progress.wanted, "text": text, "agreement": agreement}

    def _undo_token(self, session: Session) -> str:
        """Return what the form to undo sends: which judgement was the last when the page was made."""
        last = self._store.last_judgement(self._store.annotator(session.name))
        return "" if last is None else self._signer.numbers("judgement", session, last)

    def _comparison(self, session: Session, assignment: Assignment) -> dict[str, Any]:
        """Return what ``label.html`` needs of an assignment."""

        def token(place: int) -> str:
            return self._signer.numbers("media", session, assignment.id, place)

        asked, guidelines = assignment.prompt, self._guidelines
        if assignment.kind == "demonstration":
            guidelines = self._answer_guidelines
        elif has_quotes(assignment):
            asked, guidelines = str(asked).removesuffix("■"), self._quoted_guidelines
        return {
            "assignment": self._signer.numbers("assignment", session, assignment.id),
            "prompt": asked,
            "clips": assignment.kind == "clip",
            "items": shown_items(assignment, token, self._media_files),
            "guidelines": guidelines,
            "lease_seconds": self._lease_seconds,
            "alive_seconds": max(0.5, min(15.0, self._lease_seconds / 3)),
        }

    def _own_answer(self, session: Session, assignment: Assignment, edit: str, change: str) -> dict[str, Any] | None:
        """Return what the template needs of the answer that the annotator may write; None for clips, and with quotes.

        The boxes hold a completion that is to be edited, an answer that is to be changed, or, where nothing but an
        answer is asked for, the one that was undone.
        """
        if assignment.prompt is None or has_quotes(assignment):
            return None
        written = self._store.demonstrations(assignment=assignment.id)
        place = place_of(edit, len(assignment.items))
        texts, edited, open_now = [""], edit, False
        if change:
            (number,) = self._signer.read_numbers("demonstration", session, change)
            if changed := [each for each in written if each.id == number]:
                texts, edited, open_now = list(changed[0].texts), self._number_of(assignment, changed[0].item), True
            else:
                change = ""  # it was taken back, or changed in another window
        elif place is not None:
            texts, open_now = [only_visible(assignment.items[place].text)], True
        elif assignment.kind == "demonstration":
            earlier = self._store.demonstrations(assignment=assignment.id, effective=False)
            texts = next((list(each.texts) for each in reversed(earlier) if each.texts), texts)
        return {
            "chat": not isinstance(assignment.prompt, str),
            "texts": texts,
            "edited": edited,
            "changes": change,
            "open": open_now,
            "longest": LONGEST_TEXT,
            "written": [
                {
                    "texts": each.texts,
                    "edited": self._number_of(assignment, each.item),
                    "token": self._signer.numbers("demonstration", session, each.id),
                }
                for each in written
            ],
        }

    def _number_of(self, assignment: Assignment, item: int | None) -> str:
        """Return the number that an item is shown under, "" for none."""
        shown = [each.id for each in assignment.items]
        return str(shown.index(item) + 1) if item in shown else ""

    def state(self, request: Request, owner: str = "") -> Response:
        """Show the state of the project: all of it to the owner, and to others what does not reveal who wrote what."""
        session = self._sign_ins.session(request)
        if self._is_owner(owner):
            return self._page(session, "state.html", here="state", owner=True, **project_state(self._store))
        if self._password and not session.name:
            return self._to_start(session)
        return self._page(session, "state.html", here="state", owner=False, **blind_state(self._store))

    def media(self, request: Request, token: str) -> Response:
        """Send the picture or video of a clip."""
        number, place = self._signer.read_numbers("media", self._sign_ins.session(request), token)
        path = self._media_files.of(self._store.assignment(number).items[place].path)
        if path is None:
            raise HTTPException(404, "The file of this clip cannot be found.")
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix.lower()])

    # -- forms

    def sign_in(self, session: Session, form: Form) -> Response:
        """Sign an annotator in."""
        name = annotator_name(only_value(form, "name"))
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise HTTPException(422, f"A name has 1 to {_LONGEST_NAME} letters, and no control characters.")
        owner = self._is_owner(only_value(form, "owner", ""))
        password = only_value(form, "password", "")
        return self._to_start(self._sign_ins.sign_in(name, password, session, owner=owner))

    def sign_out(self, session: Session, form: Form) -> Response:
        """Sign an annotator out, and release what they were judging."""
        if form.get("assignment"):
            self._store.release(*self._signer.read_numbers("assignment", session, only_value(form, "assignment")))
        self._sign_ins.sign_out(session)
        return self._to_start(no_session())

    def judge(self, session: Session, form: Form) -> Response:
        """Store a judgement."""
        (assignment,) = self._signer.read_numbers("assignment", session, only_value(form, "assignment"))
        verdict = verdict_of(only_value(form, "verdict"))
        ranks = ranks_of(form.get("rank", []))
        self._store.judge(
            assignment,
            ranks if verdict == "ranked" else [None] * len(ranks),
            verdict=verdict,
            confidence=confidence_of(only_value(form, "confidence", "")),
            note=note_of(only_value(form, "note", "")),
            seconds=seconds_of(only_value(form, "seconds", "")),
        )
        return self._to_start(session)

    def demonstrate(self, session: Session, form: Form) -> Response:
        """Store an answer that the annotator has written."""
        (number,) = self._signer.read_numbers("assignment", session, only_value(form, "assignment"))
        assignment = self._store.assignment(number)
        place = place_of(only_value(form, "edited", ""), len(assignment.items))
        changes = only_value(form, "changes", "")
        self._store.demonstrate(
            number,
            texts_of(form.get("text", []), chat=not isinstance(assignment.prompt, str)),
            item=None if place is None else assignment.items[place].id,
            supersedes=self._signer.read_numbers("demonstration", session, changes)[0] if changes else None,
            seconds=seconds_of(only_value(form, "seconds", "")),
        )
        return self._to_start(session, "/?stored=1")

    def take_back(self, session: Session, form: Form) -> Response:
        """Take back an answer that the annotator has written beside a ranking."""
        (number,) = self._signer.read_numbers("demonstration", session, only_value(form, "demonstration"))
        self._store.take_back(number, self._store.annotator(session.name))
        return self._to_start(session)

    def undo(self, session: Session, form: Form) -> Response:
        """Undo the annotator's last judgement."""
        if session.name and (judgement := only_value(form, "judgement")):
            (number,) = self._signer.read_numbers("judgement", session, judgement)
            self._store.undo(self._store.annotator(session.name), judgement=number, seconds=self._lease_seconds)
        return self._to_start(session)

    def alive(self, session: Session, form: Form) -> Response:
        """Extend the lease of an open page, and return its figures."""
        if not session.name:
            raise HTTPException(403, "Sign in first.")
        passed_on = ""
        if form.get("assignment"):
            numbers = self._signer.read_numbers("assignment", session, only_value(form, "assignment"))
            try:
                self._store.renew(*numbers, seconds=self._lease_seconds)
            except TextEnvError as error:
                passed_on = f"{error} Reload the page to go on."
        return JSONResponse({**self._progress(self._store.annotator(session.name)), "passed_on": passed_on})


def serve_label_page(
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
        store: Supplies the tasks and takes the judgements.
        key: Signs cookies and forms; ``page_key`` keeps one beside the store.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        guidelines: What the annotators are told.
        hosts: Further host names that the page answers to, such as a proxy's.
        lease_seconds: How long a comparison, and a name, stays with one annotator after the last sign of activity.
        password: What to ask for at sign-in; ``made_password`` makes one.
        clip_folders: Folders that clips may be in, besides the store's own.
        announce: Called with the address of the page as soon as it answers.

    Raises:
        TextEnvError: The address cannot be listened on, or other machines could reach it and there is no password.
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
