"""Applying steps to PostgreSQL: all or nothing of each, by one migrator of many, in one schema of a database."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from jobstore import DatabaseBusy, DatabaseNotFound, JobStore, MigrationRequired, SchemaMismatch
from jobstore.engines.postgres_schema import SCHEMA_LOCK
from jobstore.migrate import POSTGRES_STEPS, Migrator, Step, load_steps
from jobstore.migrate import postgres as postgres_migrate
from jobstore.migrate.postgres import PostgresMigrator
from tests.postgres import in_schema

if TYPE_CHECKING:
    from tests.migrations.conftest import StepFolder

NAMES = [step.name for step in load_steps(POSTGRES_STEPS)]
MIGRATORS = 4
TYPES = {"bigint": "INTEGER", "text": "TEXT", "json": "TEXT", "double precision": "REAL"}


def migrator(url: str, steps: Sequence[Step] | None = None) -> PostgresMigrator:
    return PostgresMigrator(url, "the database", steps, clock=lambda: 1_750_000_000_123)


def rows_of(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def everything_of(url: str) -> set[tuple[str, str]]:
    """Return what lies in the schemas of a database but the server's own: its kind and name."""
    sql = """
        SELECT relkind::text, oid::regclass::text FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_|^inf'
        UNION ALL
        SELECT 'function', oid::regproc::text FROM pg_proc WHERE pronamespace::regnamespace::text !~ '^pg_|^inf'
    """
    return set(rows_of(url, sql))


def tables_of(url: str) -> set[str]:
    return {name for kind, name in everything_of(url) if kind == "r"}


def open_store(url: str) -> None:
    async def work() -> None:
        async with JobStore(url):
            pass

    asyncio.run(work())


def run_process(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_new_schema_is_made_with_all_steps_recorded(fresh_database: str) -> None:
    announced: list[str] = []
    result = migrator(fresh_database).run(lambda step: announced.append(step.name))
    assert (result.applied, announced, result.backup) == (NAMES, NAMES, None)
    applied, pending, _ = migrator(fresh_database).status()
    assert [(record.name, record.checksum) for record in applied] == [
        (step.name, step.checksum) for step in load_steps(POSTGRES_STEPS)
    ]
    assert {record.applied_at.isoformat() for record in applied} == {"2025-06-15T15:06:40.123000+00:00"}
    assert pending == []


def test_nothing_is_done_twice(fresh_database: str) -> None:
    migrator(fresh_database).run()
    before = everything_of(fresh_database), rows_of(fresh_database, "SELECT * FROM store_identity")
    assert migrator(fresh_database).run().applied == []
    assert (everything_of(fresh_database), rows_of(fresh_database, "SELECT * FROM store_identity")) == before


def test_the_status_changes_nothing(fresh_database: str) -> None:
    applied, pending, holds_anything = migrator(fresh_database).status()
    assert (applied, [step.name for step in pending], holds_anything) == ([], NAMES, False)
    assert everything_of(fresh_database) == set()


def test_steps_are_applied_in_the_order_of_their_names(fresh_database: str, steps: StepFolder) -> None:
    steps.add("0002_second.sql", "-- 100 % of it; in two statements\nINSERT INTO t VALUES (2); SELECT x % 2 FROM t;")
    steps.add("0001_first.sql", "CREATE TABLE t (x INTEGER); INSERT INTO t VALUES (1);")
    steps.add("0010_third.py", "def upgrade(connection):\n    connection.execute('INSERT INTO t VALUES (%s)', (10,))\n")
    assert migrator(fresh_database, steps.load()).run().applied == ["0001_first", "0002_second", "0010_third"]
    assert rows_of(fresh_database, "SELECT x FROM t") == [(1,), (2,), (10,)]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("0002_bad.sql", "CREATE TABLE u (x INTEGER); INSERT INTO nowhere VALUES (1);", 'relation "nowhere" does not'),
        ("0002_bad.sql", "CREATE TABLE u (x INTEGER); INSERT INTO t VALUES (1), (1);", "unique constraint"),
        ("0002_bad.sql", "CREATE TABLE u (x INTEGER); SELEKT 1;", "syntax error"),
        ("0002_bad.sql", "CREATE TABLE u (x INTEGER); COMMIT; SELECT 1;", "transaction commands"),
        ("0002_bad.sql", "CREATE TABLE u (x INTEGER); /* ; */ END;", "transaction commands"),
        ("0002_bad.sql", "CREATE TABLE u (x INTEGER); ROLLBACK;", "transaction commands"),
        (
            "0002_bad.py",
            "def upgrade(c):\n    c.execute('CREATE TABLE u (x INT)')\n    raise LookupError('why')",
            "why",
        ),
        ("0002_bad.py", "def upgrade(c):\n    c.execute('CREATE TABLE u (x INT)')\n    c.commit()", "commit"),
        ("0002_bad.py", "def upgrade(c", "never closed"),
    ],
)
def test_a_failing_step_leaves_nothing_and_those_before_it_remain(
    fresh_database: str, steps: StepFolder, name: str, text: str, reason: str
) -> None:
    steps.add("0001_good.sql", "CREATE TABLE t (x INTEGER PRIMARY KEY);")
    steps.add(name, text)
    with pytest.raises(SchemaMismatch, match="step 0002_bad failed and was undone: ") as refusal:
        migrator(fresh_database, steps.load()).run()
    assert reason in str(refusal.value)
    assert refusal.value.steps == ("0002_bad",)
    assert tables_of(fresh_database) == {"migrations", "t"}
    assert rows_of(fresh_database, "SELECT name FROM migrations") == [("0001_good",)]
    assert rows_of(fresh_database, "SELECT * FROM t") == []


