"""The page on which a person answers questions in the text browser: ``textenv browse record``.

It is one person's, on this machine: it listens at the loopback address alone, answers no page of another site, and
shows one question, whichever window shows it. Pages of the web are data: everything is escaped, nothing in them is run
or loaded, and their links are buttons, which write the command that follows them. The page works without its script,
which adds keys, and that words that are selected are what is to be quoted.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any

from textenv.types import TextEnvError

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse, RedirectResponse
    from starlette.exceptions import HTTPException
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"The page needs fastapi, jinja2 and uvicorn, which cannot be imported ({error}). "
        "Run: pip install 'textenv[web]'"
    ) from error

from textenv.feedback.browse_session import BrowseSession
from textenv.feedback.display import blocks, make_templates, web_file
from textenv.feedback.forms import LONGEST_TEXT, Form, only_value, read_form
from textenv.web import server as web_server
from textenv.web.guard import Guard, known_hosts
from textenv.worlds.browser import references_of

__all__ = ["create_browse_app", "serve_browse_page"]

_LARGEST_FORM = 1_000_000  # bytes; a character takes twelve at most
_GUIDELINES = """\
Answer the question with what you find, and quote what shows that the answer is right.

- Search, open pages, and select words on them to quote them: quotes are all that whoever reads the answer sees.
- Every click is an action, and there are few: do what somebody should do who learns from you.
- Then end browsing, and write the answer; [1] refers to the first quote.
- A question that makes no sense, or that no answer does justice to, is ended as Nonsense or Controversial.
- Where you took a wrong turn, begin anew: what you did before is then not recorded.
"""


def create_browse_app(session: BrowseSession) -> FastAPI:
    """Return the web application.

    Args:
        session: Asks the questions, and records how they are answered.
    """
    app = FastAPI(title="textenv browse", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=known_hosts(()))
    page = _BrowsePage(session)
    app.add_exception_handler(HTTPException, page.on_error)
    app.add_exception_handler(TextEnvError, page.on_error)
    app.add_api_route("/", page.show)
    app.add_api_route("/web/{name}", web_file)
    for path, handle in (("/act", page.act), ("/restart", page.restart), ("/skip", page.skip)):
        app.add_api_route(path, page.endpoint(handle), methods=["POST"])
    return app


class _BrowsePage:
    """Answers the requests of the page, one at a time."""

    def __init__(self, session: BrowseSession) -> None:
        self._session, self._templates = session, make_templates()
        self._lock = threading.Lock()
        self._key, self._changes = secrets.token_hex(8), 0

    def on_error(self, request: Request, error: Exception) -> Response:
        """Say why a request was refused."""
        status, message = (
            (error.status_code, str(error.detail)) if isinstance(error, HTTPException) else (409, str(error))
        )
        return self._page("error.html", status, heading="That did not work", message=message)

    def _page(self, template: str, status: int = 200, **context: Any) -> Response:
        text = self._templates.get_template(template).render(name="", token="", here="browse", **context)
        return HTMLResponse(text, status)

    def endpoint(self, handle: Callable[[Form], str]) -> Callable[[Request], Any]:
        """Return the endpoint of a form, which changes something if its page shows how things stand.

        Args:
            handle: Does it, and returns where to go then.
        """

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(checked, await read_form(request, largest=_LARGEST_FORM))

        def checked(form: Form) -> Response:
            turn = only_value(form, "turn")
            with self._lock:
                if turn != self._turn:
                    return RedirectResponse("/?late=1", 303)
                try:
                    address = handle(form)
                except TextEnvError as error:
                    return self._shown(409, problem=str(error), typed=form)
                self._changes += 1
                return RedirectResponse(address, 303)

        return endpoint

    @property
    def _turn(self) -> str:
        """What forms send: a page that was made before the last change, or by another process, is out of date."""
        return f"{self._key}.{self._changes}"

    def show(self, stored: str = "", late: str = "") -> Response:
        """Show the question, what the browser shows, and what can be done.

        Args:
            stored: Whether an answer was recorded just now.
            late: Whether what was sent came from a page that was out of date.
        """
        problem = "That page was out of date, and nothing was done. This is how it stands." if late else ""
        with self._lock:
            return self._shown(stored=bool(stored), problem=problem)

    def _shown(
        self, status: int = 200, *, problem: str = "", stored: bool = False, typed: Form | None = None
    ) -> Response:
        session = self._session
        text = f"{session.recorded:,} of {session.wanted:,} recorded"
        context = {
            "progress": {"text": text, "wanted": session.wanted, "done": session.recorded},
            "annotator": session.annotator,
            "problem": problem,
            "stored": stored,
            "turn": self._turn,
        }
        if session.question is None:
            return self._page("browsed.html", status, skipped=session.skipped, **context)
        return self._page(
            "browse.html",
            status,
            **context,
            guidelines=list(blocks(_GUIDELINES)),
            fresh=not session.recorded,
            question=session.question.question,
            typed=_typed(typed or {}),
            longest=LONGEST_TEXT,
            **self._state(),
        )

    def _state(self) -> dict[str, Any]:
        """Return what the template shows of the browser."""
        session, world = self._session, self._session.world
        view, (start, end) = world.view, world.shown
        length = max(1, 0 if view is None else len(view.text))
        return {
            "phase": world.phase,
            "past": [written for _, written in session.steps],
            "actions_left": session.actions_left,
            "references": references_of(world.quotes),
            "most_quotes": world.max_quotes,
            "quote_room": world.quote_length - sum(len(quote.extract) for quote in world.quotes),
            "view": view,
            "pieces": [] if view is None else view.pieces(start, end),
            "bar": (100 * start / length, 100 * (end - start) / length),
            "can": {
                "back": world.can_go_back,
                "up": start > 0,
                "down": view is not None and end < len(view.text),
            },
        }

    def act(self, form: Form) -> str:
        """Write a command, or the answer."""
        command, text = only_value(form, "command", ""), only_value(form, "text", "")
        if len(text) > LONGEST_TEXT:
            raise TextEnvError(f"The text has {len(text):,} characters; expected {LONGEST_TEXT:,} at most.")
        before = self._session.recorded
        self._session.act(f"{command} {text}")
        return "/?stored=1" if self._session.recorded > before else "/"

    def restart(self, form: Form) -> str:
        """Begin the question anew."""
        self._session.restart()
        return "/"

    def skip(self, form: Form) -> str:
        """Go on to the next question."""
        self._session.skip()
        return "/"


def _typed(form: Form) -> dict[str, str]:
    """Return what was typed into which box of a form that was refused, by the command that the box is of."""
    return {only_value(form, "command", ""): only_value(form, "text", "")} if form else {}


def serve_browse_page(session: BrowseSession, *, port: int = 8903, announce: Callable[[str], None] = print) -> None:
    """Serve the page to this machine until a signal ends it.

    Args:
        session: Asks the questions, and records how they are answered.
        port: Port to listen on; 0 for a free one.
        announce: Called with the address of the page as soon as it answers.

    Raises:
        TextEnvError: The port cannot be listened on.
    """
    app = create_browse_app(session)
    web_server.serve(app, host="127.0.0.1", port=port, announce=lambda address: announce(f"{address}/"))
