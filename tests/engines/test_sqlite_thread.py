"""The contract with aiosqlite that one hop a batch stands on, and the life of a connection's thread."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from functools import partial

import aiosqlite
import pytest
from aiosqlite import core

from jobstore.engines.sqlite_thread import ThreadConnection


def connect() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


def test_aiosqlite_still_has_the_parts_that_are_built_upon() -> None:
    connection = aiosqlite.Connection(connect, 64)
    assert isinstance(connection._tx, queue.SimpleQueue)
    assert isinstance(connection._thread, threading.Thread)
    assert connection._running is True
    assert connection._connection is None
    ran = []
    tx: queue.SimpleQueue[object] = queue.SimpleQueue()
    tx.put((None, lambda: ran.append(1)))
    tx.put((None, lambda: core._STOP_RUNNING_SENTINEL))
    core._connection_worker_thread(tx)  # type: ignore[arg-type]
    assert ran == [1]


async def test_a_function_runs_whole_on_the_connections_thread() -> None:
    connection = ThreadConnection(connect)
    await connection.connect()

    def work(database: sqlite3.Connection, number: int) -> tuple[int, str]:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", (number,))
        return database.execute("SELECT x FROM t").fetchone()[0], threading.current_thread().name

    value, thread = await connection.submit(work, 42)
    assert value == 42
    assert thread != threading.current_thread().name
    assert [row[0] for row in await connection.execute_fetchall("SELECT x FROM t")] == [42]
    await connection.disconnect()


async def test_an_error_reaches_whoever_awaits_and_the_thread_lives_on() -> None:
    connection = ThreadConnection(connect)
    await connection.connect()

    def fail(_: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await connection.submit(fail)
    assert await connection.submit(lambda database: database.execute("SELECT 1").fetchone()) == (1,)
    await connection.disconnect()


async def test_cancelling_the_future_does_not_stop_the_function() -> None:
    connection = ThreadConnection(connect)
    await connection.connect()
    may_go_on, done = threading.Event(), []

    def work(_: sqlite3.Connection) -> None:
        may_go_on.wait()
        done.append(1)

    future = connection.submit(work)
    future.cancel()
    may_go_on.set()
    await connection.submit(lambda _: None)
    assert done == [1]
    await connection.disconnect()


async def test_another_threads_event_loop_is_answered_too() -> None:
    connection = ThreadConnection(connect)
    await connection.connect()

    async def ask() -> object:
        return await connection.submit(lambda database: database.execute("SELECT 7").fetchone()[0])

    assert await asyncio.to_thread(asyncio.run, ask()) == 7
    await connection.disconnect()


async def test_disconnecting_ends_the_thread_after_what_was_submitted_and_twice_is_fine() -> None:
    connection = ThreadConnection(connect)
    await connection.connect()
    last = connection.submit(lambda database: database.execute("SELECT 1").fetchone())
    await connection.disconnect()
    assert last.done()
    await connection.disconnect()
    await asyncio.to_thread(connection._thread.join)


async def test_a_failed_connect_ends_the_thread() -> None:
    connection = ThreadConnection(partial(sqlite3.connect, "/nowhere/at/all.db"))
    with pytest.raises(sqlite3.OperationalError):
        await connection.connect()
    await asyncio.to_thread(connection._thread.join)


async def test_a_cancelled_connect_leaves_no_thread_and_no_connection() -> None:
    may_go_on, opened = threading.Event(), []

    def slowly() -> sqlite3.Connection:
        may_go_on.wait()
        opened.append(connect())
        return opened[0]

    connection = ThreadConnection(slowly)
    task = asyncio.ensure_future(connection.connect())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_go_on.set()
    await asyncio.to_thread(connection._thread.join)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


async def test_a_forgotten_connection_ends_its_thread() -> None:
    connection = ThreadConnection(connect)
    await connection.connect()
    thread = connection._thread
    del connection
    await asyncio.to_thread(thread.join)


def test_a_loop_that_was_closed_meanwhile_does_not_kill_the_thread() -> None:
    may_go_on = threading.Event()
    connections: list[ThreadConnection] = []

    async def leave_work_behind() -> None:
        connection = ThreadConnection(connect)
        await connection.connect()
        connection.submit(lambda _: may_go_on.wait())
        connections.append(connection)

    asyncio.run(leave_work_behind())
    may_go_on.set()

    async def use_again() -> object:
        result = await connections[0].submit(lambda database: database.execute("SELECT 1").fetchone())
        await connections[0].disconnect()
        return result

    assert asyncio.run(use_again()) == (1,)
