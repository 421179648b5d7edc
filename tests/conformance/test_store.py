"""The store itself: your own SQL and operations, figures, opening and closing, the process's default store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import jobstore
from jobstore import (
    ConstraintFailed,
    DatabaseError,
    InvalidArgument,
    InvalidJob,
    Job,
    JobStatus,
    JobStore,
    JobStoreError,
    NewJob,
    SessionNotFound,
    StatementFailed,
    StoreClosed,
)
from jobstore.models import Text
from jobstore.operations import jobs
from jobstore.sql import Operation, execute, fetch_all, fetch_one
from jobstore.testing import FakeClock

from .support import enqueue, start

# execute


async def test_execute_returns_rows_as_mappings(store: JobStore) -> None:
    job = await enqueue(store, priority=7)
    rows = await store.execute(
        "SELECT id, priority + :more AS raised, model_used FROM background_jobs WHERE id = :id",
        {"id": job.id, "more": 1},
    )
    assert [dict(row) for row in rows] == [{"id": job.id, "raised": 8, "model_used": None}]
    assert list(rows[0]) == ["id", "raised", "model_used"]
    assert await store.execute("SELECT id FROM background_jobs WHERE 1 = 0") == []


async def test_execute_writes_durably_and_returns_what_it_returns(store: JobStore) -> None:
    await store.kv.set("key", 1)
    rows = await store.execute("UPDATE key_value_store SET value = :value RETURNING key", {"value": "[2]"})
    assert [row["key"] for row in rows] == ["key"]
    assert await store.kv.get("key") == [2]


@pytest.mark.parametrize("name", ["sql", "self", "now", "parameters", "fetch", "class"])
async def test_a_parameter_may_have_any_name(store: JobStore, name: str) -> None:
    [row] = await store.execute(f"SELECT :{name} AS value", {name: "text"})
    assert row["value"] == "text"


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("INSERT INTO key_value_store (key, updated_at, value) VALUES ('taken', 0, '1')", "unique"),
        ("INSERT INTO included_files (session_id, path, position) VALUES ('nobody', 'a', 0)", "foreign_key"),
        ("INSERT INTO lanes (task_type, api_type) VALUES ('t', NULL)", "not_null"),
        ("INSERT INTO store_identity (singleton, store_id) VALUES (2, 'another')", "check"),
        ("INSERT INTO key_value_store (key, updated_at, value) VALUES ('k', NULL, '1')", "not_null"),
    ],
)
async def test_a_broken_constraint_is_an_error_of_its_kind(store: JobStore, sql: str, kind: str) -> None:
    await store.kv.set("taken", 1)
    with pytest.raises(ConstraintFailed) as refusal:
        await store.execute(sql)
    assert refusal.value.kind == kind
    assert await store.kv.items() == {"taken": 1}


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELEKT 1", None),
        ("SELECT * FROM no_such_table", None),
        ("SELECT :missing AS value", {}),
        ("SELECT :missing AS value", {"other": 1}),
        ("SELECT 1; SELECT 2", None),
        ("SELECT :value AS value", {"value": object()}),
        ("SELECT :value AS value", {"value": [1]}),
        ("SELECT :value AS value", {"value": 2**64}),
        ("SELECT :value AS value", {"value": "\ud800"}),
    ],
)
async def test_a_statement_that_cannot_be_run_is_an_error_of_ours(
    store: JobStore, sql: str, parameters: dict[str, Any] | None
) -> None:
    with pytest.raises(StatementFailed):
        await store.execute(sql, parameters)
    assert await store.execute("SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.parametrize("sql", ["COMMIT", "rollback", " \n-- a comment\nBEGIN", "/* */ SAVEPOINT mine", "END"])
async def test_a_statement_cannot_end_the_transaction_that_it_shares(store: JobStore, sql: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await store.execute(sql)
    assert refusal.value.field == "sql"


# run


def order(now: int, name: str, session_id: str | None = None, *, price: int = 0) -> Operation[Job]:
    """Insert into a table of one's own and enqueue a job: both or neither."""
    yield from execute(
        "INSERT INTO orders (name, price, made_at) VALUES (:name, :price, :now)", name=name, price=price, now=now
    )
    new = NewJob(prompt=f"Handle {name}", task_type="order", api_type="claude", session_id=session_id)
    return (yield from jobs.enqueue(now, f"job of {name}", new, Text(new.prompt)))


@pytest.fixture
async def with_orders(store: JobStore) -> JobStore:
    await store.execute("CREATE TABLE orders (name TEXT NOT NULL PRIMARY KEY, price BIGINT, made_at BIGINT)")
    return store