ENDS = "which is the runner's business"


@pytest.mark.parametrize(
    "ending",
    [
        "c.execute('COMMIT')",
        "c.execute('ROLLBACK'); c.execute('CREATE TABLE v (x INT)')",
        "c.execute('COMMIT; BEGIN')",
        "c.execute('INSERT INTO t VALUES (1); -- ;\\n /* x */ commit and chain; SELECT 1')",
        "c.execute(b'END')",
        "c.execute(sql.SQL('ABORT'))",
        "c.execute('PREPARE TRANSACTION %s', ('a',))",
        "c.cursor().execute('START TRANSACTION')",
        "c.cursor().executemany('COMMIT', [()])",
        "list(c.cursor().stream('COMMIT'))",
    ],
)
def test_a_step_in_python_that_would_end_its_transaction_is_named_and_leaves_nothing(
    fresh_database: str, steps: StepFolder, ending: str
) -> None:
    steps.add("0001_good.sql", "CREATE TABLE t (x INTEGER);")
    steps.add(
        "0002_bad.py",
        f"from psycopg import sql\ndef upgrade(c):\n    c.execute('CREATE TABLE u (x INT)')\n    {ending}\n",
    )
    with pytest.raises(SchemaMismatch, match=f"step 0002_bad failed and was undone: .*{ENDS}") as refusal:
        migrator(fresh_database, steps.load()).run()
    assert refusal.value.steps == ("0002_bad",)
    assert tables_of(fresh_database) == {"migrations", "t"}
    steps.add("0002_bad.py", "def upgrade(c):\n    c.execute('CREATE TABLE u (x INT)')\n")
    assert migrator(fresh_database, steps.load()).run().applied == ["0002_bad"]


def test_a_step_that_ends_its_transaction_unseen_is_not_taken_for_applied(
    fresh_database: str, steps: StepFolder
) -> None:
    steps.add(
        "0001_sly.py",
        "def upgrade(c):\n    c.execute('CREATE TABLE u (x INT)')\n    c.pgconn.exec_(b'COMMIT; BEGIN')\n",
    )
    with pytest.raises(SchemaMismatch, match="0001_sly ended its transaction: what it did before remains") as refusal:
        migrator(fresh_database, steps.load()).run()
    assert refusal.value.steps == ("0001_sly",)
    assert [step.name for step in migrator(fresh_database, steps.load()).status().pending] == ["0001_sly"]


