"""What runs all day on PostgreSQL finds its rows by an index, by the plan that the server keeps for any parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from jobstore import Claim, JobStore, Usage
from jobstore.engines.postgres_statements import DIALECT, permitted
from jobstore.models import Text
from jobstore.operations import attempts, leasing
from jobstore.sql import Operation, Statement
from tests import postgres

NOW = 1_750_000_000_000
BACKLOG = """
    INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)
    SELECT 'job ' || n, 'other', 'api', 'idle', n, n, n, 'Say hello' FROM generate_series(1, 3000) AS n
"""
HISTORY = """
    INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at, finished_at, outcome)
    SELECT 'job ' || n, 1, 'worker', n, n, n, 'failed' FROM generate_series(1, 3000) AS n
"""


@pytest.fixture
async def claim(postgres_database: str) -> Claim:
    postgres.empty(postgres_database)
    async with JobStore(postgres_database, migrate=True) as store:
        await store.jobs.enqueue("Say hello", task_type="task", api_type="api")
        [claim] = await store.jobs.claim("worker")
    return claim


@pytest.fixture(params=[False, True], ids=["rows not counted yet", "rows counted"])
def connection(
    claim: Claim,  # noqa: ARG001 - made first, while the tables are small
    postgres_database: str,
    request: pytest.FixtureRequest,
) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute(BACKLOG)
        connection.execute(HISTORY)
        if request.param:
            connection.execute("ANALYZE")
        yield connection


def first_statement(operation: Operation[Any]) -> Statement:
    statement = next(operation)
    while statement.fetch == "dialect":
        statement = operation.send(DIALECT)
    return statement


def explained(connection: psycopg.Connection, statement: Statement) -> dict[str, Any]:
    """Return the plan that the server would keep, as it tells it."""
    query = permitted(statement.sql)
    connection.execute(sql.SQL("PREPARE wanted AS {}").format(sql.SQL(query.text)))
    arguments = sql.SQL(", ").join([sql.SQL("NULL")] * len(query.names))
    values = sql.SQL("({})").format(arguments) if query.names else sql.SQL("")
    [[[told]]] = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE wanted{}").format(values)).fetchall()
    connection.execute("DEALLOCATE wanted")
    plan: dict[str, Any] = told["Plan"]
    return plan


def reads(plan: dict[str, Any], *, limited: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield how each of the large tables is read, and whether that is a few rows of an index."""
    kind = plan["Node Type"]
    if plan.get("Relation Name") in {"background_jobs", "job_attempts"} and kind != "ModifyTable":
        yield f"{kind} of {plan['Relation Name']}", "Index Name" in plan and (limited or "Index Cond" in plan)
    for part in plan.get("Plans", ()):
        yield from reads(part, limited=kind == "Limit" or (limited and kind == "LockRows"))


def test_every_row_is_found_by_an_index(connection: psycopg.Connection, claim: Claim) -> None:
    answer, usage = Text("Hello", size=5), Usage(input_tokens=1, cost=0.5)
    operations = {
        "claim one": leasing.claim(NOW, "w", 1, 1, None, None),
        "claim some": leasing.claim(NOW, "w", 5, 1, ["task"], None),
        "claim many": leasing.claim(NOW, "w", 500, 1, ["task"], ["api"]),
        "complete": attempts.complete(NOW, claim, answer, None, None),
        "complete with usage": attempts.complete(NOW, claim, answer, usage, None),
    }
    for name, operation in operations.items():
        found = list(reads(explained(connection, first_statement(operation))))
        assert found, name
        assert all(is_few for _, is_few in found), (name, found)
