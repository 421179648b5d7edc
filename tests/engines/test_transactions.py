"""Operations in a transaction of the user's own: their rows and the job commit together, or neither does."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest
from blockbuster import BlockBuster
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from jobstore import (
    ConstraintFailed,
    InvalidArgument,
    Job,
    JobStore,
    NewJob,
    Operation,
    ReadOnlyDatabase,
    SessionNotFound,
    StatementFailed,
    drive,
    enqueue,
    execute,
)

NOW = 1_750_000_000_000


@pytest.fixture(autouse=True)
def _sqlite3_blocks(_no_blocking_of_the_event_loop: BlockBuster) -> None:
    """A connection of sqlite3's own is the user's to block on."""
    for name in ("sqlite3.Connection.execute", "sqlite3.Cursor.fetchall"):
        _no_blocking_of_the_event_loop.functions[name].deactivate()


def order(session_id: str | None = None) -> Operation[Job]:
    yield from execute("INSERT INTO orders (item) VALUES (:item)", item="by the operation")
    new = NewJob(prompt="Brew tea", task_type="order", api_type="claude", session_id=session_id)
    return (yield from enqueue(NOW, new))


async def committed(store: JobStore) -> tuple[list[str], int]:
    rows = await store.execute("SELECT item FROM orders ORDER BY item")
    return [row["item"] for row in rows], await store.jobs.count()


@pytest.fixture
async def with_orders(store: JobStore) -> JobStore:
    await store.execute("CREATE TABLE orders (item TEXT)")
    return store


@pytest.mark.parametrize("commit", [True, False])
async def test_on_a_connection_of_sqlite3(with_orders: JobStore, database: Path, commit: bool) -> None:  # noqa: FBT001
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
        job = await drive(connection, order())
        connection.execute("COMMIT" if commit else "ROLLBACK")
    assert await committed(with_orders) == ((["by hand", "by the operation"], 1) if commit else ([], 0))
    if commit:
        assert await with_orders.jobs.get(job.id) == job


@pytest.mark.parametrize("commit", [True, False])
async def test_on_a_connection_of_aiosqlite(with_orders: JobStore, database: Path, commit: bool) -> None:  # noqa: FBT001
    async with aiosqlite.connect(database, isolation_level=None) as connection:
        await connection.execute("BEGIN IMMEDIATE")
        await connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
        await drive(connection, order())
        await connection.execute("COMMIT" if commit else "ROLLBACK")
    assert await committed(with_orders) == ((["by hand", "by the operation"], 1) if commit else ([], 0))


class OwnConnection(psycopg.AsyncConnection[Any]):
    """As programs derive their own."""


@pytest.mark.parametrize("commit", [True, False])
async def test_on_a_connection_of_psycopg(fresh_database: str, commit: bool) -> None:  # noqa: FBT001
    async with JobStore(fresh_database, migrate=True) as store:
        await store.execute("CREATE TABLE orders (item TEXT)")
        async with await OwnConnection.connect(fresh_database) as connection:
            await connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
            seen = await store.jobs.wake()
            job = await drive(connection, order())
            await (connection.commit() if commit else connection.rollback())
        assert await committed(store) == ((["by hand", "by the operation"], 1) if commit else ([], 0))
        if commit:
            assert await store.jobs.wake(since=seen) != seen
            assert await store.jobs.get(job.id) == job


@pytest.mark.parametrize("commit", [True, False])
async def test_the_operation_may_be_the_first_thing_in_a_transaction(fresh_database: str, commit: bool) -> None:  # noqa: FBT001
    async with JobStore(fresh_database, migrate=True) as store:
        await store.execute("CREATE TABLE orders (item TEXT)")
        async with await psycopg.AsyncConnection.connect(fresh_database) as connection:
            await drive(connection, order())
            await connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
            await (connection.commit() if commit else connection.rollback())
        assert await committed(store) == ((["by hand", "by the operation"], 1) if commit else ([], 0))


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("first", [True, False])
async def test_on_a_connection_of_sqlalchemy(
    with_orders: JobStore,
    database: Path,
    fresh_database: str,
    commit: bool,  # noqa: FBT001
    first: bool,  # noqa: FBT001
) -> None:
    async with JobStore(fresh_database, migrate=True) as on_server:
        await on_server.execute("CREATE TABLE orders (item TEXT)")
        for store, url in (
            (with_orders, f"sqlite+aiosqlite:///{database}"),
            (on_server, fresh_database.replace("postgresql://", "postgresql+psycopg://")),
        ):
            engine = create_async_engine(url)
            async with engine.connect() as connection:
                await connection.begin()
                if not first:
                    await connection.execute(text("INSERT INTO orders (item) VALUES ('by hand')"))
                await drive(connection, order())
                if first:
                    await connection.execute(text("INSERT INTO orders (item) VALUES ('by hand')"))
                await (connection.commit() if commit else connection.rollback())
                with pytest.raises(InvalidArgument):  # there is none any more
                    await drive(connection, order())
            await engine.dispose()
            assert await committed(store) == ((["by hand", "by the operation"], 1) if commit else ([], 0))


async def test_an_operation_that_fails_takes_back_what_it_did_and_no_more(
    with_orders: JobStore, database: Path, fresh_database: str
) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
        with pytest.raises(SessionNotFound):
            await drive(connection, order(session_id="nobody"))
        connection.execute("COMMIT")
    async with aiosqlite.connect(database, isolation_level=None) as connection:
        await connection.execute("PRAGMA foreign_keys=ON")
        await connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(SessionNotFound):
            await drive(connection, order(session_id="nobody"))
        await connection.execute("COMMIT")
    assert await committed(with_orders) == (["by hand"], 0)
    async with JobStore(fresh_database, migrate=True) as store:
        await store.execute("CREATE TABLE orders (item TEXT)")
        async with await psycopg.AsyncConnection.connect(fresh_database) as connection:
            await connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
            with pytest.raises(SessionNotFound):
                await drive(connection, order(session_id="nobody"))
        assert await committed(store) == (["by hand"], 0)


async def test_a_connection_without_a_transaction_is_refused(database: Path, fresh_database: str) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as plain:
        await refused(plain)
    async with aiosqlite.connect(database, isolation_level=None) as threaded:
        await refused(threaded)
    async with await psycopg.AsyncConnection.connect(fresh_database, autocommit=True) as connection:
        await refused(connection)
    with psycopg.connect(fresh_database) as blocking:
        await refused(blocking, r"not psycopg\.Connection")
    await refused("a text", r"not builtins\.str")
    with closing(sqlite3.connect(database)) as plain, pytest.raises(InvalidArgument, match="operation"):
        await drive(plain, None)  # type: ignore[arg-type]


async def refused(connection: Any, reason: str = "begin one") -> None:  # noqa: ANN401
    with pytest.raises(InvalidArgument, match=reason) as refusal:
        await drive(connection, order())
    assert refusal.value.field == "connection"


def ending_it() -> Operation[int]:
    return (yield from execute("COMMIT"))


def unstorable() -> Operation[int]:
    return (yield from execute("INSERT INTO orders (item) VALUES (:item)", item="\ud800"))


async def test_no_operation_ends_the_transaction_or_shows_what_cannot_be_stored(
    with_orders: JobStore, database: Path, fresh_database: str
) -> None:
    async with aiosqlite.connect(database, isolation_level=None) as threaded:
        await threaded.execute("BEGIN IMMEDIATE")
        await refused_all(threaded)
        assert threaded.in_transaction
    with closing(sqlite3.connect(database, isolation_level=None)) as plain:
        plain.execute("BEGIN IMMEDIATE")
        await refused_all(plain)
        assert plain.in_transaction
    async with await psycopg.AsyncConnection.connect(fresh_database) as connection:
        await connection.execute("CREATE TABLE orders (item TEXT)")
        await refused_all(connection)
    assert await committed(with_orders) == ([], 0)


async def refused_all(connection: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidArgument):
        await drive(connection, ending_it())
    with pytest.raises(StatementFailed):
        await drive(connection, unstorable())


def behind_a_comment() -> Operation[int]:
    return (yield from execute("-- for PostgreSQL, a comment ends here:\rCOMMIT"))


def behind_another_statement() -> Operation[int]:
    return (yield from execute("INSERT INTO orders (item) VALUES ('by the operation'); COMMIT"))


async def test_nothing_ends_a_transaction_of_psycopg_out_of_sight(fresh_database: str) -> None:
    async with JobStore(fresh_database, migrate=True) as store:
        await store.execute("CREATE TABLE orders (item TEXT)")
        async with await psycopg.AsyncConnection.connect(fresh_database) as connection:
            with pytest.raises(InvalidArgument, match="COMMIT is the store's own business"):
                await drive(connection, behind_a_comment())
            with pytest.raises(StatementFailed, match="multiple commands"):
                await drive(connection, behind_another_statement())
            await connection.rollback()
        with pytest.raises(InvalidArgument, match="COMMIT is the store's own business"):
            await store.run(lambda _now: behind_a_comment())
        assert await committed(store) == ([], 0)


async def test_a_connection_in_pipeline_mode_is_refused(fresh_database: str) -> None:
    async with (
        await psycopg.AsyncConnection.connect(fresh_database) as connection,
        connection.transaction(),
        connection.pipeline(),
    ):
        await refused(connection, "must not be in pipeline mode")


def by_name(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip((column[0] for column in cursor.description), row, strict=True))


def once() -> Operation[Job]:
    return (yield from enqueue(NOW, NewJob(prompt="p", task_type="t", api_type="a", idempotency_key="once")))


@pytest.mark.parametrize("rows", [None, sqlite3.Row, by_name])
async def test_a_connection_may_give_its_user_rows_and_texts_of_any_kind(
    with_orders: JobStore, database: Path, rows: Callable[..., Any] | None
) -> None:
    made = await with_orders.jobs.enqueue("p", task_type="t", api_type="a", idempotency_key="once")
    with closing(sqlite3.connect(database, isolation_level=None)) as plain:
        plain.row_factory, plain.text_factory = rows, bytes
        plain.execute("BEGIN IMMEDIATE")
        assert await drive(plain, once()) == made
        assert (plain.row_factory, plain.text_factory) == (rows, bytes)
    async with aiosqlite.connect(database, isolation_level=None) as threaded:
        threaded.row_factory, threaded.text_factory = rows, bytes
        await threaded.execute("BEGIN IMMEDIATE")
        assert await drive(threaded, once()) == made
        assert (threaded.row_factory, threaded.text_factory) == (rows, bytes)


async def test_a_connection_that_is_closed_or_another_threads_is_refused(database: Path) -> None:
    with ThreadPoolExecutor(1) as elsewhere:
        theirs = elsewhere.submit(sqlite3.connect, database, isolation_level=None).result()
        elsewhere.submit(theirs.execute, "BEGIN").result()
        with pytest.raises(StatementFailed, match="created in a thread"):
            await drive(theirs, order())
        elsewhere.submit(theirs.close).result()
    await refused(theirs)
    async with aiosqlite.connect(database) as threaded:
        pass
    await refused(threaded)


async def test_what_was_done_before_the_database_failed_is_taken_back(with_orders: JobStore, database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:

        def failing_halfway() -> Operation[Job]:
            yield from execute("INSERT INTO orders (item) VALUES ('half of it')")
            connection.execute("PRAGMA query_only=ON")
            return (yield from order())

        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders (item) VALUES ('by hand')")
        with pytest.raises(ReadOnlyDatabase):
            await drive(connection, failing_halfway())
        connection.execute("PRAGMA query_only=OFF")
        connection.execute("COMMIT")
    assert await committed(with_orders) == (["by hand"], 0)


def going_on() -> Operation[Job]:
    with suppress(ConstraintFailed):
        yield from execute("INSERT OR ROLLBACK INTO lanes (task_type, api_type) VALUES ('t', NULL)")
    return (yield from order())


async def test_an_operation_does_not_go_on_without_its_transaction(with_orders: JobStore, database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as plain:
        plain.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConstraintFailed):
            await drive(plain, going_on())
        assert not plain.in_transaction
    async with aiosqlite.connect(database, isolation_level=None) as threaded:
        await threaded.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConstraintFailed):
            await drive(threaded, going_on())
        assert not threaded.in_transaction
    assert await committed(with_orders) == ([], 0)