def test_a_step_that_swallows_an_error_of_the_server_is_not_taken_for_applied(
    fresh_database: str, steps: StepFolder
) -> None:
    steps.add(
        "0001_deaf.py",
        "def upgrade(c):\n    try:\n        c.execute('SELECT nonsense')\n    except Exception:\n        return\n",
    )
    with pytest.raises(SchemaMismatch, match="0001_deaf failed and was undone: ") as refusal:
        migrator(fresh_database, steps.load()).run()
    assert refusal.value.steps == ("0001_deaf",)
    assert everything_of(fresh_database) == set()


def test_a_step_that_closes_its_connection_is_named(fresh_database: str, steps: StepFolder) -> None:
    steps.add("0001_closing.py", "def upgrade(c):\n    c.execute('CREATE TABLE u (x INT)')\n    c.close()\n")
    with pytest.raises(SchemaMismatch, match="0001_closing failed and was undone: ") as refusal:
        migrator(fresh_database, steps.load()).run()
    assert refusal.value.steps == ("0001_closing",)
    assert everything_of(fresh_database) == set()


def test_a_step_that_changes_the_search_path_is_recorded_in_the_right_schema(
    fresh_database: str, steps: StepFolder
) -> None:
    steps.add("0001_elsewhere.sql", "CREATE SCHEMA other; SET search_path TO other; CREATE TABLE t (x INTEGER);")
    steps.add("0002_here.sql", "CREATE TABLE u (x INTEGER);")
    assert migrator(fresh_database, steps.load()).run().applied == ["0001_elsewhere", "0002_here"]
    assert migrator(fresh_database, steps.load()).run().applied == []
    assert tables_of(fresh_database) == {"migrations", "other.t", "u"}


def test_a_step_in_python_may_use_savepoints_and_functions_of_sql(fresh_database: str, steps: StepFolder) -> None:
    steps.add(
        "0001_good.py",
        "import psycopg\n"
        "def upgrade(c):\n"
        "    c.execute('CREATE TABLE t (x INT UNIQUE); SAVEPOINT a; ROLLBACK TO SAVEPOINT a')\n"
        "    with c.transaction():\n"
        "        c.execute('CREATE FUNCTION two() RETURNS INT BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 1')\n"
        "    try:\n"
        "        with c.transaction():\n"
        "            c.execute(\"SELECT '; COMMIT', $$; COMMIT; $$, E'\\\\'; COMMIT' -- ; COMMIT\")\n"
        "            c.execute('INSERT INTO t VALUES (5), (5)')\n"
        "    except psycopg.errors.UniqueViolation:\n"
        "        c.execute('INSERT INTO t SELECT two()')\n",
    )
    assert migrator(fresh_database, steps.load()).run().applied == ["0001_good"]
    assert rows_of(fresh_database, "SELECT x FROM t") == [(2,)]


def test_the_first_step_that_fails_leaves_no_table_at_all(fresh_database: str, steps: StepFolder) -> None:
    steps.add("0001_bad.sql", "CREATE TABLE t (x INTEGER); SELECT 1 / 0;")
    with pytest.raises(SchemaMismatch, match="0001_bad failed and was undone"):
        migrator(fresh_database, steps.load()).run()
    assert everything_of(fresh_database) == set()


def test_a_migrator_that_is_killed_leaves_nothing_and_another_goes_on(fresh_database: str, steps: StepFolder) -> None:
    steps.add(
        "0001_deadly.py",
        "import os\ndef upgrade(c):\n    c.execute('CREATE TABLE t (x INT)')\n    os.kill(os.getpid(), 9)",
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from jobstore.migrate import load_steps; from jobstore.migrate.postgres import PostgresMigrator\n"
        "PostgresMigrator(sys.argv[1], 'database', load_steps(Path(sys.argv[2]))).run()"
    )
    killed = run_process("-c", code, fresh_database, str(steps.path))
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert migrator(fresh_database).run().applied == NAMES
    assert "t" not in tables_of(fresh_database)


