"""The pool of readers is bounded, fair, and survives cancelled callers."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator

import pytest

from jobstore import PoolTimeout
from jobstore.engines.sqlite_pool import ReaderPool


def connect() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


class Gate:
    """Holds a reading connection until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def pass_through(self, _: sqlite3.Connection) -> str:
        self.entered.release()
        self.opened.wait()
        return "passed"


@pytest.fixture
async def pool() -> AsyncIterator[ReaderPool]:
    pool = ReaderPool(connect, size=2, timeout=30)
    yield pool
    await pool.close()


async def hold(pool: ReaderPool, gate: Gate, count: int) -> list[asyncio.Task[str]]:
    """Return once so many callers hold a connection."""
    tasks = [asyncio.ensure_future(pool.run(gate.pass_through)) for _ in range(count)]
    for _ in range(count):
        await asyncio.to_thread(gate.entered.acquire)
    return tasks


async def test_connections_are_opened_as_needed_and_no_more_than_allowed(pool: ReaderPool) -> None:
    await pool.run(lambda _: None)
    assert pool.stats().open == 1
    gate = Gate()
    tasks = await hold(pool, gate, 2)
    late = asyncio.ensure_future(pool.run(lambda _: "late"))
    await asyncio.sleep(0)
    stats = pool.stats()
    assert (stats.open, stats.in_use, stats.waiting) == (2, 2, 1)
    gate.opened.set()
    assert await asyncio.gather(*tasks) == ["passed", "passed"]
    assert await late == "late"
    assert pool.stats().in_use == 0


async def test_waiting_too_long_is_a_clear_error_and_leaves_the_pool_whole() -> None:
    pool = ReaderPool(connect, size=1, timeout=0.01)
    gate = Gate()
    [held] = await hold(pool, gate, 1)
    with pytest.raises(PoolTimeout) as caught:
        await pool.run(lambda _: None)
    assert caught.value.pool_size == 1
    assert pool.stats().timeouts == 1
    gate.opened.set()
    await held
    assert await pool.run(lambda _: "again") == "again"
    await pool.close()


async def test_a_cancelled_reader_keeps_its_connection_until_the_thread_is_done(pool: ReaderPool) -> None:
    gate = Gate()
    tasks = await hold(pool, gate, 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert pool.stats().in_use == 2
    late = asyncio.ensure_future(pool.run(lambda _: "late"))
    gate.opened.set()
    assert await late == "late"


async def test_a_cancelled_waiter_hands_on_what_it_was_given(pool: ReaderPool) -> None:
    gate = Gate()
    tasks = await hold(pool, gate, 2)
    first = asyncio.ensure_future(pool.run(lambda _: "first"))
    second = asyncio.ensure_future(pool.run(lambda _: "second"))
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    first.cancel()
    assert await second == "second"
    await asyncio.gather(*tasks)


async def test_a_connection_that_cannot_be_opened_gives_its_place_to_the_next() -> None:
    attempts = iter([sqlite3.OperationalError("no handle"), None])

    def sometimes() -> sqlite3.Connection:
        error = next(attempts)
        if error is not None:
            raise error
        return connect()

    pool = ReaderPool(sometimes, size=1, timeout=30)
    failed, served = await asyncio.gather(pool.run(lambda _: 1), pool.run(lambda _: 2), return_exceptions=True)
    assert isinstance(failed, sqlite3.OperationalError)
    assert served == 2
    await pool.close()
