"""Waiting for coroutines from code that is none, whether or not its thread runs an event loop, as in a notebook.

All are run by one event loop in a thread of its own, which stays: a client that an ``async def`` reward keeps for its
next call belongs to the loop in which it was made.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["wait_for_all"]


def wait_for_all(awaitables: Sequence[Awaitable[Any]]) -> list[tuple[Any, BaseException | None]]:
    """Wait for all at the same time; return what each has returned, and what it has raised."""
    loop = _loop(os.getpid())
    waiting = _all(awaitables)
    if asyncio._get_running_loop() is loop:  # a coroutine waits for others, and the loop cannot go on meanwhile
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, waiting).result()
    future = asyncio.run_coroutine_threadsafe(waiting, loop)
    try:
        return future.result()
    except BaseException:  # this thread is interrupted
        future.cancel()
        raise


async def _all(awaitables: Sequence[Awaitable[Any]]) -> list[tuple[Any, BaseException | None]]:
    return await asyncio.gather(*map(_outcome, awaitables))


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    try:
        return await awaitable, None
    except BaseException as error:  # an interrupt that a coroutine raises would end the loop
        return None, error


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of a process; one that was forked from it has another."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="textenv-coroutines", daemon=True)
    thread.start()

    def close() -> None:
        if process == os.getpid():
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    atexit.register(close)
    return loop
