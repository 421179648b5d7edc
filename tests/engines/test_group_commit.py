"""Writes that wait together commit together, and a bad one among them harms nobody else."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

import psutil
import pytest

from jobstore import (
    ConnectionLost,
    ConstraintFailed,
    DatabaseBusy,
    DatabaseError,
    DiskFull,
    InvalidArgument,
    Job,
    JobStore,
    Operation,
    SessionNotFound,
    StatementFailed,
    StoreClosed,
    execute,
    fetch_one,
)
from jobstore.engines import group_commit, sqlite_driver
from jobstore.engines.base import Request
from jobstore.engines.group_commit import GroupCommit
from jobstore.engines.sqlite_driver import Committed

OnWriter = Callable[[Callable[[sqlite3.Connection], object]], Awaitable[object]]


def enqueue(store: JobStore, prompt: str = "p", **fields: object) -> Awaitable[Job]:
    return store.jobs.enqueue(prompt, task_type="task", api_type="api", **fields)  # type: ignore[arg-type]


async def outcomes(*calls: Awaitable[object]) -> list[object]:
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.fixture
def batches_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, a batch does not end for that."""
    monkeypatch.setattr(sqlite_driver, "MAX_BATCH_SECONDS", 3600.0)


@pytest.mark.usefixtures("batches_have_time")
async def test_callers_that_wait_together_share_one_commit(store: JobStore) -> None:
    before = store.stats().writer
    jobs = await asyncio.gather(*(enqueue(store, str(number)) for number in range(100)))
    after = store.stats().writer
    assert after.operations - before.operations == 100
    assert after.batches - before.batches == 1
    assert [(await store.jobs.get(job.id)).prompt for job in jobs] == [str(number) for number in range(100)]


@pytest.mark.usefixtures("batches_have_time")
async def test_a_missing_foreign_key_fails_alone(store: JobStore) -> None:
    good, bad, other = await outcomes(enqueue(store), enqueue(store, session_id="nobody"), enqueue(store))
    assert isinstance(good, Job)
    assert isinstance(other, Job)
    assert isinstance(bad, SessionNotFound)
    assert await store.jobs.count() == 2
    assert store.stats().writer.batches == 1


class _UsersOwnError(Exception):
    pass


class _UsersOwnBaseError(BaseException):
    pass


@pytest.mark.parametrize("error", [_UsersOwnError, _UsersOwnBaseError])
async def test_an_exception_in_an_operation_fails_alone_and_undoes_what_it_wrote(
    store: JobStore, error: type[BaseException]
) -> None:
    def failing(now: int) -> Operation[None]:
        yield from execute("INSERT INTO key_value_store (key, updated_at, value) VALUES ('k', :now, '1')", now=now)
        raise error

    good, bad, other = await outcomes(enqueue(store), store.run(failing), enqueue(store))
    assert isinstance(good, Job)
    assert isinstance(other, Job)
    assert isinstance(bad, error)
    assert await store.kv.items() == {}
    assert await store.jobs.count() == 2


