"""What is missing or was changed in a schema is named one by one, and made again; what users added is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobstore import SchemaMismatch
from jobstore.health import Finding, check, repair
from jobstore.migrate import Migrator
from tests.checking.support import execute, rows_of, table

WITHOUT_CHECK = """
    CREATE TABLE key_value_store_2 (
        key TEXT NOT NULL PRIMARY KEY, updated_at INTEGER NOT NULL, value TEXT NOT NULL
    ) STRICT;
    INSERT INTO key_value_store_2 SELECT * FROM key_value_store;
    DROP TABLE key_value_store; ALTER TABLE key_value_store_2 RENAME TO key_value_store;
"""
WITHOUT_TYPES = """
    CREATE TABLE cached_state_2 (project_hash, key, project_directory, updated_at INTEGER NOT NULL,
        expires_at INTEGER, value TEXT NOT NULL CHECK (json_valid(value)), PRIMARY KEY (project_hash, key));
    INSERT INTO cached_state_2 SELECT * FROM cached_state;
    DROP TABLE cached_state; ALTER TABLE cached_state_2 RENAME TO cached_state;
"""
CHANGES = {
    "DROP INDEX background_jobs_claim": "index background_jobs_claim of background_jobs is missing",
    "DROP INDEX background_jobs_due; CREATE INDEX background_jobs_due ON background_jobs (id)": (
        "index background_jobs_due of background_jobs is another than it should be"
    ),
    "DROP TRIGGER background_jobs_lane_of_new": "trigger background_jobs_lane_of_new of background_jobs is missing",
    "DROP TABLE job_attempts": "table job_attempts is missing",
    "DROP TABLE key_value_store": "table key_value_store is missing",
    "DROP TABLE lanes": "table lanes is missing",
    "ALTER TABLE sessions DROP COLUMN search_term": "column search_term of sessions is missing",
    "ALTER TABLE sessions DROP COLUMN updated_at": "column updated_at of sessions is missing",
    "ALTER TABLE background_jobs DROP COLUMN cost": "column cost of background_jobs is missing",
    WITHOUT_CHECK: "CHECK (json_valid(value)) of key_value_store is missing",
    WITHOUT_TYPES: "column key of cached_state is without a type (number 2 of the primary key), "
    "not TEXT NOT NULL (number 2 of the primary key)",
}


@pytest.fixture
def migrated(database: Path) -> Path:
    Migrator(database).run()
    execute(
        database,
        """
        INSERT INTO key_value_store VALUES ('k', 1700000000000, '{"a": 1}');
        INSERT INTO cached_state VALUES ('h', 'k', '/src', 1700000000000, NULL, '[1]');
        INSERT INTO sessions (id, name, project_directory, project_hash, created_at, updated_at)
            VALUES ('s', 'demo', '/src', 'h', 1700000000000, 1700000000000);
        INSERT INTO background_jobs (id, session_id, task_type, api_type, status, run_at, created_at, updated_at,
            prompt) VALUES ('j', 's', 't', 'a', 'idle', 1700000000000, 1700000000000, 1700000000000, 'p');
        """,
    )
    return database


def finding(path: Path, name: str) -> Finding:
    [found] = [finding for finding in check(path).findings if finding.name == name]
    return found


def test_a_schema_as_the_steps_made_it_is_fine(migrated: Path) -> None:
    assert check(migrated).ok
    assert finding(migrated, "schema").details == ()


@pytest.mark.parametrize(("change", "problem"), CHANGES.items(), ids=CHANGES.values())
def test_each_change_is_named_and_mended(migrated: Path, change: str, problem: str) -> None:
    before = table(migrated, "background_jobs")
    execute(migrated, change)
    found = finding(migrated, "schema")
    assert not found.ok
    assert problem in found.details
    assert found.remedy

    done = repair(migrated)

    assert done.report.ok, done.report.failed
    assert done.not_mended == ()
    assert done.backup is not None
    assert done.backup.name.startswith(f"{migrated.name}.backup-before-repair-")
    assert table(migrated, "background_jobs").keys() == before.keys()
    assert rows_of(migrated, "SELECT name FROM sessions") == [("demo",)]


def test_what_is_not_touched_by_a_change_keeps_its_rows(migrated: Path) -> None:
    execute(migrated, WITHOUT_CHECK + WITHOUT_TYPES)
    assert repair(migrated).report.ok
    assert rows_of(migrated, "SELECT value FROM key_value_store") == [('{"a": 1}',)]
    assert rows_of(migrated, "SELECT value FROM cached_state") == [("[1]",)]


def test_what_users_added_is_noted_and_kept(migrated: Path) -> None:
    execute(
        migrated,
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT); CREATE INDEX orders_by_item ON orders (item);"
        "ALTER TABLE sessions ADD COLUMN colour TEXT; CREATE INDEX sessions_by_colour ON sessions (colour);"
        "UPDATE sessions SET colour = 'red'",
    )
    found = finding(migrated, "schema")
    assert found.ok
    assert set(found.details) == {
        f"not jobstore's own: {name}"
        for name in ("table orders", "index orders_by_item", "column colour of sessions", "index sessions_by_colour")
    }
    execute(migrated, "ALTER TABLE sessions DROP COLUMN search_term")  # so that the table is made anew
    assert repair(migrated).report.ok
    assert rows_of(migrated, "SELECT colour FROM sessions") == [("red",)]
    assert set(finding(migrated, "schema").details) == set(found.details)


def test_a_users_table_of_a_module_that_is_not_loaded_is_noted_and_kept(migrated: Path) -> None:
    execute(
        migrated,
        "PRAGMA writable_schema=ON; DROP INDEX background_jobs_claim; INSERT INTO sqlite_schema"
        " VALUES ('table', 'vectors', 'vectors', 0, 'CREATE VIRTUAL TABLE vectors USING unknown(a)')",
    )
    found = finding(migrated, "schema")
    assert found.details == (
        "index background_jobs_claim of background_jobs is missing",
        "not jobstore's own: table vectors",
    )
    assert repair(migrated).report.ok
    assert finding(migrated, "schema").details == ("not jobstore's own: table vectors",)


def test_names_in_quotes_comments_and_other_letters_are_no_change(migrated: Path) -> None:
    execute(
        migrated,
        'DROP INDEX background_jobs_due; create  index "background_jobs_due" /* as before */\n'
        "on Background_Jobs ( run_at ) where STATUS = 'scheduled'",
    )
    assert finding(migrated, "schema").ok


def test_a_step_that_was_changed_or_is_unknown_is_named(migrated: Path) -> None:
    execute(migrated, "UPDATE migrations SET checksum = 'other'")
    assert "was changed afterwards" in finding(migrated, "migrations").summary
    execute(migrated, "INSERT INTO migrations VALUES ('9999_future', 'x', 1)")
    assert "newer jobstore (9999_future)" in finding(migrated, "migrations").summary


def test_a_newer_store_is_not_repaired(migrated: Path) -> None:
    execute(migrated, "INSERT INTO migrations VALUES ('9999_future', 'x', 1)")
    with pytest.raises(SchemaMismatch, match="newer"):
        repair(migrated)


def test_lost_records_of_steps_are_made_again(migrated: Path) -> None:
    records = rows_of(migrated, "SELECT name, checksum FROM migrations")
    execute(migrated, "DROP TABLE migrations")
    assert {"migrations", "schema"} <= {found.name for found in check(migrated).failed}
    assert repair(migrated).report.ok
    assert rows_of(migrated, "SELECT name, checksum FROM migrations") == records


@pytest.mark.parametrize("lost", ["0001%", "0002%", "0003%", "000_%"])
def test_lost_records_are_known_by_what_their_steps_have_made(migrated: Path, lost: str) -> None:
    records = rows_of(migrated, "SELECT name, checksum FROM migrations ORDER BY name")
    execute(migrated, f"DELETE FROM migrations WHERE name LIKE '{lost}'")
    found = finding(migrated, "migrations")
    assert "are not recorded" in found.summary
    assert "--repair" in found.remedy
    assert repair(migrated).report.ok
    assert rows_of(migrated, "SELECT name, checksum FROM migrations ORDER BY name") == records


def test_a_users_table_of_the_name_of_a_later_steps_is_no_trace_of_it(migrated: Path) -> None:
    execute(migrated, "DROP TRIGGER job_attempts_end_calls")
    execute(migrated, "DROP TABLE api_calls")
    execute(migrated, "DELETE FROM migrations WHERE name LIKE '0003%'")
    execute(migrated, "CREATE TABLE api_calls (mine TEXT)")
    assert finding(migrated, "migrations").summary == "steps that are pending: 1"
    assert "not jobstore's own: table api_calls" in finding(migrated, "schema").details


def test_another_programs_database_is_told_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    execute(path, "CREATE TABLE orders (id)")
    path.chmod(0o600)
    before = path.read_bytes()
    [found] = check(path).findings
    assert (found.name, found.ok) == ("kind", False)
    with pytest.raises(SchemaMismatch, match="none of jobstore"):
        repair(path)
    assert path.read_bytes() == before


def test_a_database_of_the_old_system_is_told_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    execute(
        path,
        """
        CREATE TABLE sessions (id TEXT PRIMARY KEY, name TEXT, project_directory TEXT, created_at INTEGER);
        CREATE TABLE background_jobs (
            id TEXT PRIMARY KEY, session_id TEXT, prompt TEXT, status TEXT, created_at INTEGER
        );
        INSERT INTO background_jobs VALUES ('job_1', 's', 'p', 'queued', 1700000000);
        """,
    )
    path.chmod(0o600)
    before = path.read_bytes()
    [found] = check(path).findings
    assert (found.name, found.ok) == ("kind", False)
    assert f"python -m jobstore.migrate --db {path}" in (found.remedy or "")
    with pytest.raises(SchemaMismatch, match="old system"):
        repair(path)
    assert path.read_bytes() == before
    Migrator(path).run()
    assert check(path).ok
