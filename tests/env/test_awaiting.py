"""Coroutines that plain code waits for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from textenv.env.awaiting import wait_for_all


async def meeting(barrier: asyncio.Barrier, value: int) -> int:
    await barrier.wait()
    return value


async def barrier_of(parties: int) -> asyncio.Barrier:
    return asyncio.Barrier(parties)


def test_all_run_at_the_same_time_in_their_order() -> None:
    ((barrier, _),) = wait_for_all([barrier_of(3)])
    # Each goes on only once all three have begun.
    assert wait_for_all([meeting(barrier, value) for value in (1, 2, 3)]) == [(1, None), (2, None), (3, None)]


def test_one_loop_stays_for_all_calls() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    (first, _), (second, _) = wait_for_all([loop()]) + wait_for_all([loop()])
    assert first is second


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__)
def test_what_one_raises_leaves_the_others(error: BaseException) -> None:
    async def raising() -> None:
        raise error

    async def one() -> int:
        return 1

    assert wait_for_all([raising(), one()]) == [(None, error), (1, None)]
    assert wait_for_all([one()]) == [(1, None)]


def test_works_where_a_loop_runs_and_inside_a_coroutine() -> None:
    async def one() -> int:
        return 1

    async def notebook() -> Any:
        return wait_for_all([one()])

    assert asyncio.run(notebook()) == [(1, None)]
    assert wait_for_all([notebook()]) == [([(1, None)], None)]
