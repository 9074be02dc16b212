"""Many jobs at the same time, in worker processes of this machine or on Ray."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from textenv.rollouts.runtime import Stopped
from textenv.types import TextEnvError

__all__ = ["Job", "Pool", "processes", "ray_cluster"]

Job = tuple[str, Callable[..., None], tuple[Any, ...]]
"""Its name, a function that can be pickled, and its arguments."""
Pool = Callable[[Sequence[Job]], Iterator[tuple[str, str]]]
"""Does jobs; yields, as each ends, its name and why it failed, or ``""``."""

_GRACE = 5.0  # seconds that a job has to end when it is interrupted
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextlib.contextmanager
def processes(workers: int, threads: int) -> Iterator[Pool]:
    """Return a pool of worker processes, each of ``threads`` threads, none of which outlives the block or this process.

    Raises:
        TextEnvError: When jobs are done: a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()  # of which nothing is sent: it breaks with the block, or with this process
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_the_parent, initargs=(theirs,))

    def do(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ |= dict.fromkeys(_THREADS, str(threads))  # the workers', which read them as they start
        futures: dict[Future[None], str] = {pool.submit(_do, function, given): name for name, function, given in jobs}
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise TextEnvError(
                    "A worker process ended all of a sudden, perhaps for want of memory. What is finished is kept: "
                    "give the same command again, with fewer --workers if so."
                )
            yield futures[future], "" if error is None else _reason(error)

    try:
        yield do
    finally:
        ours.close()
        theirs.close()
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def ray_cluster(workers: int, threads: int) -> Iterator[Pool]:
    """Return a pool of Ray's workers: of the cluster of RAY_ADDRESS, or of one that is started on this machine.

    Raises:
        TextEnvError: Ray is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")  # an optional dependency
    except ModuleNotFoundError as error:
        raise TextEnvError("--ray needs Ray: pip install 'textenv[ray]'.") from error
    address = os.environ.get("RAY_ADDRESS")
    # One of our own listens on this machine alone.
    local: dict[str, Any] = {"num_cpus": workers * threads, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))

    def do(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
        waiting: dict[Any, str] = {}
        for name, function, given in jobs:
            waiting[ray.remote(function).options(num_cpus=threads, max_retries=0).remote(*given)] = name
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                yield name, _reason(error.cause)
            except ray.exceptions.RayError as error:
                yield name, str(error).strip().splitlines()[0]
            else:
                yield name, ""

    try:
        yield do
    finally:
        ray.shutdown()


_idle = threading.Event()
"""Set in a worker process that does no job."""
_ending = threading.Event()
"""Set in a worker process that is to begin no other."""


def _do(function: Callable[..., None], given: tuple[Any, ...]) -> None:
    if _ending.is_set():
        raise Stopped(signal.SIGTERM)
    _idle.clear()
    try:
        function(*given)
    finally:
        _idle.set()


def _end_with_the_parent(parent: Connection) -> None:
    """Have this process end with the block that made it, or when its parent is killed.

    Else both it and the same command again would write to a run. A job that is being done is interrupted, and has some
    seconds to clean up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent gets it too

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # what cleans up is not interrupted again
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    _idle.set()

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv_bytes()
        _ending.set()
        if not _idle.is_set():
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)  # which also wakes it up
            _idle.wait(_GRACE)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, TextEnvError) else f"{type(error).__name__}: {error}"
