"""A labeling page on a free port, in this process, for the tests that look at it from outside."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textenv.feedback.label_server import create_app
from textenv.feedback.store import FeedbackStore
from textenv.web.server import Limits, make_server

KEY = bytes(range(32))


@dataclass(frozen=True)
class Site:
    """A page that is being served, and its store."""

    url: str
    store: FeedbackStore


@contextlib.contextmanager
def serving(path: Path, **settings: Any) -> Iterator[Site]:
    """Serve a store until the block ends."""
    with FeedbackStore(path) as store, socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(store, key=KEY, **settings)
        server = make_server(app, Limits(grace_seconds=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}/", store)
        finally:
            server.should_exit = True
            thread.join()


def add_task(store: FeedbackStore, texts: Sequence[str], prompt: str = "Write a line.", **settings: Any) -> int:
    """Add a task that ranks texts; return its id."""
    number = store.add_prompt(prompt)
    return store.add_task([store.add_completion(number, text) for text in texts], **settings)


def add_tasks(store: FeedbackStore, count: int, size: int = 2, **settings: Any) -> None:
    """Add tasks whose texts tell which they are: their quality, and their task."""
    rng = random.Random(0)
    for task in range(count):
        texts = [f"quality {quality} of task {task}" for quality in range(size)]
        rng.shuffle(texts)
        add_task(store, texts, prompt=f"Prompt {task}", **settings)


def recorded(store: FeedbackStore, **which: Any) -> list[dict[str, int | None]]:
    """Return, for each judgement that counts, the rank of each text."""
    texts = {completion.id: completion.text for completion in store.completions()}
    items = {task.id: task.items for task in store.tasks()}
    return [
        {texts[item]: rank for item, rank in zip(items[one.task], one.ranks, strict=True)}
        for one in store.judgements(**which)
    ]
