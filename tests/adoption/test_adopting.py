"""Databases of every version of the old system become stores, and nothing of them is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobstore import JobStatus, JobStore, MigrationRequired, OutputError, SchemaMismatch
from jobstore.databases import find_database
from jobstore.migrate import Adoption, Migrator, load_steps, recognise
from jobstore.migrate import sqlite as sqlite_migrator
from jobstore.migrate.adoption import Intent
from jobstore.promotion import promote
from jobstore.testing import FakeClock

from .comparing import assert_nothing_is_lost, rows_of, tables_of
from .old_system import BEGIN, JOBS, OldSystem, insert, newest, variants

Adopt = Callable[[], Adoption]

VARIANTS = (
    "newest", "xml_path", "gemini_requests", "file_path", "both paths", "few columns", "no constraints",
    "more of everything", "jobs alone",
)  # fmt: skip


OLD_STATE = "CREATE TABLE migrations (id, name, applied_at); CREATE TABLE key_value_store (key, value)"


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_version_is_adopted_with_every_row_and_every_text(
    old: Path, files: Path, adopt: Adopt, variant: str
) -> None:
    system = variants(files, 600)[variant]
    system.write(old)
    report = adopt()
    for table, rows in system.tables.items():
        if table in report.tables:
            assert report.tables[table].rows == len(rows)
    assert report.tables[system.jobs_table].adopted == len(system.tables[system.jobs_table])
    assert query(old, "PRAGMA integrity_check") == [("ok",)]
    assert query(old, "PRAGMA foreign_key_check") == []
    assert query(old, "PRAGMA auto_vacuum") == [(2,)]
    assert query(old, "PRAGMA journal_mode") == [("wal",)]
    assert Migrator(old).status().pending == []
    assert Migrator(old).run().applied == []


@pytest.mark.full
@pytest.mark.parametrize("variant", ["newest", "no constraints"])
def test_fifty_thousand_jobs_are_adopted(old: Path, files: Path, adopt: Adopt, variant: str) -> None:
    variants(files, 50_000)[variant].write(old)
    assert adopt().tables["background_jobs"].rows >= 50_000


@pytest.mark.parametrize("pragma", ["journal_mode=wal", "encoding='UTF-16'", "auto_vacuum=FULL", "page_size=1024"])
def test_files_of_every_make_are_adopted(old: Path, files: Path, adopt: Adopt, pragma: str) -> None:
    newest(50, files).write(old, pragma)
    adopt()
    assert query(old, "PRAGMA auto_vacuum") == [(2,)]
    assert query(old, "PRAGMA journal_mode") == [("wal",)]


def test_an_adopted_schema_is_that_of_a_new_store(old: Path, files: Path, tmp_path: Path, adopt: Adopt) -> None:
    newest(20, files).write(old)
    adopt()
    Migrator(tmp_path / "new.db").run()
    sql = "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    ours = dict(query(tmp_path / "new.db", sql))
    adopted = dict(query(old, sql))
    assert {name: adopted[name] for name in ours} == ours
    assert adopted.keys() - ours.keys() == {"meta", "db_diagnostic_logs", "old_migrations", "adopted_leftovers"}
    assert {row["name"] for row in rows_of(old, "migrations", old=False)} == {step.name for step in load_steps()}


async def test_statuses_become_those_of_the_store(old: Path, files: Path, adopt: Adopt) -> None:
    system = newest(0, files)
    statuses = [
        ("idle", "idle"), ("preparing", "idle"), ("created", "idle"), ("queued", "idle"),
        ("acknowledged_by_worker", "running"), ("running", "running"), ("completed", "completed"),
        ("failed", "failed"), ("canceled", "canceled"), (" Queued ", "idle"), ("archived", "failed"), ("", "failed"),
    ]  # fmt: skip
    system.tables["background_jobs"] = [
        {"id": f"job_{number}", "session_id": "session_0", "prompt": "p", "status": status, "created_at": BEGIN}
        for number, (status, _) in enumerate(statuses)
    ]
    system.write(old)
    report = await asyncio.to_thread(adopt)
    async with JobStore(old) as store:
        for number, (_, status) in enumerate(statuses):
            assert (await store.jobs.get(f"job_{number}")).status == status
        assert (await store.jobs.get("job_10")).error_type == "unknown_status"
    assert report.noted["background_jobs: status is unknown: the job failed, retry it by hand"] == 2


async def test_a_running_job_is_rescued_by_the_next_claim_in_its_turn(old: Path, files: Path, adopt: Adopt) -> None:
    system = newest(0, files)
    system.tables["background_jobs"] = [
        {"id": f"job_{name}", "session_id": "session_0", "prompt": name, "status": status, "created_at": BEGIN,
         "start_time": BEGIN + 1, "last_update": BEGIN + 2, "task_type": "t", "api_type": "a"}
        for name, status in (("first", "running"), ("second", "acknowledged_by_worker"), ("third", "queued"))
    ]  # fmt: skip
    system.write(old)
    await asyncio.to_thread(adopt)
    async with JobStore(old) as store:
        [attempt] = await store.jobs.attempts("job_first")
        assert attempt.outcome is None
        assert attempt.lease_expires_at.timestamp() == BEGIN + 2
        claims = await store.jobs.claim("worker", limit=5)
        assert {claim.job_id for claim in claims} == {"job_first", "job_second", "job_third"}
        assert [one.outcome for one in await store.jobs.attempts("job_first")] == ["lost", None]


async def test_waiting_jobs_keep_their_order_within_a_second_as_well(old: Path, files: Path, adopt: Adopt) -> None:
    system = newest(0, files)
    order = [f"job_{number:03}" for number in (5, 3, 9, 1, 7, 0, 2)]
    system.tables["background_jobs"] = [
        {"id": name, "session_id": "session_0", "prompt": "p", "status": "queued", "created_at": BEGIN}
        for name in order
    ]
    system.write(old)
    await asyncio.to_thread(adopt)
    async with JobStore(old) as store:
        claims = await store.jobs.claim("worker", limit=10)
        assert [claim.job_id for claim in claims] == order
        assert {claim.job.created_at.timestamp() for claim in claims} == {BEGIN}


async def test_ids_of_the_old_system_are_as_good_as_any_other(old: Path, files: Path, adopt: Adopt) -> None:
    newest(200, files).write(old)
    await asyncio.to_thread(adopt)
    async with JobStore(old, inline_limit=100) as store:
        [claim] = await store.jobs.claim("worker")
        assert claim.job_id.startswith("job_")
        async with store.jobs.output(claim) as output:
            await output.write("streamed " * 100)
        done = await store.jobs.complete(claim)
        assert done.output_file_path is not None
        assert claim.job_id in done.output_file_path
        assert "".join([part async for part in store.jobs.tail(claim.job_id)]) == "streamed " * 100
        [other] = await store.jobs.claim("worker")
        assert (await store.jobs.cancel(other.job_id)).cancel_requested_at is not None
        assert (await store.jobs.retry(claim.job_id)).status is JobStatus.IDLE
        page = await store.jobs.list(session_id="session_1", limit=7)
        assert {job.session_id for job in page.items} == {"session_1"}
        await store.sessions.delete("session_1")
        assert await store.jobs.count(session_id="session_1") == 0


async def test_what_the_api_of_the_store_says_of_state(old: Path, files: Path, adopt: Adopt) -> None:
    newest(5, files).write(old)
    await asyncio.to_thread(adopt)
    async with JobStore(old) as store:
        assert await store.kv.get("window") == {"w": 1.5, "h": 2}
        assert await store.kv.get("plain") == "not JSON {"
        assert await store.cached_state.all("/src/project 1") == {
            "tabs": ["a.py"], "theme": "dark", "note": "quoted", "empty": "",
        }  # fmt: skip
        assert [one.id for one in await store.sessions.list("/src/project 1")] == ["session_3", "session_1"]
        assert await store.files.included("session_2") == ["z.py", "ä b.py", "a.py"]


async def test_priorities_models_and_types_come_from_the_metadata_where_columns_lack_them(
    old: Path, adopt: Adopt
) -> None:
    told = [
        ({"priority": 7, "modelUsed": "m", "jobTypeForWorker": "t"}, (7, "m", "t")),
        ({"jobPriorityForWorker": "-3"}, (-3, None, "unknown")),
        ({"priority": "high", "jobPriorityForWorker": 2}, (2, None, "unknown")),
        ({"priority": 2**40}, (0, None, "unknown")),
        ({"priority": 1.5, "modelUsed": 5, "jobTypeForWorker": ""}, (0, None, "unknown")),
        ({"adopted": "taken"}, (0, None, "unknown")),
    ]
    system = OldSystem({"background_jobs": JOBS[:-1]})
    system.tables["background_jobs"] = [
        {"id": f"job_{number}", "session_id": "s", "prompt": "p", "status": "failed", "created_at": BEGIN,
         "metadata": json.dumps(metadata), "task_type": None, "api_type": None, "chars_received": 9}
        for number, (metadata, _) in enumerate(told)
    ]  # fmt: skip
    system.write(old)
    await asyncio.to_thread(adopt)
    async with JobStore(old) as store:
        for number, (metadata, expected) in enumerate(told):
            job = await store.jobs.get(f"job_{number}")
            assert (job.priority, job.model_used, job.task_type) == expected
            assert job.api_type == "unknown"
            assert metadata.items() <= job.metadata.items()
        assert job.metadata == {"adopted": "taken", "adopted_2": {"chars_received": 9}}


async def test_a_session_is_made_for_rows_that_name_one_which_is_not_there(
    old: Path, files: Path, adopt: Adopt
) -> None:
    system = newest(3, files)
    for row in system.tables["background_jobs"]:
        row |= {"session_id": "session_gone", "project_directory": "/src/gone"}
    system.tables["included_files"].append({"session_id": "session_lost", "path": "a.py"})
    system.write(old)
    report = await asyncio.to_thread(adopt)
    async with JobStore(old) as store:
        session = await store.sessions.get("session_gone")
        assert session.project_directory == "/src/gone"
        assert await store.jobs.count(session_id="session_gone") == 3
        assert await store.files.included("session_lost") == ["a.py"]
    assert report.changed["sessions: made for rows whose session was not there"] == 2


def test_of_jobs_with_one_id_the_later_get_new_ids_and_never_run_by_themselves(
    old: Path, files: Path, adopt: Adopt
) -> None:
    system = newest(0, files)
    system.definitions |= {"background_jobs": ("id", "prompt", "status"), "gemini_requests": ("id", "prompt", "status")}
    system.scripts = []
    system.tables["background_jobs"] = [
        {"id": "job_1", "prompt": "first", "status": "completed"},
        {"id": "job_1", "prompt": "second", "status": "queued"},
    ]
    system.tables["gemini_requests"] = [{"id": "job_1", "prompt": "third", "status": "failed"}]
    system.write(old)
    adopt()
    rows = rows_of(old, "background_jobs", old=False)
    assert [row["status"] for row in rows] == ["completed", "canceled", "failed"]
    assert [row["error_type"] for row in rows] == [None, "repeated_id", None]
    assert rows[0]["id"] == "job_1"
    assert len({row["id"] for row in rows}) == 3
    assert [json.loads(row["metadata"])["adopted"]["id"] for row in rows[1:]] == ["job_1", "job_1"]


def test_a_view_that_stands_in_for_a_table_goes_with_its_triggers_and_is_told(old: Path, adopt: Adopt) -> None:
    view = "CREATE VIEW background_jobs AS SELECT * FROM gemini_requests"
    trigger = "CREATE TRIGGER added INSTEAD OF INSERT ON background_jobs BEGIN SELECT 1; END"
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE gemini_requests (id, prompt, status)")
        connection.execute("INSERT INTO gemini_requests VALUES ('job_1', 'p', 'completed')")
        connection.execute(view)
        connection.execute(trigger)
    report = adopt()
    assert sorted(report.let_go) == sorted([view, trigger])
    assert [row["api_type"] for row in rows_of(old, "background_jobs", old=False)] == ["gemini"]


def test_a_table_without_row_numbers_and_columns_that_are_computed_are_adopted_too(old: Path, adopt: Adopt) -> None:
    columns = (*JOBS[:-1], "twice INTEGER AS (tokens_sent * 2)")
    row = {"id": "job_1", "session_id": "s", "prompt": "p", "status": "idle", "created_at": BEGIN, "tokens_sent": 4}
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute(f"CREATE TABLE background_jobs ({', '.join(columns)})")
        connection.execute("CREATE TABLE key_value_store (key TEXT PRIMARY KEY, value TEXT, more TEXT) WITHOUT ROWID")
        insert(connection, "background_jobs", [row])
        insert(connection, "key_value_store", [{"key": "b", "value": "1", "more": "x"}])
    adopt()
    [job] = rows_of(old, "background_jobs", old=False)
    assert json.loads(job["metadata"])["adopted"]["twice"] == 8


async def test_a_report_that_someone_has_changed_is_told(old: Path, files: Path) -> None:
    newest(1, files).write(old)
    async with JobStore(old, migrate=True) as store:
        await store.kv.set("jobstore.adoption", {"secret": 1})
    with pytest.raises(SchemaMismatch, match="someone has changed it"):
        await asyncio.to_thread(lambda: Migrator(old).adoption())


def test_outputs_of_another_store_are_refused_and_nothing_is_changed(old: Path, files: Path) -> None:
    newest(30, files).write(old)
    outputs = Path(f"{old}.outputs")
    outputs.mkdir()
    (outputs / "store_id").write_text("another\n", encoding="utf-8")
    tables = tables_of(old)
    with pytest.raises(OutputError, match="belongs to another store"):
        Migrator(old).run()
    assert tables_of(old) == tables
    assert Migrator(old, place=old.parent / "texts").run().adoption is not None


async def test_an_adopted_file_is_promoted_to_a_server_with_its_report(
    old: Path, files: Path, tmp_path: Path, fresh_database: str
) -> None:
    newest(120, files).write(old)
    report = await asyncio.to_thread(lambda: Migrator(old).run().adoption)
    server = await asyncio.to_thread(lambda: find_database(fresh_database).migrator())
    await asyncio.to_thread(server.run)
    done = await promote(old, fresh_database, target_outputs=tmp_path / "texts", force_rescue=True)
    assert done.tables["background_jobs"].rows == 120
    assert await asyncio.to_thread(server.adoption) == report
    assert await asyncio.to_thread(server.rehearse) is None


def test_the_report_is_kept_in_the_store(old: Path, files: Path, adopt: Adopt) -> None:
    system = newest(100, files)
    system.tables["key_value_store"].append({"key": "jobstore.adoption", "value": "mine", "updated_at": 1})
    system.write(old)
    report = adopt()
    assert Migrator(old).adoption() == report
    assert report.tables["background_jobs"].rows == 100
    assert report.kept_tables == {
        "meta": "meta", "db_diagnostic_logs": "db_diagnostic_logs", "migrations": "old_migrations",
    }  # fmt: skip
    assert len(report.let_go) == 2
    assert report.noted["background_jobs: metadata is no JSON object"] == 28
    assert report.noted["key_value_store: another row of the same key counts"] == 1


def test_notes_are_counted_beyond_those_that_are_named(old: Path, files: Path, adopt: Adopt) -> None:
    system = newest(1200, files)
    for row in system.tables["background_jobs"]:
        row["metadata"] = "{"
    system.write(old)
    report = adopt()
    assert report.noted["background_jobs: metadata is no JSON object"] == 1200
    assert len(report.notes) == 1000


def test_a_rehearsal_tells_the_same_and_changes_nothing(old: Path, files: Path, adopt: Adopt) -> None:
    newest(200, files).write(old)
    before = traces_of(old.parent)
    told = Migrator(old, clock=FakeClock()).rehearse()
    assert traces_of(old.parent) == before
    done = adopt()
    assert told is not None
    assert told.model_dump(exclude={"adopted_at"}) == done.model_dump(exclude={"adopted_at"})
    assert Migrator(old).rehearse() is None


def traces_of(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_an_old_database_is_adopted_when_a_store_is_opened_so_and_only_then(
    old: Path, files: Path, tmp_path: Path
) -> None:
    newest(100, files).write(old)
    with pytest.raises(MigrationRequired, match=f"--db {old}"):
        await JobStore(old).open()
    async with JobStore(old, migrate=True, outputs=tmp_path / "texts") as store:
        assert await store.jobs.count() == 100
        [row] = await store.execute("SELECT id FROM background_jobs WHERE output_file_path IS NOT NULL LIMIT 1")
        assert (await store.jobs.read_response(row["id"]) or "").startswith("<answer>")
        assert await store.sweep() == 0
    assert_nothing_is_lost(next(tmp_path.glob("old.db.backup-*")), old, tmp_path / "texts")
    assert not Path(f"{old}.outputs").exists()


def test_tables_of_other_programs_are_left_alone_with_their_references(old: Path, files: Path, adopt: Adopt) -> None:
    system = variants(files, 20)["more of everything"]
    system.definitions["toys"] = ("name TEXT", "job_id TEXT REFERENCES gemini_requests (id)")
    system.write(old)
    report = adopt()
    assert report.kept_tables["pets"] == "pets"
    assert report.kept_tables["lanes"] == "old_lanes"
    assert query(old, "SELECT pets.name FROM pets JOIN sessions ON sessions.id = session_id") == [("Rex",)]
    assert "outputs: the view does not fit the tables any more: drop it or mend it" in report.noted
    assert "toys: the table refers to gemini_requests, which is not there any more" in report.noted
    assert "CREATE VIEW workers AS SELECT 1" in report.let_go


@pytest.mark.parametrize(
    ("script", "is_old"),
    [
        ("CREATE TABLE sessions (id, project_directory, title_regex)", True),
        ("CREATE TABLE Background_Jobs (ID, Prompt, STATUS)", True),
        (f"{OLD_STATE}; INSERT INTO migrations VALUES (1, 'consolidated_migrations.sql', 1)", True),
        (OLD_STATE, False),
        ("CREATE TABLE sessions (id, user)", False),
        ("CREATE TABLE sessions (id, project_directory)", False),
        ("CREATE TABLE background_jobs (id, queue)", False),
        ("CREATE VIEW background_jobs AS SELECT 1 AS id, 2 AS prompt, 3 AS status", False),
        ("CREATE TABLE background_jobs (id, prompt, status); CREATE TABLE migrations (name, checksum)", False),
        ("", False),
    ],
)  # fmt: skip
def test_the_old_system_is_recognised_and_no_other(old: Path, script: str, is_old: bool) -> None:  # noqa: FBT001
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(script)
        assert (recognise(connection) is not None) == is_old


def test_a_store_is_not_taken_for_an_old_database(database: Path) -> None:
    Migrator(database).run()
    with closing(sqlite3.connect(database)) as connection:
        assert recognise(connection) is None
    assert Migrator(database).rehearse() is None
    assert Migrator(database).adoption() is None


def test_a_database_that_cannot_be_compacted_is_adopted_all_the_same(
    old: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone begins to read it right after the adoption was committed."""
    newest(50, files).write(old)
    forget = Intent.forget
    with closing(sqlite3.connect(old, isolation_level=None)) as reader:

        def begin_to_read(intent: Intent) -> None:
            forget(intent)
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM background_jobs").fetchone() == (50,)

        monkeypatch.setattr(Intent, "forget", begin_to_read)
        monkeypatch.setattr(sqlite_migrator, "COMPACT_DEADLINE", 0.01)
        result = Migrator(old).run()
    assert result.adoption is not None
    assert result.not_compacted is not None
    assert "locked by another process" in result.not_compacted
    assert query(old, "PRAGMA auto_vacuum") == [(0,)]
    assert Migrator(old).status().pending == []


def test_what_two_migrators_do_at_once_is_done_once(old: Path, files: Path) -> None:
    newest(50, files).write(old)
    first = Migrator(old)
    second: list[Any] = []
    first.run(backed_up=lambda _: second.append(Migrator(old).status().pending))
    assert [step.name for step in second[0]] == [step.name for step in load_steps()]
    assert Migrator(old).run().applied == []
    assert len(list(old.parent.glob("*.backup-*"))) == 1


def test_rows_of_the_old_system_are_gone_from_the_file_but_for_the_backup(old: Path, files: Path, adopt: Adopt) -> None:
    system = newest(5, files)
    system.write(old)
    with closing(sqlite3.connect(old)) as connection, connection:
        insert(connection, "meta", [{"key": "more", "value": "kept"}])
    adopt()
    assert not {table for table in tables_of(old) if table.startswith("old_")} - {"old_migrations"}
    assert query(old, "SELECT value FROM meta WHERE key = 'more'") == [("kept",)]
