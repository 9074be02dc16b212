"""The page of a conversation with a model: ``textenv chat --web``.

It is one person's, on this machine: it listens at the loopback address alone, answers no page of another site, and
holds one conversation, whichever window shows it. What a model writes may be hostile, so nothing in it is executed. The
page works without its script, which adds that an answer is shown while it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from textenv.data.files import to_json
from textenv.env.dialogue import Dialogue
from textenv.types import Conversation, TextEnvError

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
    from starlette.exceptions import HTTPException
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"The page needs fastapi, jinja2 and uvicorn, which cannot be imported ({error}). "
        "Run: pip install 'textenv[web]'"
    ) from error

from textenv.feedback.display import make_templates, web_file
from textenv.feedback.forms import Form, only_value, read_form
from textenv.feedback.store import FeedbackStore
from textenv.web import server as web_server
from textenv.web.guard import Guard, known_hosts

__all__ = ["Thumbs", "create_chat_app", "serve_chat_page"]

_THUMBS = ("up", "down")


class Thumbs:
    """Keeps thumbs up and down in a feedback store, and what follows from them.

    A thumb is kept with its answer, under ``thumb`` in the details of the completion. Of two answers to the same
    messages, one with a thumb up and one with a thumb down by the same person, the first is recorded as the better one.
    """

    def __init__(self, store: FeedbackStore, *, annotator: str, policy: str) -> None:
        """Keep thumbs in a store.

        Args:
            store: The store.
            annotator: Who gives them.
            policy: Folder or name of what answers.

        Raises:
            TextEnvError: The name is empty, or that of a program.
        """
        self._store, self._name = store, annotator
        self._annotator = store.annotator(annotator, "person")
        known = {known.folder: known.id for known in store.policies()}
        self._policy = known[policy] if policy in known else store.add_policy(policy, folder=policy)

    def add(self, messages: Conversation, answer: str, thumb: str) -> None:
        """Keep a thumb; an answer has one, which stays.

        Args:
            messages: What the answer is to.
            answer: The answer.
            thumb: ``"up"`` or ``"down"``.

        Raises:
            TextEnvError: The answer has one already.
        """
        if self.of(messages, answer) is not None:
            raise TextEnvError("This answer has a thumb already, which stays as it was given.")
        with self._store.transaction():
            prompt = self._store.add_prompt(messages)
            others = [item for item, other in self._given(prompt) if other != thumb]
            details = {"thumb": thumb, "annotator": self._name}
            this = self._store.add_completion(prompt, answer, policy=self._policy, details=details)
            for other in others:
                better, worse = (this, other) if thumb == "up" else (other, this)
                self._store.record(self._store.add_task([better, worse]), self._annotator, [0, 1])

    def of(self, messages: Conversation, answer: str) -> str | None:
        """Return the thumb that was given to an answer, or None."""
        wanted = [dict(message) for message in messages]
        prompts = [number for number, known in self._store.prompts().items() if _plain(known) == wanted]
        texts = {item.id: item.text for number in prompts for item in self._store.completions(number)}
        return next((thumb for number in prompts for item, thumb in self._given(number) if texts[item] == answer), None)

    def _given(self, prompt: int) -> list[tuple[int, str]]:
        """Return the completions of a prompt that this person has given a thumb, each with it."""
        return [
            (item.id, str(item.details["thumb"]))
            for item in self._store.completions(prompt)
            if item.details.get("thumb") in _THUMBS and item.details.get("annotator") == self._name
        ]


def _plain(prompt: str | Conversation) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def create_chat_app(dialogue: Dialogue, thumbs: Thumbs | None = None, *, title: str) -> FastAPI:
    """Return the web application.

    Args:
        dialogue: The conversation.
        thumbs: Keeps thumbs; None for a page without them.
        title: What answers, as the page calls it.
    """
    app = FastAPI(title="textenv chat", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=known_hosts(()))
    page = _ChatPage(dialogue, thumbs, title)
    app.add_exception_handler(HTTPException, page.on_error)
    app.add_exception_handler(TextEnvError, page.on_error)
    app.add_api_route("/", page.show)
    app.add_api_route("/conversation.jsonl", page.download)
    app.add_api_route("/web/{name}", web_file)
    for path, handle in (
        ("/say", page.say),
        ("/again", page.again),
        ("/reset", page.reset),
        ("/thumb", page.thumb),
    ):
        app.add_api_route(path, _endpoint(handle), methods=["POST"])
    return app


def _endpoint(handle: Callable[[Request, Form], Response]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(handle, request, await read_form(request))

    return endpoint


class _ChatPage:
    """Answers the requests of the page."""

    def __init__(self, dialogue: Dialogue, thumbs: Thumbs | None, title: str) -> None:
        self._dialogue, self._thumbs, self._title = dialogue, thumbs, title
        self._templates = make_templates()
        self._busy = threading.Lock()  # held while an answer is written

    def on_error(self, request: Request, error: Exception) -> Response:
        """Say why a request was refused, on a page or to the script."""
        status, message = (
            (error.status_code, str(error.detail)) if isinstance(error, HTTPException) else (409, str(error))
        )
        if _streams(request):
            return PlainTextResponse(message, status)
        return self._page("error.html", status, heading="That did not work", message=message)

    def _page(self, template: str, status: int = 200, **context: Any) -> Response:
        text = self._templates.get_template(template).render(name="", token="", here="chat", **context)
        return HTMLResponse(text, status)

    def show(self) -> Response:
        """Show the conversation."""
        messages = self._dialogue.messages
        shown = [
            {"role": message["role"], "text": message["content"], "place": place, "thumb": self._thumb(place)}
            for place, message in enumerate(messages)
        ]
        cut = self._dialogue.end == "length"
        return self._page("chat.html", title=self._title, messages=shown, cut=cut, thumbs=self._thumbs is not None)

    def _thumb(self, place: int) -> str | None:
        message = self._dialogue.messages[place]
        if self._thumbs is None or message["role"] != "assistant":
            return None
        return self._thumbs.of(self._dialogue.messages[:place], str(message["content"]))

    def download(self) -> Response:
        """Send the conversation as a record that ``textenv sft`` learns from."""
        record = {"messages": [dict(message) for message in self._dialogue.messages]}
        headers = {"Content-Disposition": 'attachment; filename="conversation.jsonl"'}
        return Response(to_json(record, ensure_ascii=False) + "\n", media_type="application/jsonl", headers=headers)

    def say(self, request: Request, form: Form) -> Response:
        """Add a message, and send the answer while it is written."""
        text = only_value(form, "text").replace("\r\n", "\n").strip()
        if not text:
            raise HTTPException(422, "The message is empty; write something.")
        return self._answer(request, lambda: self._dialogue.say(text))

    def again(self, request: Request, form: Form) -> Response:
        """Take the last answer back, and send another while it is written."""
        return self._answer(request, self._dialogue.again)

    def _answer(self, request: Request, begin: Callable[[], Iterator[str]]) -> Response:
        self._take()
        try:
            pieces = _Pieces(begin(), self._busy.release)
        except BaseException:
            self._busy.release()
            raise
        if _streams(request):
            return StreamingResponse(pieces, media_type="text/plain; charset=utf-8")
        for _ in pieces:
            pass
        return RedirectResponse("/", 303)

    def _take(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise HTTPException(409, "An answer is being written; wait for its end.")

    def reset(self, request: Request, form: Form) -> Response:
        """Begin anew."""
        self._take()
        try:
            self._dialogue.reset()
        finally:
            self._busy.release()
        return RedirectResponse("/", 303)

    def thumb(self, request: Request, form: Form) -> Response:
        """Keep a thumb."""
        place, thumb = only_value(form, "place"), only_value(form, "thumb")
        messages = self._dialogue.messages
        known = place.isascii() and place.isdigit() and int(place) < len(messages)
        if self._thumbs is None or thumb not in _THUMBS or not known or messages[int(place)]["role"] != "assistant":
            raise HTTPException(422, f"place={place!r}, thumb={thumb!r}: expected an answer, and up or down.")
        self._thumbs.add(messages[: int(place)], str(messages[int(place)]["content"]), thumb)
        return RedirectResponse("/", 303)


class _Pieces:
    """The pieces of an answer, which is over when all have been read, or when whoever reads them has gone."""

    def __init__(self, pieces: Iterator[str], over: Callable[[], None]) -> None:
        self._pieces, self._over = pieces, over
        self._goes_on = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except BaseException:
            self._end()
            raise

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._goes_on:
            self._goes_on = False
            self._over()


def _streams(request: Request) -> bool:
    """Tell whether the page's script asks, which shows what comes piece by piece."""
    return request.headers.get("accept", "") == "text/plain"


def serve_chat_page(
    dialogue: Dialogue,
    thumbs: Thumbs | None = None,
    *,
    title: str,
    port: int = 8902,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page to this machine until a signal ends it.

    Args:
        dialogue: The conversation.
        thumbs: Keeps thumbs; None for a page without them.
        title: What answers, as the page calls it.
        port: Port to listen on; 0 for a free one.
        announce: Called with the address of the page as soon as it answers.

    Raises:
        TextEnvError: The port cannot be listened on.
    """
    app = create_chat_app(dialogue, thumbs, title=title)
    web_server.serve(app, host="127.0.0.1", port=port, announce=lambda address: announce(f"{address}/"))
