"""Many jobs at the same time, in worker processes of this machine or on Ray."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from textenv.types import TextEnvError

__all__ = ["Job", "Pool", "processes", "ray_cluster"]

Job = tuple[str, Callable[..., None], tuple[Any, ...]]
"""Its name, a function that can be pickled, and its arguments."""
Pool = Callable[[Sequence[Job]], Iterator[tuple[str, str]]]
"""Does jobs; yields, as each ends, its name and why it failed, or ``""``."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextlib.contextmanager
def processes(workers: int, threads: int) -> Iterator[Pool]:
    """Return a pool of worker processes, each of ``threads`` threads.

    Raises:
        TextEnvError: When jobs are done: a worker was killed.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_the_parent
    )

    def do(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ |= dict.fromkeys(_THREADS, str(threads))  # the workers', which read them as they start
        futures: dict[Future[None], str] = {pool.submit(function, *given): name for name, function, given in jobs}
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
        pool.shutdown(wait=False, cancel_futures=True)


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


def _end_with_the_parent() -> None:
    """Have this process end when its parent is killed: else both it and the same command again write to a run."""
    parent: Any = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, TextEnvError) else f"{type(error).__name__}: {error}"
