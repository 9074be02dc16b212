"""Many jobs at the same time, in worker processes of this machine or on Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from textenv.types import TextEnvError

__all__ = ["Job", "on_processes", "on_ray"]

Job = tuple[str, Callable[..., None], tuple[Any, ...]]
"""Its name, a function that can be pickled, and its arguments."""


def on_processes(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[tuple[str, str]]:
    """Do jobs in worker processes, each of ``threads`` threads.

    Yields:
        As each job ends, its name and why it failed, or ``""``.

    Raises:
        TextEnvError: A worker was killed, so that nobody knows which jobs are lost.
    """
    environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= dict.fromkeys(environment, str(threads))  # the workers', read as they start
    pool = ProcessPoolExecutor(min(workers, max(1, len(jobs))), mp_context=multiprocessing.get_context("spawn"))
    try:
        futures: dict[Future[None], str] = {pool.submit(function, *given): name for name, function, given in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise TextEnvError(
                    "A worker process ended all of a sudden, perhaps for want of memory. What is finished is kept: "
                    "give the same command again, with fewer --workers if so."
                )
            yield futures[future], "" if error is None else _reason(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def on_ray(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[tuple[str, str]]:
    """Do jobs on Ray: the cluster of RAY_ADDRESS, or one that is started on this machine.

    Yields:
        As each job ends, its name and why it failed, or ``""``.

    Raises:
        TextEnvError: Ray is not installed.
    """
    try:
        import ray  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        raise TextEnvError("--ray needs Ray: pip install 'textenv[ray]'.") from error
    address = os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        local = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", **local)
    environment = {"env_vars": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    try:
        waiting: dict[Any, str] = {}
        for name, function, given in jobs:
            remote = ray.remote(function).options(num_cpus=threads, max_retries=0, runtime_env=environment)
            waiting[remote.remote(*given)] = name
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
    finally:
        if started:
            ray.shutdown()


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, TextEnvError) else f"{type(error).__name__}: {error}"