async def test_a_full_disk_acknowledges_nobody_of_the_batch(store: JobStore, on_writer: OnWriter) -> None:
    await enqueue(store)

    def no_more_pages(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    await on_writer(no_more_pages)
    results = await outcomes(*(enqueue(store, "x" * 60_000) for _ in range(10)))
    assert all(isinstance(result, DiskFull) for result in results)
    assert await store.jobs.count() == 1

    await on_writer(lambda connection: connection.execute("PRAGMA max_page_count=1000000").fetchone())
    await enqueue(store)
    assert await store.jobs.count() == 2


POISONS = {
    "a deferred foreign key": """
        INSERT INTO deferred_child (parent) VALUES (42)
    """,
    "OR ROLLBACK": "INSERT OR ROLLBACK INTO key_value_store (key, updated_at, value) VALUES ('taken', 1, '1')",
    "RAISE(ROLLBACK) in a trigger": "INSERT INTO raising (x) VALUES (1)",
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
async def test_a_statement_that_takes_the_transaction_down_fails_alone(store: JobStore, poison: str) -> None:
    await store.kv.set("taken", 1)
    await store.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    await store.execute(
        "CREATE TABLE deferred_child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    await store.execute("CREATE TABLE raising (x)")
    await store.execute("CREATE TRIGGER raises BEFORE INSERT ON raising BEGIN SELECT RAISE(ROLLBACK, 'no'); END")
    good, bad, other = await outcomes(enqueue(store), store.execute(poison), enqueue(store))
    assert isinstance(bad, ConstraintFailed)
    assert isinstance(good, Job)
    assert isinstance(other, Job)
    assert await store.jobs.count() == 2
    await enqueue(store)
    assert await store.jobs.count() == 3


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT",
        "  commit;",
        "; COMMIT",
        "/* hello */ COMMIT",
        "-- hello\nCOMMIT",
        "\ufeffCOMMIT",
        "END TRANSACTION",
        "ROLLBACK",
        "ROLLBACK TO operation",
        "RELEASE operation",
        "SAVEPOINT mine",
        "BEGIN",
        "PRAGMA query_only=ON",
        "ATTACH 'other.db' AS other",
        "DETACH main",
        "VACUUM",
    ],
)
async def test_statements_that_would_end_the_shared_transaction_are_refused(store: JobStore, sql: str) -> None:
    good, bad, other = await outcomes(enqueue(store), store.execute(sql), enqueue(store))
    assert isinstance(bad, InvalidArgument)
    assert bad.field == "sql"
    assert isinstance(good, Job)
    assert isinstance(other, Job)
    await enqueue(store)
    assert await store.jobs.count() == 3


async def test_an_operation_may_say_what_a_refused_statement_means(store: JobStore) -> None:
    def set_once(now: int, key: str) -> Operation[bool]:
        sql = "INSERT INTO key_value_store (key, updated_at, value) VALUES (:key, :now, '1')"
        try:
            yield from execute(sql, key=key, now=now)
        except ConstraintFailed as error:
            return error.kind != "unique"
        return True

    assert await store.run(set_once, "k") is True
    assert await store.run(set_once, "k") is False


async def test_read_then_write_operations_do_not_lose_updates(store: JobStore) -> None:
    await store.kv.set("n", 0)

    def increment(now: int) -> Operation[None]:
        row = yield from fetch_one("SELECT value FROM key_value_store WHERE key = 'n'")
        assert row is not None
        value = str(int(row["value"]) + 1)
        yield from execute("UPDATE key_value_store SET value = :value, updated_at = :now", value=value, now=now)

    await asyncio.gather(*(store.run(increment) for _ in range(50)))
    assert await store.kv.get("n") == 50


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELEC 1", {}),
        ("SELECT * FROM nowhere", {}),
        ("SELECT 1; SELECT 2", {}),
        ("SELECT :a", {}),
        ("SELECT :a", {"a": ["no", "value"]}),
        ("SELECT :a", {"a": 2**70}),
        ("SELECT :a", {"a": "\ud800"}),
    ],
)
async def test_what_the_database_refuses_is_a_typed_error(
    store: JobStore, sql: str, parameters: dict[str, object]
) -> None:
    with pytest.raises(StatementFailed):
        await store.execute(sql, parameters)  # type: ignore[arg-type]
    await enqueue(store)


