"""Batches on libpq's own pipeline: how many round trips they take, and what a connection keeps prepared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row

from jobstore import AttemptOutcome, Claim, ConstraintFailed, Job, JobStatus, JobStore, LeaseLost, NewJob, Usage
from jobstore.engines import postgres_driver, postgres_pipeline, postgres_writer
from jobstore.engines.postgres_pipeline import MAX_PREPARED, Bound, Connection, Result, bind, run_together, to_query
from jobstore.sql import MakeOperation, Operation, Row, execute, fetch_all, guarded
from tests import postgres

T = TypeVar("T")


@pytest.fixture
def database(postgres_database: str) -> str:
    postgres.empty(postgres_database)
    return postgres_database


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    options = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": None}
    async with await Connection.connect(database, **options) as connection:  # type: ignore[arg-type]
        yield connection


@pytest.fixture
async def store(database: str, tmp_path: Path) -> AsyncIterator[JobStore]:
    async with JobStore(database, migrate=True, outputs=tmp_path / "outputs") as store:
        yield store


def statement(sql: str, **parameters: str | int | None) -> Bound:
    return bind(to_query(sql), parameters)


async def prepared(connection: Connection) -> list[str]:
    cursor = await connection.execute("SELECT statement FROM pg_prepared_statements")
    return [row["statement"] for row in await cursor.fetchall()]


async def together(store: JobStore, make_operation: MakeOperation[..., T], *args: str) -> T:
    """Run a guarded operation as the store's own are, in turns with others that wait."""
    return await store.jobs._backend.write(make_operation, *args)


@guarded
def read(_now: int, sql: str) -> Operation[list[Row]]:
    return (yield from fetch_all(sql))


@guarded
def write_unseen_and_fail(_now: int) -> Operation[None]:
    yield from fetch_all("WITH made AS (INSERT INTO things (id) VALUES (7) RETURNING id) SELECT id FROM made")
    raise LookupError


@guarded
def write(_now: int, sql: str) -> Operation[int]:
    return (yield from execute(sql))


async def test_a_lone_caller_waits_for_two_round_trips(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    trips: list[int] = []

    async def counted(connection: Connection, statements: Sequence[Bound]) -> list[Result]:
        trips.append(len(statements))
        return await run_together(connection, statements)

    for module in (postgres_driver, postgres_writer):
        monkeypatch.setattr(module, "run_together", counted)
    await store.jobs.enqueue("p", task_type="t", api_type="a")
    begin_look_and_insert, mark_and_commit = 4, 3
    assert trips == [begin_look_and_insert, mark_and_commit]
    [claim] = await store.jobs.claim("worker")
    await store.jobs.complete(claim, "done")
    assert trips == [begin_look_and_insert, mark_and_commit] * 3


async def claims(store: JobStore, count: int) -> list[Claim]:
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(count))
    return await store.jobs.claim("worker", limit=count)