async def test_a_composed_operation_writes_all_of_it(with_orders: JobStore, clock: FakeClock) -> None:
    job = await with_orders.run(order, "first", price=5)
    assert job.status is JobStatus.IDLE
    assert await with_orders.execute("SELECT * FROM orders") == [{"name": "first", "price": 5, "made_at": clock()}]
    assert [claim.job_id for claim in await with_orders.jobs.claim("worker-1")] == ["job of first"]


async def test_a_composed_operation_that_fails_writes_nothing_of_it(with_orders: JobStore) -> None:
    await with_orders.run(order, "first")
    with pytest.raises(SessionNotFound):
        await with_orders.run(order, "second", "nobody")
    with pytest.raises(ConstraintFailed):
        await with_orders.run(order, "first")
    assert [row["name"] for row in await with_orders.execute("SELECT name FROM orders")] == ["first"]
    assert await with_orders.jobs.count() == 1


async def test_an_operation_may_handle_the_error_of_a_statement(with_orders: JobStore) -> None:
    def make_if_new(now: int, name: str) -> Operation[bool]:
        try:
            yield from order(now, name)
        except ConstraintFailed:
            return False
        return True

    assert await with_orders.run(make_if_new, "first") is True
    assert await with_orders.run(make_if_new, "first") is False


