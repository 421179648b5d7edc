"""The same check on a PostgreSQL schema: by the server's catalog, and with the checks of rows and texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from jobstore import InvalidArgument, JobStore
from jobstore.aio import in_thread
from jobstore.databases import find_database
from jobstore.health import Finding, Progress, check, repair
from tests.postgres import in_schema

CHANGES = {
    "DROP INDEX background_jobs_claim": "index background_jobs_claim is missing",
    "DROP TRIGGER background_jobs_check ON background_jobs": "trigger background_jobs.background_jobs_check is missing",
    "ALTER TABLE background_jobs DISABLE TRIGGER background_jobs_check": (
        "trigger background_jobs.background_jobs_check is another than it should be"
    ),
    "DROP TABLE pauses": "table pauses is missing",
    "ALTER TABLE sessions DROP COLUMN search_term": "column sessions.search_term is missing",
    "ALTER TABLE sessions ALTER COLUMN name DROP NOT NULL": "column sessions.name is another than it should be",
    "ALTER TABLE background_jobs ALTER COLUMN priority SET DEFAULT 5": (
        "column background_jobs.priority is another than it should be"
    ),
    "ALTER TABLE job_attempts DROP CONSTRAINT job_attempts_job_id_fkey": (
        "constraint job_attempts.job_attempts_job_id_fkey is missing"
    ),
    "CREATE OR REPLACE FUNCTION job_attempts_check() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'": (
        "function job_attempts_check is another than it should be"
    ),
}


@pytest.fixture
def schema(postgres_database: str) -> Iterator[str]:
    """The URL of a migrated schema of the test's own."""
    name = f"s_{uuid4().hex}"
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        url = in_schema(postgres_database, name)
        find_database(url).migrator().run()
        yield url
        connection.execute(f"DROP SCHEMA {name} CASCADE")


def execute(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script)


def failed(url: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(url).failed}


async def test_a_store_in_use_is_fine(schema: str, tmp_path: Path) -> None:
    async with JobStore(schema, outputs=tmp_path / "texts") as store:
        await store.sessions.create(name="demo", project_directory="/src")
        await store.jobs.enqueue("p" * 100_000, task_type="t", api_type="a")
        [claim] = await store.jobs.claim("w")
        await store.jobs.complete(claim, "r" * 100_000)
        report = await in_thread(check, schema, outputs=tmp_path / "texts")
    assert report.ok, report.failed
    assert {"server", "migrations", "schema", "jobs", "attempts", "texts", "workers"} <= {
        f.name for f in report.findings
    }
    [texts] = [finding for finding in report.findings if finding.name == "texts"]
    assert texts.summary == "large texts, each of them whole: 2"


@pytest.mark.parametrize(("change", "problem"), CHANGES.items(), ids=CHANGES.values())
def test_each_change_of_the_schema_is_named(schema: str, change: str, problem: str) -> None:
    execute(schema, change)
    assert problem in failed(schema)["schema"].details


def test_what_users_added_is_noted(schema: str) -> None:
    execute(schema, "CREATE TABLE orders (id INT PRIMARY KEY); ALTER TABLE sessions ADD COLUMN colour TEXT")
    [found] = [finding for finding in check(schema).findings if finding.name == "schema"]
    assert found.ok
    assert {"not jobstore's own: table orders", "not jobstore's own: column sessions.colour"} <= set(found.details)


def test_the_schema_that_is_compared_with_is_taken_back(schema: str) -> None:
    assert check(schema).ok
    with psycopg.connect(schema) as connection:
        names = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'jobstore%'").fetchall()
    assert names == []


def test_rows_that_break_a_rule_are_named(schema: str) -> None:
    execute(
        schema,
        "ALTER TABLE background_jobs DISABLE TRIGGER background_jobs_check;"
        "INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)"
        " VALUES ('j', 't', 'a', 'completed', 0, 1700000000000, 1700000000000, 'p');"
        "ALTER TABLE background_jobs ENABLE TRIGGER background_jobs_check",
    )
    assert "pg_dump" in (failed(schema)["jobs"].remedy or "")
    assert failed(schema)["jobs"].details == ("job-end: jobs that ended, but have no `finished_at`: 1 (j)",)


def test_pending_and_changed_steps_are_named(schema: str) -> None:
    execute(schema, "UPDATE migrations SET checksum = 'other'")
    assert "was changed afterwards" in failed(schema)["migrations"].summary


def test_who_may_not_create_a_schema_is_told_that_it_was_not_compared(schema: str) -> None:
    with psycopg.connect(schema, autocommit=True) as connection:
        [name] = connection.execute("SELECT quote_ident(current_schema())").fetchone() or ()
        role = f"reader_{uuid4().hex}"
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA {name} TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {role}")
        try:
            report = check(f"{schema}&user={role}")
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
    assert report.ok, report.failed
    [found] = [finding for finding in report.findings if finding.name == "schema"]
    assert "not looked at" in found.summary


def test_a_table_that_somebody_holds_on_to_is_told_and_not_waited_for(schema: str) -> None:
    with psycopg.connect(schema) as holder:
        holder.execute("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE")
        found = failed(schema)
    assert "workers" in found
    assert all("could not be looked at" in finding.summary for finding in found.values())
    assert not any("--repair" in (finding.remedy or "") for finding in found.values())


def test_a_server_that_ends_the_connection_is_told_in_words(schema: str) -> None:
    def end_it(progress: Progress) -> None:
        if progress.done == 3:
            mine = "application_name = 'checked'"
            execute(schema, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {mine}")

    found = check(f"{schema}&application_name=checked", quick=True, tell=end_it).failed
    assert "leases" in {finding.name for finding in found}
    assert all("the connection to the server was lost" in finding.summary for finding in found), found


def test_it_is_not_repaired_by_us(schema: str) -> None:
    with pytest.raises(InvalidArgument, match="PostgreSQL"):
        repair(schema)