async def test_jobs_that_are_completed_together_are_completed_by_one_statement(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips: list[int] = []

    async def counted(connection: Connection, statements: Sequence[Bound]) -> list[Result]:
        trips.append(len(statements))
        return await run_together(connection, statements)

    answers = ["", "NULL", "null", 'a "quoted" one', "{a,b}", r"C:\new\"", " spaces ", "two\nlines", "ünïcödé 👋"]
    usages = [Usage(input_tokens=number, cost=number / 7 if number % 2 else None) for number in range(len(answers))]
    given = list(zip(await claims(store, len(answers)), answers, usages, strict=True))
    monkeypatch.setattr(postgres_driver, "run_together", counted)
    jobs = await asyncio.gather(*(store.jobs.complete(claim, answer, usage=usage) for claim, answer, usage in given))
    begin_look_and_complete = 4
    assert trips == [begin_look_and_complete]
    for job, (claim, answer, usage) in zip(jobs, given, strict=True):
        assert job == await store.jobs.get(claim.job_id)
        assert (job.response, job.input_tokens, job.cost) == (answer, usage.input_tokens, usage.cost)
        [attempt] = await store.jobs.attempts(claim.job_id)
        assert attempt.outcome is AttemptOutcome.COMPLETED


async def test_a_lease_that_was_lost_is_refused_alone_among_those_completed_together(store: JobStore) -> None:
    first, lost, last = await claims(store, 3)
    await store.jobs.release(lost)
    outcomes = await asyncio.gather(
        *(store.jobs.complete(claim, claim.job_id) for claim in (first, lost, last)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [Job, LeaseLost, Job]
    assert (await store.jobs.get(lost.job_id)).status is JobStatus.IDLE
    assert [await store.jobs.read_response(one.job_id) for one in (first, last)] == [first.job_id, last.job_id]


async def test_an_answer_that_the_database_refuses_fails_alone_among_those_completed_together(store: JobStore) -> None:
    await store.execute("ALTER TABLE background_jobs ADD CHECK (response <> 'refused')")
    answers = ["one", "refused", "three"]
    outcomes = await asyncio.gather(
        *(store.jobs.complete(claim, answer) for claim, answer in zip(await claims(store, 3), answers, strict=True)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Job, ConstraintFailed, Job]
    assert await store.jobs.count(status="completed") == 2


async def test_the_same_job_completed_twice_together_has_one_answer(store: JobStore) -> None:
    [claim, other] = await claims(store, 2)
    one, two, _ = await asyncio.gather(
        store.jobs.complete(claim, "one"), store.jobs.complete(claim, "two"), store.jobs.complete(other, "three")
    )
    assert one == two == await store.jobs.get(claim.job_id)
    assert one.response in {"one", "two"}


async def test_the_plan_of_what_runs_all_day_is_kept(store: JobStore) -> None:
    await store.execute(
        "ALTER TABLE background_jobs SET (autovacuum_enabled = off)"
    )  # which analyzes, and so plans anew
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(1000))
    for number in range(10):
        [claim] = await store.jobs.claim("worker")
        await store.jobs.complete(claim, "done")
        await store.jobs.claim("worker", limit=2 + number % 7)
    sql = "SELECT custom_plans, statement FROM pg_prepared_statements WHERE statement ~ '(INTO|UPDATE) background_jobs'"
    statements = await together(store, read, sql)
    assert len(statements) == 4
    # For the first five runs PostgreSQL makes a plan each, then it keeps one, unless it finds that too dear.
    assert {row["custom_plans"] for row in statements} == {5}


async def test_results_are_those_of_their_statements(connection: Connection) -> None:
    await connection.execute("CREATE TABLE things (id BIGINT, name TEXT)")
    results = await run_together(
        connection,
        [
            statement("INSERT INTO things (id, name) VALUES (:id, :name)", id=1, name="one"),
            statement("INSERT INTO things (id, name) VALUES (:id, :name)", id=2, name=None),
            statement("SELECT name, id FROM things WHERE id >= :id ORDER BY id", id=1),
            statement("SELECT id FROM things WHERE id = :id", id=3),
            statement("CREATE TABLE others ()"),
            statement("UPDATE things SET name = :name", name="new"),
        ],
    )
    assert results == [
        ([], 1, "INSERT 0 1"),
        ([], 1, "INSERT 0 1"),
        ([{"name": "one", "id": 1}, {"name": None, "id": 2}], 2, "SELECT 2"),
        ([], 0, "SELECT 0"),
        ([], -1, "CREATE TABLE"),
        ([], 2, "UPDATE 2"),
    ]


async def test_more_than_a_socket_holds_is_sent_and_read_in_one_trip(connection: Connection) -> None:
    text = "x" * 100_000
    results = await run_together(connection, [statement("SELECT CAST(:t AS TEXT) AS t", t=text)] * 100)
    assert [result.rows for result in results] == [[{"t": text}]] * 100


async def test_a_failure_leaves_the_connection_as_it_was(connection: Connection) -> None:
    await connection.execute("CREATE TABLE things (id BIGINT PRIMARY KEY)")
    insert = statement("INSERT INTO things (id) VALUES (:id)", id=1)
    after = statement("SELECT 'after' AS said")
    for _ in range(3):
        with pytest.raises(errors.UniqueViolation):
            await run_together(connection, [insert, insert, after])
    assert await prepared(connection) == ["INSERT INTO things (id) VALUES ($1)"]  # once, and nothing that was not run
    [inserted, said] = await run_together(connection, [statement("INSERT INTO things (id) VALUES (:id)", id=2), after])
    assert (inserted.rowcount, said.rows) == (1, [{"said": "after"}])


async def test_a_statement_that_cannot_be_prepared_is_tried_anew(connection: Connection) -> None:
    ask = statement("SELECT id FROM later")
    with pytest.raises(errors.UndefinedTable):
        await run_together(connection, [ask])
    await connection.execute("CREATE TABLE later (id BIGINT)")
    assert await run_together(connection, [ask]) == [([], 0, "SELECT 0")]


async def test_a_connection_keeps_a_bounded_number_prepared(connection: Connection) -> None:
    for number in range(2 * MAX_PREPARED + 10):
        [result] = await run_together(connection, [statement(f"SELECT {number} AS n")])
        assert result.rows == [{"n": number}]
    assert 0 < len(await prepared(connection)) <= MAX_PREPARED


async def test_behind_a_pooler_nothing_is_prepared(connection: Connection) -> None:
    connection.prepares = False
    [result] = await run_together(connection, [statement("SELECT :n + 1 AS n", n=1)])
    assert result.rows == [{"n": 2}]
    assert await prepared(connection) == []


async def test_a_cancelled_trip_closes_its_connection(connection: Connection) -> None:
    trip = asyncio.ensure_future(run_together(connection, [statement("SELECT pg_sleep(60)::text")]))
    await asyncio.sleep(0)
    trip.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trip
    assert connection.closed


async def test_a_lost_connection_is_psycopgs_error(connection: Connection, database: str) -> None:
    pid = connection.info.backend_pid
    async with await AsyncConnection.connect(database, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    with pytest.raises(errors.OperationalError):
        await run_together(connection, [statement("SELECT 1")])
    assert connection.closed


async def test_a_table_that_is_changed_is_read_as_it_is(store: JobStore) -> None:
    await store.execute("CREATE TABLE things (a BIGINT)")
    await store.execute("INSERT INTO things (a) VALUES (1)")
    for _ in range(2):
        assert await together(store, read, "SELECT * FROM things") == [{"a": 1}]
    await store.execute("ALTER TABLE things ADD COLUMN b BIGINT DEFAULT 2")
    for _ in range(2):
        assert await together(store, read, "SELECT * FROM things") == [{"a": 1, "b": 2}]


async def test_one_that_fails_in_a_batch_fails_alone(store: JobStore) -> None:
    await store.execute("CREATE TABLE things (id BIGINT PRIMARY KEY)")
    for start in (0, 10):
        sql = [f"INSERT INTO things (id) VALUES ({start + number % 5})" for number in range(6)]
        outcomes = await asyncio.gather(*(together(store, write, each) for each in sql), return_exceptions=True)
        assert outcomes[:5] == [1] * 5
        assert isinstance(outcomes[5], ConstraintFailed)


async def test_what_a_query_writes_on_its_way_is_undone_with_it(store: JobStore) -> None:
    await store.execute("CREATE TABLE things (id BIGINT PRIMARY KEY)")
    outcomes = await asyncio.gather(
        together(store, write_unseen_and_fail),
        together(store, write, "INSERT INTO things (id) VALUES (1)"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [LookupError, int]
    assert await store.execute("SELECT id FROM things") == [{"id": 1}]


def test_a_parameter_is_found_wherever_it_stands_and_nowhere_else() -> None:
    sql = "SELECT :a, ':no', \":no\", x::text, $$:no$$, -- :no\n :b /* :no */, :a"
    query = postgres_pipeline.to_query(sql)
    assert query.names == ("a", "b")
    assert query.text == "SELECT $1, ':no', \":no\", x::text, $$:no$$, -- :no\n $2 /* :no */, $1"