@pytest.mark.usefixtures("batches_have_time")
async def test_a_batch_is_bounded_in_operations(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MAX_BATCH_OPERATIONS", 10)
    await asyncio.gather(*(enqueue(store) for _ in range(35)))
    assert store.stats().writer.largest_batch == 10


@pytest.mark.usefixtures("batches_have_time")
async def test_a_batch_is_bounded_in_bytes(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MAX_BATCH_BYTES", 2500)
    await asyncio.gather(*(enqueue(store, "x" * 1000) for _ in range(10)))
    assert store.stats().writer.largest_batch == 2


async def test_a_batch_is_bounded_in_time_and_keeps_the_order(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_driver, "MAX_BATCH_SECONDS", 0.0)
    jobs = await asyncio.gather(*(enqueue(store, str(number)) for number in range(10)))
    stats = store.stats().writer
    assert stats.largest_batch == 1
    assert stats.batches == 10
    claims = await store.jobs.claim("worker", limit=10)
    assert [claim.job_id for claim in claims] == [job.id for job in jobs]


async def test_callers_beyond_the_limit_of_operations_wait(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_OPERATIONS", 5)
    tasks = [asyncio.ensure_future(enqueue(store)) for _ in range(20)]
    await asyncio.sleep(0)
    stats = store.stats().writer
    assert stats.waiting_operations == 5
    assert stats.blocked_callers == 15
    await asyncio.gather(*tasks)
    assert await store.jobs.count() == 20
    assert store.stats().writer.blocked_callers == 0


async def test_callers_beyond_the_limit_of_bytes_wait_but_one_large_operation_passes(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_BYTES", 2000)
    await enqueue(store, "x" * 5000)
    tasks = [asyncio.ensure_future(enqueue(store, "x" * 900)) for _ in range(10)]
    await asyncio.sleep(0)
    stats = store.stats().writer
    assert stats.waiting_bytes == 1800
    assert stats.blocked_callers == 8
    await asyncio.gather(*tasks)
    assert await store.jobs.count() == 11


async def test_finishing_is_not_held_back_by_a_full_queue_and_goes_first(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue(store)
    [claim] = await store.jobs.claim("worker")
    monkeypatch.setattr(group_commit, "MAX_WAITING_OPERATIONS", 2)
    monkeypatch.setattr(group_commit, "MAX_BATCH_OPERATIONS", 1)
    ended: list[str] = []

    async def note(name: str, call: Awaitable[object]) -> None:
        await call
        ended.append(name)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(note("enqueue", enqueue(store)))
        tasks.create_task(note("complete", store.jobs.complete(claim, "done")))
    assert ended == ["complete", "enqueue", "enqueue", "enqueue", "enqueue"]


async def test_cancelling_a_blocked_caller_lets_the_next_one_in(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_OPERATIONS", 1)
    tasks = [asyncio.ensure_future(enqueue(store)) for _ in range(6)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
    assert await store.jobs.count() == 4
    assert store.stats().writer.waiting_bytes == 0


async def test_closing_finishes_what_was_accepted_and_refuses_who_waits(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_OPERATIONS", 3)
    tasks = [asyncio.ensure_future(enqueue(store)) for _ in range(5)]
    await asyncio.sleep(0)
    await store.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, Job) for result in results] == [True, True, True, False, False]
    assert all(isinstance(result, StoreClosed) for result in results[3:])
    await store.open()
    assert await store.jobs.count() == 3


async def test_a_thousand_mixed_callers_with_a_small_pool_end_and_memory_stays_bounded(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_OPERATIONS", 100)
    monkeypatch.setattr(group_commit, "MAX_WAITING_BYTES", 2**20)
    monkeypatch.setattr(group_commit, "MAX_BATCH_BYTES", 2**20)
    await asyncio.gather(*(enqueue(store) for _ in range(200)))
    most_operations = most_bytes = 0

    async def caller(number: int) -> None:
        nonlocal most_operations, most_bytes
        match number % 5:
            case 0:
                await enqueue(store, chr(97 + number % 26) * 50_000)
            case 1:
                for claim in await store.jobs.claim("worker", limit=2):
                    await store.jobs.complete(claim, "done")
            case 2:
                await store.jobs.list(limit=5)
            case 3:
                await store.kv.set(str(number), number)
            case _:
                await store.jobs.stats()
        stats = store.stats().writer
        most_operations = max(most_operations, stats.waiting_operations)
        most_bytes = max(most_bytes, stats.waiting_bytes)

    process = psutil.Process()
    before = process.memory_info().rss
    await asyncio.gather(*(caller(number) for number in range(1000)))
    assert process.memory_info().rss - before < 64 * 2**20
    # What waits, and what a batch had no time for; reports on claims are not held back.
    assert most_bytes <= 2 * 2**20
    assert most_operations <= 2 * 100 + 400
    stats = store.stats()
    assert stats.pool.open <= 4
    assert stats.pool.in_use == 0
    assert stats.writer.waiting_operations == 0
    assert await store.jobs.count() == 400
    assert await store.jobs.count(status="running") == 0


async def test_the_error_of_a_failed_statement_names_its_cause(store: JobStore) -> None:
    with pytest.raises(DatabaseError) as caught:
        await store.execute("SELECT * FROM nowhere")
    assert isinstance(caught.value.__cause__, sqlite3.Error)


@pytest.mark.parametrize(("patience", "driven"), [(0.0, 1), (3600.0, 5)])
@pytest.mark.parametrize("error", [ConnectionLost("away", waited=1.0), DatabaseBusy(1.0)])
async def test_who_has_waited_long_enough_gives_up_with_a_batch_that_found_no_database(
    patience: float, driven: int, error: DatabaseError
) -> None:
    batches: list[list[Request]] = []

    def commit(batch: list[Request]) -> asyncio.Future[Committed]:
        batches.append(batch)
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    queue = GroupCommit(commit, lambda *_: None, patience, lambda _: False)
    works = [queue.submit(Request(fetch_one, ("SELECT 1",), finishing=number % 2 == 0)) for number in range(5)]
    assert await asyncio.gather(*works, return_exceptions=True) == [error] * 5
    assert len(batches) == driven
    assert queue.stats().waiting_bytes == queue.stats().waiting_operations == 0
    await queue.close()