async def test_an_operations_own_error_reaches_its_caller_alone(with_orders: JobStore) -> None:
    def fail_after_writing(now: int) -> Operation[None]:
        yield from order(now, "never")
        raise ZeroDivisionError

    outcomes = await asyncio.gather(
        *(with_orders.run(order, f"order {number}") for number in range(5)),
        with_orders.run(fail_after_writing),
        *(with_orders.run(order, f"order {number}") for number in range(5, 10)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Job] * 5 + [ZeroDivisionError] + [Job] * 5
    assert len(await with_orders.execute("SELECT name FROM orders")) == 10


async def test_operations_read_what_they_wrote(with_orders: JobStore) -> None:
    def count_after_writing(now: int) -> Operation[tuple[int, list[str]]]:
        yield from order(now, "b")
        yield from order(now, "a")
        row = yield from fetch_one("SELECT COUNT(*) AS count FROM orders")
        rows = yield from fetch_all("SELECT name FROM orders ORDER BY name")
        assert row is not None
        return row["count"], [one["name"] for one in rows]

    assert await with_orders.run(count_after_writing) == (2, ["a", "b"])


# figures and migrations


async def test_figures_tell_of_batches_reads_and_waiters(store: JobStore) -> None:
    before = store.stats()
    await asyncio.gather(*(enqueue(store) for _ in range(20)))
    await asyncio.gather(*(store.jobs.count() for _ in range(20)))
    after = store.stats()
    assert after.writer.operations == before.writer.operations + 20
    assert before.writer.batches < after.writer.batches <= before.writer.batches + 20
    assert 1 < after.writer.largest_batch <= 20
    assert (after.writer.waiting_operations, after.writer.waiting_bytes, after.writer.blocked_callers) == (0, 0, 0)
    assert after.pool.reads >= before.pool.reads + 20  # now and then a store looks by itself for what others did
    assert 1 <= after.pool.open <= after.pool.size
    assert (after.pool.in_use, after.pool.waiting, after.pool.timeouts) == (0, 0, 0)
    assert after.wake.own > before.wake.own


async def test_an_open_store_has_all_its_migrations(store: JobStore) -> None:
    applied = await store.migrations.applied()
    assert [step.name for step in applied] == sorted(step.name for step in applied)
    assert applied
    assert all(step.checksum and step.applied_at.tzinfo for step in applied)
    assert await store.migrations.pending() == []


# opening and closing


CALLS: dict[str, Callable[[JobStore], Awaitable[object]]] = {
    "enqueue": lambda it: it.jobs.enqueue("x", task_type="t", api_type="a"),
    "enqueue_many": lambda it: it.jobs.enqueue_many([NewJob(prompt="x", task_type="t", api_type="a")]),
    "a large prompt": lambda it: it.jobs.enqueue("x" * 100_000, task_type="t", api_type="a"),
    "claim": lambda it: it.jobs.claim("worker-1"),
    "get": lambda it: it.jobs.get("x"),
    "list": lambda it: it.jobs.list(),
    "count": lambda it: it.jobs.count(),
    "stats": lambda it: it.jobs.stats(),
    "wait": lambda it: it.jobs.wait("x"),
    "wake": lambda it: it.jobs.wake(),
    "wake since": lambda it: it.jobs.wake(since=0),
    "prune": lambda it: it.jobs.prune(older_than=0),
    "prune securely": lambda it: it.jobs.prune(older_than=0, secure=True),
    "clear": lambda it: it.jobs.clear(["x"]),
    "cancel": lambda it: it.jobs.cancel("x"),
    "read_response": lambda it: it.jobs.read_response("x"),
    "tail": lambda it: anext(it.jobs.tail("x")),
    "record": lambda it: it.jobs.record("x", task_type="t", api_type="a").__aenter__(),
    "sessions": lambda it: it.sessions.create(name="x", project_directory="/a"),
    "files": lambda it: it.files.included("x"),
    "cached_state": lambda it: it.cached_state.get("/a", "x"),
    "kv": lambda it: it.kv.set("x", 1),
    "migrations": lambda it: it.migrations.applied(),
    "dump": lambda it: it.tables.dump({"sessions": BytesIO()}),
}


class Parts:
    """The repositories of a store, as a program may hold them beyond its end."""

    def __init__(self, store: JobStore) -> None:
        self.jobs, self.sessions, self.files = store.jobs, store.sessions, store.files
        self.cached_state, self.kv, self.migrations = store.cached_state, store.kv, store.migrations
        self.tables = store.tables


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_store_that_was_closed_says_so(store: JobStore, call: Callable[[Any], Awaitable[object]]) -> None:
    held = Parts(store)
    await store.close()
    for closed in (held, store):
        with pytest.raises(StoreClosed):
            await call(closed)


async def test_the_store_itself_says_that_it_is_closed(store: JobStore) -> None:
    await store.close()
    await store.close()
    assert "closed" in repr(store)
    for call in (lambda: store.execute("SELECT 1"), lambda: store.run(order, "x"), store.sweep):
        with pytest.raises(StoreClosed):
            await call()
    with pytest.raises(StoreClosed):
        store.stats()


async def test_a_store_that_was_never_opened_says_so(database: Path | str) -> None:
    with pytest.raises(StoreClosed):
        JobStore(database).jobs.claim  # noqa: B018 - reaching for it is enough


async def test_a_closed_store_can_be_opened_again(store: JobStore) -> None:
    job = await enqueue(store)
    await store.close()
    async with store:
        assert (await store.jobs.get(job.id)).id == job.id
        assert await store.open() is store


async def test_closing_waits_for_what_was_accepted(store: JobStore, database: Path | str, clock: FakeClock) -> None:
    tasks = [asyncio.create_task(enqueue(store)) for _ in range(50)]
    await asyncio.sleep(0)
    await store.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    made = {outcome.id for outcome in outcomes if isinstance(outcome, Job)}
    assert all(isinstance(outcome, Job | StoreClosed) for outcome in outcomes)
    async with JobStore(database, clock=clock) as again:
        assert {job.id for job in (await again.jobs.list(limit=100)).items} == made
    assert made


async def test_a_store_belongs_to_the_event_loop_that_opened_it(store: JobStore) -> None:
    calls = [*CALLS.values(), JobStore.sweep, JobStore.vacuum, JobStore.maintain]
    errors: list[BaseException] = []

    async def use() -> None:
        for call in calls:
            try:
                await call(store)
            except JobStoreError as error:
                errors.append(error)

    thread = threading.Thread(target=asyncio.run, args=(use(),))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert [type(error) for error in errors] == [StoreClosed] * len(calls)
    assert await store.jobs.count() == 0


# the default store


@pytest.fixture
async def default_database(database: Path | str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path | str]:
    monkeypatch.setenv("JOBSTORE_URL", str(database))
    yield database
    await jobstore.close_database()


async def migrate(database: Path | str) -> None:
    async with JobStore(database, migrate=True):
        pass


async def test_all_tasks_of_a_loop_share_one_default_store(default_database: Path | str) -> None:
    await migrate(default_database)
    stores = await asyncio.gather(*(jobstore.ensure_connection() for _ in range(50)))
    assert len({id(store) for store in stores}) == 1
    assert await jobstore.ensure_connection() is stores[0]
    await enqueue(stores[0])
    assert stores[0].stats().writer.operations == 1


async def test_each_event_loop_has_a_default_store_of_its_own(default_database: Path | str) -> None:
    await migrate(default_database)
    mine = await jobstore.ensure_connection()
    theirs: list[JobStore] = []

    async def use() -> None:
        theirs.append(await jobstore.ensure_connection())
        await enqueue(theirs[0])
        await jobstore.close_database()

    thread = threading.Thread(target=asyncio.run, args=(use(),))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert theirs[0] is not mine
    assert await mine.jobs.count() == 1


async def test_a_cancelled_first_asker_does_not_hurt_the_others(default_database: Path | str) -> None:
    await migrate(default_database)
    for turns in range(8):
        first = asyncio.create_task(jobstore.ensure_connection())
        for _ in range(turns):
            await asyncio.sleep(0)
        second = asyncio.create_task(jobstore.ensure_connection())
        first.cancel()
        store = await second
        assert await store.jobs.count() == 0
        await asyncio.gather(first, return_exceptions=True)
        await jobstore.close_database()


async def test_an_opening_that_failed_is_tried_again(default_database: Path | str) -> None:
    outcomes = await asyncio.gather(*(jobstore.ensure_connection() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(outcome, DatabaseError) for outcome in outcomes)
    await migrate(default_database)
    assert await (await jobstore.ensure_connection()).jobs.count() == 0


@pytest.mark.usefixtures("default_database")
async def test_closing_a_default_store_that_never_opened_does_nothing() -> None:
    await jobstore.close_database()
    with pytest.raises(DatabaseError):
        await jobstore.ensure_connection()
    await jobstore.close_database()
    with pytest.raises(DatabaseError):  # and nothing was made
        await jobstore.ensure_connection()


async def test_closing_that_is_cancelled_closes_the_default_store_all_the_same(default_database: Path | str) -> None:
    await migrate(default_database)
    asking = asyncio.create_task(jobstore.ensure_connection())
    await asyncio.sleep(0)
    closing = asyncio.create_task(jobstore.close_database())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not (await asking).is_open


async def test_after_closing_the_default_store_a_new_one_is_opened(default_database: Path | str) -> None:
    await migrate(default_database)
    first = await jobstore.ensure_connection()
    await jobstore.close_database()
    await jobstore.close_database()
    with pytest.raises(StoreClosed):
        first.jobs.claim  # noqa: B018 - reaching for it is enough
    second = await jobstore.ensure_connection()
    assert await second.jobs.count() == 0


async def test_a_default_store_that_someone_closed_is_opened_again(default_database: Path | str) -> None:
    await migrate(default_database)
    async with await jobstore.ensure_connection() as store:
        await enqueue(store)
    again = await jobstore.ensure_connection()
    assert await again.jobs.count() == 1


async def test_without_a_url_there_is_no_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOBSTORE_URL", raising=False)
    with pytest.raises(InvalidArgument) as refusal:
        await jobstore.ensure_connection()
    assert refusal.value.field == "url"
    assert "JOBSTORE_URL" in str(refusal.value)


async def test_a_running_claim_of_the_store_survives_its_closing(
    store: JobStore, database: Path | str, clock: FakeClock
) -> None:
    claimed = await start(store)
    await store.close()
    async with JobStore(database, clock=clock) as again:
        assert (await again.jobs.complete(claimed, "answer")).response == "answer"


def increment(_now: int) -> Operation[None]:
    """Read, then write what was computed of it."""
    row = yield from fetch_one("SELECT count FROM counters")
    assert row is not None
    yield from execute("UPDATE counters SET count = :count", count=row["count"] + 1)


async def test_operations_that_read_and_then_write_lose_no_update(
    store: JobStore, database: Path | str, clock: FakeClock
) -> None:
    await store.execute("CREATE TABLE counters (count BIGINT)")
    await store.execute("INSERT INTO counters (count) VALUES (0)")
    async with JobStore(database, clock=clock) as another:
        await asyncio.gather(*(one.run(increment) for one in [store, another] * 25))
    assert await store.execute("SELECT count FROM counters") == [{"count": 50}]


def order_with_job(now: int, name: str) -> Operation[Job]:
    yield from execute("INSERT INTO orders (name) VALUES (:name)", name=name)
    return (yield from jobstore.enqueue(now, NewJob(prompt=f"Handle {name}", task_type="order", api_type="claude")))


async def test_a_job_is_enqueued_together_with_rows_of_ones_own(with_orders: JobStore) -> None:
    job = await with_orders.run(order_with_job, "tea")
    assert await with_orders.jobs.get(job.id) == job
    with pytest.raises(ConstraintFailed):
        await with_orders.run(order_with_job, "tea")
    assert await with_orders.jobs.count() == 1


async def test_a_prompt_that_belongs_into_a_file_is_refused_by_an_operation(with_orders: JobStore) -> None:
    with pytest.raises(InvalidJob) as refusal:
        await with_orders.run(order_with_job, "tea" * 65536)
    assert refusal.value.field == "prompt"
    assert await with_orders.execute("SELECT name FROM orders") == []