def test_of_several_migrators_at_once_one_applies_each_step(fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as gate, psycopg.connect(fresh_database, autocommit=True) as onlooker:
        gate.execute("SELECT pg_advisory_xact_lock(%s, hashtext('public'))", (SCHEMA_LOCK,))
        processes = [run_process("-m", "jobstore.migrate", "--db", fresh_database, "--json") for _ in range(MIGRATORS)]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        while onlooker.execute(waiting).fetchone() != (MIGRATORS,):
            assert all(process.poll() is None for process in processes)
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * MIGRATORS, answers
    # The lock is taken anew for each step, so that they may take turns.
    assert sorted(name for said, _ in answers for name in json.loads(said)["applied"]) == NAMES
    assert rows_of(fresh_database, "SELECT name FROM migrations ORDER BY name") == [(name,) for name in NAMES]


def test_a_migrator_that_keeps_its_lock_is_not_waited_for_without_end(
    fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_migrate, "BUSY_DEADLINE", 0.05)
    with psycopg.connect(fresh_database) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(%s, hashtext('public'))", (SCHEMA_LOCK,))
        with pytest.raises(DatabaseBusy):
            migrator(fresh_database).run()
    assert migrator(fresh_database).run().applied == NAMES


def test_a_table_that_someone_keeps_locked_fails_the_step_that_changes_it(
    fresh_database: str, steps: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_migrate, "BUSY_DEADLINE", 0.05)
    rows_of(fresh_database, "CREATE TABLE t (x INTEGER)")
    steps.add("0001_good.sql", "SELECT 1;")
    steps.add("0002_bad.sql", "ALTER TABLE t ADD COLUMN y INTEGER;")
    with psycopg.connect(fresh_database) as reader:
        reader.execute("SELECT * FROM t")
        with pytest.raises(SchemaMismatch, match="0002_bad failed and was undone: the database was locked"):
            migrator(fresh_database, steps.load()).run()
    assert migrator(fresh_database, steps.load()).run().applied == ["0002_bad"]


def test_a_changed_step_is_named(fresh_database: str, steps: StepFolder) -> None:
    steps.add("0001_first.sql", "SELECT 1;")
    steps.add("0002_second.sql", "SELECT 2;")
    migrator(fresh_database, steps.load()).run()
    steps.add("0001_first.sql", "SELECT 11;")
    steps.add("0003_third.sql", "CREATE TABLE t (x INTEGER);")
    for act in (migrator(fresh_database, steps.load()).status, migrator(fresh_database, steps.load()).run):
        with pytest.raises(SchemaMismatch, match="what was applied as 0001_first was changed") as refusal:
            act()
        assert refusal.value.steps == ("0001_first",)
    assert tables_of(fresh_database) == {"migrations"}


def test_a_step_that_is_unknown_here_asks_for_a_newer_version(fresh_database: str) -> None:
    migrator(fresh_database).run()
    rows_of(fresh_database, "INSERT INTO migrations VALUES ('9999_newer', 'c', 1)")
    for act in (migrator(fresh_database).status, migrator(fresh_database).run):
        with pytest.raises(SchemaMismatch, match=r"newer jobstore \(9999_newer\): install that version"):
            act()
    with pytest.raises(SchemaMismatch, match="install that version"):
        open_store(fresh_database)


def test_a_table_of_another_program_is_refused(fresh_database: str) -> None:
    rows_of(fresh_database, "CREATE TABLE migrations (id INTEGER)")
    for act in (migrator(fresh_database).status, migrator(fresh_database).run):
        with pytest.raises(SchemaMismatch, match="of another program: use another schema"):
            act()
    with pytest.raises(MigrationRequired):
        open_store(fresh_database)
    assert tables_of(fresh_database) == {"migrations"}


# Schemas


@pytest.fixture
def schemas(fresh_database: str) -> tuple[str, str]:
    """Return the URLs of two schemas of one database."""
    rows_of(fresh_database, "CREATE SCHEMA one")
    rows_of(fresh_database, "CREATE SCHEMA two")
    return in_schema(fresh_database, "one"), in_schema(fresh_database, "two")


def test_everything_lies_in_the_schema_that_was_named(fresh_database: str, schemas: tuple[str, str]) -> None:
    migrator(schemas[0]).run()
    found = everything_of(fresh_database)
    assert len(found) > 20
    assert {name.partition(".")[0] for _, name in found} == {"one"}


async def test_two_schemas_of_a_database_are_two_stores(schemas: tuple[str, str], tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    async with (
        JobStore(schemas[0], migrate=True, outputs=folders[0]) as one,
        JobStore(schemas[1], migrate=True, outputs=folders[1]) as two,
    ):
        first = await one.jobs.enqueue("p" * 100_000, task_type="t", api_type="a", idempotency_key="key")
        assert (await two.jobs.list()).items == []
        assert await two.jobs.claim("worker-1") == []
        second = await two.jobs.enqueue("p", task_type="t", api_type="a", idempotency_key="key")
        assert second.id != first.id
        [claimed] = await one.jobs.claim("worker-1", limit=10)
        assert claimed.job_id == first.id
        identities = [
            (await store.execute("SELECT store_id FROM store_identity"))[0]["store_id"] for store in (one, two)
        ]
        assert len(set(identities)) == 2


async def test_a_schema_whose_name_needs_quotation_marks_is_one_like_any_other(fresh_database: str) -> None:
    rows_of(fresh_database, 'CREATE SCHEMA "Order"')
    async with JobStore(in_schema(fresh_database, "%22Order%22"), migrate=True) as store:
        job = await store.jobs.enqueue("p", task_type="t", api_type="a")
        [claim] = await store.jobs.claim("worker-1")
        assert claim.job_id == job.id
    assert {name.partition(".")[0] for _, name in everything_of(fresh_database)} == {'"Order"'}


def test_a_schema_that_does_not_exist_is_an_error_that_says_so(fresh_database: str) -> None:
    url = in_schema(fresh_database, "nowhere")
    for act in (migrator(url).status, migrator(url).run):
        with pytest.raises(SchemaMismatch, match="has none of the schemas of its search_path: create one of them"):
            act()
    with pytest.raises(SchemaMismatch, match="search_path"):
        open_store(url)
    assert everything_of(fresh_database) == set()


def test_tables_of_a_later_schema_are_not_taken_for_those_of_the_first(
    fresh_database: str, schemas: tuple[str, str]
) -> None:
    migrator(fresh_database).run()
    both = schemas[0] + ",public"
    with pytest.raises(SchemaMismatch, match="are in schema public, but one comes first"):
        open_store(both)
    assert migrator(both).run().applied == NAMES
    open_store(both)


def test_a_database_that_does_not_exist_is_not_made(fresh_database: str) -> None:
    with pytest.raises(DatabaseNotFound):
        migrator(fresh_database.replace("test_", "none_")).run()


# The schema itself


def test_tables_columns_and_defaults_are_those_of_sqlite(fresh_database: str, database: Path) -> None:
    migrator(fresh_database).run()
    Migrator(database).run()
    ours = rows_of(
        fresh_database,
        "SELECT table_name, column_name, data_type, is_nullable = 'NO', column_default"
        " FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'store_writers'"
        " ORDER BY table_name, ordinal_position",
    )
    with closing(sqlite3.connect(database)) as connection:
        theirs = connection.execute(
            'SELECT t.name, c.name, c.type, c."notnull" OR c.pk, c.dflt_value'
            " FROM pragma_table_list AS t, pragma_table_xinfo(t.name) AS c"
            " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' ORDER BY t.name, c.cid"
        ).fetchall()
    plain = [
        (table, column, TYPES[kind], int(required), default and re.sub(r"::\w+$", "", default))
        for table, column, kind, required, default in ours
    ]
    assert plain == theirs


def test_indexes_have_the_names_of_those_of_sqlite(fresh_database: str, database: Path) -> None:
    migrator(fresh_database).run()
    Migrator(database).run()
    ours = {name for kind, name in everything_of(fresh_database) if kind == "i" and not name.endswith("_pkey")}
    with closing(sqlite3.connect(database)) as connection:
        theirs = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql <> ''")
        }
    assert ours == theirs


def test_every_step_says_why_in_its_first_line() -> None:
    for step in load_steps(POSTGRES_STEPS):
        assert step.path.read_text(encoding="utf-8").startswith(("-- ", '"""'))
