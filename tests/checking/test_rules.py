"""Each rule of the rows: a row that breaks it is named, and mended as the rule says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobstore import JobStore
from jobstore.aio import in_thread
from jobstore.health import Report, check, repair
from jobstore.migrate import Migrator
from jobstore.operations.invariants import JSON_RULES, MAX_ROWS, RULES
from tests.checking.support import execute, rows_of

NOW = 1_700_000_000_000
"""In the past, as all times in a store are."""
FAR = 9_000_000_000_000

BROKEN = {
    "session-values": ("UPDATE sessions SET is_regex_active = 2", "SELECT is_regex_active FROM sessions", 0),
    "included_files-session": (
        "INSERT INTO included_files VALUES ('none', 'p', 0)",
        "SELECT count(*) FROM included_files",
        0,
    ),
    "excluded_files-session": (
        "INSERT INTO excluded_files VALUES ('none', 'p', 0)",
        "SELECT count(*) FROM excluded_files",
        0,
    ),
    "attempt-number": ("UPDATE job_attempts SET attempt = 0", "SELECT count(*) FROM job_attempts", 0),
    "attempt-job": ("DELETE FROM background_jobs WHERE id = 'done'", "SELECT count(*) FROM job_attempts", 0),
    "attempt-values": ("UPDATE job_attempts SET outcome = 'odd'", "SELECT outcome FROM job_attempts", "lost"),
    "attempt-end": ("UPDATE job_attempts SET outcome = NULL", "SELECT outcome FROM job_attempts", "lost"),
    "attempt-times": (
        f"UPDATE job_attempts SET started_at = {NOW // 1000}",
        "SELECT started_at FROM job_attempts",
        NOW,
    ),
    "job-status": ("UPDATE background_jobs SET status = 'odd' WHERE id = 'idle'", None, "failed"),
    "job-values": ("UPDATE background_jobs SET priority = 1 << 40", "SELECT priority FROM background_jobs", 0),
    "job-times": (
        f"UPDATE background_jobs SET created_at = {NOW // 1000}",
        "SELECT created_at FROM background_jobs",
        NOW,
    ),
    "job-session": ("UPDATE background_jobs SET session_id = 'none'", "SELECT session_id FROM background_jobs", None),
    "job-fence": (
        "UPDATE background_jobs SET attempt = 0, attempts_used = 0 WHERE id = 'done'",
        "SELECT attempt FROM background_jobs WHERE id = 'done'",
        1,
    ),
    "job-attempts": (
        "UPDATE background_jobs SET attempts_used = 9 WHERE id = 'done'",
        "SELECT attempts_used FROM background_jobs WHERE id = 'done'",
        1,
    ),
    "job-end": ("UPDATE background_jobs SET status = 'failed', finished_at = NULL WHERE id = 'idle'", None, "failed"),
    "job-no-end": (
        f"UPDATE background_jobs SET finished_at = {NOW} WHERE id = 'idle'",
        "SELECT finished_at FROM background_jobs WHERE id = 'idle'",
        None,
    ),
    "job-running": (
        f"UPDATE background_jobs SET status = 'running', attempt = 1, started_at = {NOW} WHERE id = 'idle'",
        None,
        "idle",
    ),
    "job-start": (
        f"""UPDATE background_jobs SET status = 'running', attempt = 1 WHERE id = 'idle';
            INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at)
            VALUES ('idle', 1, 'w', {FAR}, {NOW})""",
        "SELECT started_at FROM background_jobs WHERE id = 'idle'",
        NOW,
    ),
    "attempt-open": (
        "UPDATE job_attempts SET outcome = NULL, finished_at = NULL, lease_expires_at = " + str(FAR),
        "SELECT outcome FROM job_attempts",
        "lost",
    ),
    "job-lane": ("DELETE FROM lanes", "SELECT count(*) FROM lanes", 1),
    "sessions-json": (
        "UPDATE sessions SET model_settings = '[]'",
        "SELECT model_settings ->> 'unreadable_model_settings' FROM sessions",
        "[]",
    ),
    "background_jobs-json": (
        "UPDATE background_jobs SET metadata = 'x{'",
        "SELECT metadata ->> 'unreadable_metadata' FROM background_jobs",
        "x{",
    ),
    "cached_state-json": ("UPDATE cached_state SET value = 'x'", "SELECT value FROM cached_state", '"x"'),
    "key_value_store-json": ("UPDATE key_value_store SET value = ''", "SELECT value FROM key_value_store", '""'),
    "workers-json": ("UPDATE workers SET task_types = '['", "SELECT task_types FROM workers", "[]"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "jobs.db"
    Migrator(path).run()
    columns = "id, session_id, task_type, api_type, status, run_at, created_at, updated_at, prompt"
    job = f"INSERT INTO background_jobs ({columns}"
    execute(
        path,
        f"""
        INSERT INTO sessions (id, name, project_directory, project_hash, created_at, updated_at)
            VALUES ('s', 'demo', '/src', 'h', {NOW}, {NOW});
        {job}) VALUES ('idle', 's', 't', 'a', 'idle', {NOW}, {NOW}, {NOW}, 'p');
        {job}, attempt, attempts_used, started_at, finished_at, response)
            VALUES ('done', 's', 't', 'a', 'completed', {NOW}, {NOW}, {NOW}, 'p', 1, 1, {NOW}, {NOW}, 'r');
        INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at, finished_at, outcome)
            VALUES ('done', 1, 'w', {NOW}, {NOW}, {NOW}, 'completed');
        INSERT INTO cached_state VALUES ('h', 'k', '/src', {NOW}, NULL, '[1]');
        INSERT INTO key_value_store VALUES ('k', {NOW}, '1');
        INSERT INTO workers (id, host, pid, version, task_types, concurrency, started_at, seen_at, expires_at)
            VALUES ('w', 'host', 1, '1', '["t"]', 1, {NOW}, {NOW}, {NOW});
        """,
    )
    assert check(path).ok
    return path


@pytest.fixture
def path(sound: Path, database: Path) -> Path:
    shutil.copy(sound, database)
    return database


def names_of(report: Report) -> set[str]:
    return {detail.split(":")[0] for finding in report.failed for detail in finding.details}


def test_there_is_an_example_for_every_rule() -> None:
    assert BROKEN.keys() == {rule.name for rule in (*RULES, *JSON_RULES)}


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_that_breaks_a_rule_is_named_and_mended(path: Path, name: str) -> None:
    change, question, answer = BROKEN[name]
    execute(path, f"PRAGMA foreign_keys=OFF; {change}")
    assert name in names_of(check(path))

    done = repair(path)

    assert done.report.ok, done.report.failed
    asked = question or "SELECT status FROM background_jobs WHERE id = 'idle'"
    assert rows_of(path, f"{asked} LIMIT 1") == [(answer,)]
    assert done.backup is not None
    assert name in names_of(check(done.backup))


def test_no_rule_finds_fault_with_a_sound_store(path: Path) -> None:
    done = repair(path)
    assert done.done == ()
    assert done.report.ok


def test_more_rows_than_one_operation_changes_are_mended(path: Path) -> None:
    execute(
        path,
        f"""
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= {2 * MAX_ROWS})
        INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)
            SELECT 'job-' || i, 't', 'a', 'completed', {NOW}, {NOW}, {NOW}, 'p' FROM n
        """,
    )
    assert any(f"`finished_at`: {2 * MAX_ROWS + 1:,};" in line for line in repair(path).done)
    assert rows_of(path, "SELECT count(*) FROM background_jobs WHERE finished_at IS NULL AND id LIKE 'job-%'") == [(0,)]


def test_leases_that_nobody_rescues_are_told_and_rescued(path: Path) -> None:
    execute(
        path,
        f"""
        UPDATE background_jobs SET status = 'running', attempt = 1, attempts_used = 1, started_at = {NOW}
            WHERE id = 'idle';
        INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at)
            VALUES ('idle', 1, 'w', {NOW}, {NOW});
        """,
    )
    assert [finding.name for finding in check(path).failed] == ["leases"]
    assert repair(path).report.ok
    assert rows_of(path, "SELECT status, attempts_used FROM background_jobs WHERE id = 'idle'") == [("idle", 1)]


def test_a_store_without_an_identity_gets_one(path: Path) -> None:
    execute(path, "DELETE FROM store_identity")
    assert [finding.name for finding in check(path).failed] == ["identity"]
    assert repair(path).report.ok
    assert len(rows_of(path, "SELECT store_id FROM store_identity")) == 1


def test_a_half_filled_store_is_told(path: Path) -> None:
    execute(path, f"INSERT INTO promotion VALUES (1, 'source', 'run', {NOW}, NULL)")
    assert [finding.name for finding in check(path).failed] == ["promotion"]


def test_rows_without_their_parents_in_tables_of_users_are_told(path: Path) -> None:
    execute(
        path,
        "CREATE TABLE notes (job_id TEXT REFERENCES background_jobs (id)); INSERT INTO notes VALUES ('none')",
    )
    [found] = check(path).failed
    assert (found.name, found.details) == ("foreign-keys", ("notes without their background_jobs: 1",))


@pytest.mark.parametrize(
    ("encoding", "bytes_"), [("UTF-8", "41ff42"), ("UTF-16le", "410000d84200"), ("UTF-16be", "0041d8000042")]
)
async def test_texts_that_are_none_are_named_and_can_be_read_again(database: Path, encoding: str, bytes_: str) -> None:
    database.touch(0o600)
    execute(database, f"PRAGMA encoding='{encoding}'; CREATE TABLE notes (t)")
    async with JobStore(database, migrate=True) as store:
        bad, good = [(await store.jobs.enqueue(f"é {n}", task_type="t", api_type="a")).id for n in range(2)]
        await store.kv.set("k", "é")
    assert (await in_thread(check, database)).ok
    text = f"CAST(x'{bytes_}' AS TEXT)"
    execute(
        database,
        f"UPDATE background_jobs SET prompt = {text}, metadata = {text} WHERE id = '{bad}';"
        f"INSERT INTO included_files VALUES ('none', {text}, 0); UPDATE key_value_store SET value = {text}",
    )
    [found, *_] = [finding for finding in (await in_thread(check, database)).failed if finding.name == "encoding"]
    meaning = "rows with texts that are not UTF-8, which nobody can read"
    assert f"background_jobs-encoding: {meaning}: 1 ({bad})" in found.details
    assert len(found.details) == 3
    assert (await in_thread(repair, database)).report.ok
    async with JobStore(database) as store:
        prompts = {claim.job.id: claim.job.prompt for claim in await store.jobs.claim("w", limit=2)}
        assert prompts[good] == "é 1"
        assert prompts[bad].startswith("A\\x")
        assert str(await store.kv.get("k")).startswith("A\\x")
