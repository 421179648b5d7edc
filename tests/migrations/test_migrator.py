"""Applying steps: all or nothing of each, by one migrator of many, and without harm to what else lies in the file."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import DatabaseBusy, DiskFull, JobStore, MigrationRequired, SchemaMismatch, StatementFailed
from jobstore.migrate import Migrator, load_steps
from jobstore.migrate import sqlite as runner_module

if TYPE_CHECKING:
    from tests.migrations.conftest import StepFolder

NAMES = [step.name for step in load_steps()]


def rows_of(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def tables_of(path: Path) -> set[str]:
    return {name for (name,) in rows_of(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")}


def traces_of(path: Path) -> dict[str, tuple[int, str]]:
    """Return the files that belong to a database, each with its time and hash."""
    return {
        file.name: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in path.parent.glob(f"{path.name}*")
        if not file.name.endswith("-shm")  # locks and an index: scratch by nature
    }


def test_a_new_database_is_made_with_all_steps_recorded(database: Path) -> None:
    result = Migrator(database, clock=lambda: 1_750_000_000_123).run()
    assert result.applied == NAMES
    assert result.backup is None
    applied, pending, holds_anything = Migrator(database).status()
    assert [(record.name, record.checksum) for record in applied] == [(s.name, s.checksum) for s in load_steps()]
    assert {record.applied_at.isoformat() for record in applied} == {"2025-06-15T15:06:40.123000+00:00"}
    assert pending == []
    assert holds_anything


def test_nothing_is_done_twice(database: Path) -> None:
    Migrator(database).run()
    before = traces_of(database)
    result = Migrator(database).run()
    assert result.applied == []
    assert traces_of(database) == before


def test_steps_are_applied_and_announced_in_the_order_of_their_names(database: Path, steps: StepFolder) -> None:
    steps.add("0002_second.sql", "INSERT INTO t VALUES (2);")
    steps.add("0001_first.sql", "CREATE TABLE t (x);")
    steps.add("0010_third.py", "def upgrade(connection):\n    connection.execute('INSERT INTO t VALUES (10)')\n")
    for name in ("notes.sql", "0011_no.txt", "11_no.sql", "__init__.py"):
        steps.add(name, "no step")
    announced: list[str] = []
    result = Migrator(database, steps.load()).run(lambda step: announced.append(step.name))
    assert announced == result.applied == ["0001_first", "0002_second", "0010_third"]
    assert rows_of(database, "SELECT x FROM t") == [(2,), (10,)]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "0002_bad.sql",
            "CREATE TABLE u (x); INSERT INTO t VALUES (1); INSERT INTO nowhere VALUES (1);",
            "no such table",
        ),
        ("0002_bad.sql", "CREATE TABLE u (x); INSERT INTO t VALUES (1), (1);", "UNIQUE constraint failed"),
        ("0002_bad.sql", "CREATE TABLE u (x); INSERT OR ROLLBACK INTO t VALUES (1), (1);", "UNIQUE constraint failed"),
        ("0002_bad.sql", "CREATE TABLE u (x); COMMIT; SELECT 1;", "the runner's business"),
        ("0002_bad.sql", "CREATE TABLE u (x); /* ; */ END;", "the runner's business"),
        ("0002_bad.sql", "CREATE TABLE u (x); ROLLBACK;", "the runner's business"),
        ("0002_bad.sql", "CREATE TABLE u (x); ATTACH ':memory:' AS other;", "the runner's business"),
        ("0002_bad.sql", "CREATE TABLE u (x); SELECT 1", "ends within a statement"),
        ("0002_bad.py", "def upgrade(c):\n    c.execute('CREATE TABLE u (x)')\n    raise LookupError('why')", "why"),
        ("0002_bad.py", "def upgrade(c):\n    c.execute('CREATE TABLE u (x)')\n    raise LookupError", "LookupError"),
        (
            "0002_bad.py",
            "def upgrade(c):\n    c.execute('CREATE TABLE u (x)')\n    c.commit()",
            "the runner's business",
        ),
        ("0002_bad.py", "def upgrade(c):\n    c.executescript('CREATE TABLE u (x)')", "the runner's business"),
        ("0002_bad.py", "def downgrade(c):\n    c.execute('CREATE TABLE u (x)')", "upgrade"),
        ("0002_bad.py", "import no_such_module", "no_such_module"),
        ("0002_bad.py", "def upgrade(c", "never closed"),
    ],
)
def test_a_failing_step_leaves_nothing_and_those_before_it_remain(
    database: Path, steps: StepFolder, name: str, text: str, reason: str
) -> None:
    steps.add("0001_good.sql", "CREATE TABLE t (x INTEGER PRIMARY KEY);")
    steps.add(name, text)
    steps.add("0003_later.sql", "CREATE TABLE later (x);")
    with pytest.raises(SchemaMismatch, match=reason) as failure:
        Migrator(database, steps.load()).run()
    assert failure.value.steps == ("0002_bad",)
    assert "0002_bad" in str(failure.value)
    assert tables_of(database) == {"migrations", "t"}
    assert rows_of(database, "SELECT name FROM migrations") == [("0001_good",)]
    assert rows_of(database, "SELECT * FROM t") == []


@pytest.mark.parametrize("ending", ["COMMIT", "END", "ROLLBACK", "BEGIN", "COMMIT /* and */; -- more"])
def test_a_step_in_python_cannot_end_its_transaction_even_if_it_hides_the_refusal(
    database: Path, steps: StepFolder, ending: str
) -> None:
    steps.add(
        "0001_sly.py",
        f"""
def upgrade(c):
    c.execute("CREATE TABLE u (x)")
    for end in (lambda: c.execute("{ending}"), c.commit, c.rollback):
        try:
            end()
        except Exception:
            continue
        raise AssertionError
    raise LookupError("too late")
""",
    )
    with pytest.raises(SchemaMismatch, match="0001_sly failed and was undone: too late"):
        Migrator(database, steps.load()).run()
    assert tables_of(database) == set()


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("c.execute('INSERT OR ROLLBACK INTO t VALUES (1), (1)')", "ended its transaction: what it did after remains"),
        ("c.close()", "failed and was undone: "),
    ],
)
def test_a_step_whose_transaction_is_gone_is_named_and_not_taken_for_applied(
    database: Path, steps: StepFolder, ending: str, reason: str
) -> None:
    steps.add("0001_good.sql", "CREATE TABLE t (x INTEGER PRIMARY KEY);")
    steps.add(
        "0002_sly.py",
        f"""
def upgrade(c):
    c.execute("CREATE TABLE u (x)")
    try:
        {ending}
    except Exception:
        pass
""",
    )
    with pytest.raises(SchemaMismatch, match=f"0002_sly {reason}") as refusal:
        Migrator(database, steps.load()).run()
    assert refusal.value.steps == ("0002_sly",)
    assert tables_of(database) == {"migrations", "t"}
    assert [step.name for step in Migrator(database, steps.load()).status().pending] == ["0002_sly"]


def test_a_failed_step_can_be_mended_and_applied(database: Path, steps: StepFolder) -> None:
    steps.add("0001_step.sql", "CREATE TABLE t (x);\nnonsense;")
    with pytest.raises(SchemaMismatch):
        Migrator(database, steps.load()).run()
    steps.add("0001_step.sql", "CREATE TABLE t (x);")
    assert Migrator(database, steps.load()).run().applied == ["0001_step"]


def test_a_step_killed_halfway_leaves_nothing(database: Path, steps: StepFolder) -> None:
    steps.add("0001_good.sql", "CREATE TABLE t (x);")
    steps.add("0002_killed.py", f"""
import os
def upgrade(connection):
    connection.execute("PRAGMA cache_spill=1")
    connection.execute("CREATE TABLE u (x)")
    os.kill(os.getpid(), {int(signal.SIGKILL)})
""")  # fmt: skip
    code = (
        "import sys; from pathlib import Path; from jobstore.migrate import Migrator, load_steps; "
        "Migrator(Path(sys.argv[1]), load_steps(Path(sys.argv[2]))).run()"
    )
    killed = subprocess.run([sys.executable, "-c", code, database, steps.path], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert tables_of(database) == {"migrations", "t"}
    status = Migrator(database, steps.load()).status()
    assert [step.name for step in status.pending] == ["0002_killed"]


def test_a_disk_that_is_full_is_called_so(database: Path, steps: StepFolder) -> None:
    steps.add("0001_good.sql", "CREATE TABLE t (x);")
    steps.add("0002_large.py", """
def upgrade(connection):
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 1}")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
""")  # fmt: skip
    with pytest.raises(DiskFull):
        Migrator(database, steps.load()).run()
    assert rows_of(database, "SELECT name FROM migrations") == [("0001_good",)]
    assert rows_of(database, "SELECT * FROM t") == []


def test_a_step_may_not_leave_rows_without_their_parent(database: Path, steps: StepFolder) -> None:
    steps.add("0001_family.sql", """
        CREATE TABLE parents (id INTEGER PRIMARY KEY);
        CREATE TABLE children (parent_id INTEGER REFERENCES parents (id) ON DELETE CASCADE);
        INSERT INTO parents VALUES (1), (2);
        INSERT INTO children VALUES (1), (2);
    """)  # fmt: skip
    steps.add("0002_orphans.sql", "DELETE FROM parents WHERE id = 2;")
    with pytest.raises(SchemaMismatch, match="rows of children whose parents does not exist") as failure:
        Migrator(database, steps.load()).run()
    assert failure.value.steps == ("0002_orphans",)
    assert rows_of(database, "SELECT id FROM parents") == [(1,), (2,)]
    assert rows_of(database, "SELECT parent_id FROM children") == [(1,), (2,)]


def test_a_step_in_python_rebuilds_a_table_that_others_refer_to(database: Path, steps: StepFolder) -> None:
    Migrator(database).run()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)"
            " VALUES ('j', 't', 'a', 'idle', 1, 1, 1, 'p')"
        )
        connection.execute(
            "INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at)"
            " VALUES ('j', 1, 'w', 1, 1)"
        )
    steps.add("9999_rebuild.py", """
from jobstore.migrate.helpers import rebuild_table

def upgrade(connection):
    [(sql,)] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'background_jobs'")
    rebuild_table(connection, "background_jobs", sql.replace("background_jobs", "{table}", 1))
""")  # fmt: skip
    before = rows_of(database, "SELECT name FROM sqlite_schema ORDER BY name")
    result = Migrator(database, [*load_steps(), *steps.load()]).run()
    assert result.applied == ["9999_rebuild"]
    assert rows_of(database, "SELECT name FROM sqlite_schema ORDER BY name") == before
    assert rows_of(database, "SELECT job_id, worker_id FROM job_attempts") == [("j", "w")]
    assert rows_of(database, "SELECT id, prompt FROM background_jobs") == [("j", "p")]


def test_scripts_may_hold_triggers_comments_and_texts_with_semicolons(database: Path, steps: StepFolder) -> None:
    steps.add("0001_script.sql", """\
-- One; two; 'three
/* four; "five */
CREATE TABLE t (x TEXT, y TEXT DEFAULT 'a;b');
CREATE TABLE log (text TEXT);;
CREATE TRIGGER logged AFTER INSERT ON t WHEN NEW.x <> ';' BEGIN -- begin;
    INSERT INTO log VALUES ('new; ' || NEW.x); /* ; end; */
    INSERT INTO log SELECT CASE WHEN NEW.y = 'a;b' THEN 'default;' ELSE 'own' END;
END;
INSERT INTO t (x) VALUES ('first;
-- no comment;
last'), ("it''s;");
INSERT INTO t (x) VALUES (';'); -- done; really
/* the end;""")  # fmt: skip
    Migrator(database, steps.load()).run()
    assert rows_of(database, "SELECT x FROM t") == [("first;\n-- no comment;\nlast",), ("it''s;",), (";",)]
    assert [text for (text,) in rows_of(database, "SELECT text FROM log")] == [
        "new; first;\n-- no comment;\nlast", "default;", "new; it''s;", "default;",
    ]  # fmt: skip


def test_a_changed_applied_step_is_an_error_that_names_it(database: Path, steps: StepFolder) -> None:
    steps.add("0001_first.sql", "CREATE TABLE t (x);\n")
    steps.add("0002_second.sql", "CREATE TABLE u (x);\n")
    Migrator(database, steps.load()).run()
    steps.add("0001_first.sql", "CREATE TABLE t (x, y);\n")
    steps.add("0003_third.sql", "CREATE TABLE v (x);\n")
    migrator = Migrator(database, steps.load())
    for act in (migrator.status, migrator.run):
        with pytest.raises(SchemaMismatch, match="0001_first was changed") as failure:
            act()
        assert failure.value.steps == ("0001_first",)
    assert tables_of(database) == {"migrations", "t", "u"}


def test_line_ends_of_windows_are_no_change(database: Path, steps: StepFolder) -> None:
    steps.add("0001_first.sql", "CREATE TABLE t (x);\n-- end\n")
    Migrator(database, steps.load()).run()
    steps.add("0001_first.sql", "CREATE TABLE t (x);\r\n-- end\r\n")
    assert Migrator(database, steps.load()).status().pending == []


def test_steps_of_a_newer_version_are_an_error_that_names_them(database: Path, steps: StepFolder) -> None:
    steps.add("9999_from_the_future.sql", "CREATE TABLE future (x);")
    Migrator(database, [*load_steps(), *steps.load()]).run()
    migrator = Migrator(database)
    for act in (migrator.status, migrator.run):
        with pytest.raises(SchemaMismatch, match=r"newer jobstore \(9999_from_the_future\)") as failure:
            act()
        assert failure.value.steps == ("9999_from_the_future",)


_RACER = """
import json, sys
from pathlib import Path
from jobstore.migrate import Migrator, load_steps

steps = load_steps(Path(sys.argv[1])) if sys.argv[1] else load_steps()
print("ready", flush=True)
for line in sys.stdin:
    result = Migrator(Path(line.strip()), steps).run()
    print(json.dumps([result.applied, result.backup and result.backup.name]), flush=True)
"""


@contextmanager
def racers(folder: str, count: int = 3) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that migrate each path they are told, all from a common start."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _RACER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(count)
        ]
        for process in processes:
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes


def race(processes: list[subprocess.Popen[str]], path: Path) -> list[tuple[list[str], str | None]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
    results = []
    for process in processes:
        assert process.stdout is not None
        results.append(tuple(json.loads(process.stdout.readline())))
    return results


def test_migrators_that_make_a_new_database_at_once_apply_each_step_once(tmp_path: Path) -> None:
    with racers("") as processes:
        for number in range(10):
            path = tmp_path / f"{number}.db"
            results = race(processes, path)
            assert sorted(name for applied, _ in results for name in applied) == NAMES
            assert [name for (name,) in rows_of(path, "SELECT name FROM migrations ORDER BY name")] == NAMES
            assert rows_of(path, "PRAGMA integrity_check") == [("ok",)]
            assert path.stat().st_mode & 0o777 == 0o600


def test_migrators_that_change_a_database_at_once_apply_each_step_once(tmp_path: Path, steps: StepFolder) -> None:
    steps.add("0001_first.sql", "CREATE TABLE t (x);")
    first = steps.load()
    steps.add("0002_second.sql", "INSERT INTO t VALUES (2);")
    steps.add("0003_third.sql", "INSERT INTO t VALUES (3);")
    with racers(str(steps.path)) as processes:
        for number in range(10):
            path = tmp_path / f"{number}.db"
            Migrator(path, first).run()
            results = race(processes, path)
            assert sorted(name for applied, _ in results for name in applied) == ["0002_second", "0003_third"]
            assert rows_of(path, "SELECT x FROM t ORDER BY x") == [(2,), (3,)]
            assert all((backup is not None) == bool(applied) for applied, backup in results)


def test_a_migrator_waits_for_a_writer_until_its_deadline(
    database: Path, steps: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.add("0001_first.sql", "CREATE TABLE t (x);")
    Migrator(database, steps.load()).run()
    steps.add("0002_second.sql", "CREATE TABLE u (x);")
    monkeypatch.setattr(runner_module, "BUSY_DEADLINE", 0.05)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy):
            Migrator(database, steps.load()).run()
    assert tables_of(database) == {"migrations", "t"}
    assert list(database.parent.glob("*.backup-*")) == []


def test_tables_of_a_user_in_the_same_file_are_left_alone(foreign: Path) -> None:
    before = rows_of(foreign, "SELECT name, sql FROM sqlite_schema ORDER BY name")
    Migrator(foreign).run()
    after = rows_of(foreign, "SELECT name, sql FROM sqlite_schema ORDER BY name")
    assert set(before) < set(after)
    assert rows_of(foreign, "SELECT * FROM albums") == [("First", 1), ("Orphan", 99)]
    assert rows_of(foreign, "SELECT * FROM artists") == [(1, "Ann")]


async def test_the_store_works_beside_a_users_tables(foreign: Path) -> None:
    async with JobStore(foreign, migrate=True) as store:
        job = await store.jobs.enqueue("Hello", task_type="greeting", api_type="claude")
        assert await store.jobs.read_prompt(job.id) == "Hello"
        assert await store.execute("SELECT title FROM albums WHERE artist_id = 1") == [{"title": "First"}]


async def test_opening_a_database_of_another_program_changes_nothing_in_it(foreign: Path) -> None:
    before = traces_of(foreign)
    with pytest.raises(MigrationRequired):
        await JobStore(foreign).open()
    assert traces_of(foreign) == before
    assert rows_of(foreign, "PRAGMA journal_mode") == [("delete",)]


def test_a_table_called_migrations_of_another_program_is_not_mistaken_for_ours(foreign: Path) -> None:
    with closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE migrations (id INTEGER PRIMARY KEY, migration TEXT, batch INTEGER)")
    before = traces_of(foreign)
    for act in (Migrator(foreign).status, Migrator(foreign).run):
        with pytest.raises(SchemaMismatch, match="use another file"):
            act()
    assert traces_of(foreign) == before


def test_a_table_of_another_program_with_a_name_of_ours_stops_the_step(foreign: Path) -> None:
    with closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE sessions (token TEXT)")
    schema = rows_of(foreign, "SELECT name, sql FROM sqlite_schema")
    with pytest.raises(SchemaMismatch, match="table sessions already exists") as failure:
        Migrator(foreign).run()
    assert failure.value.steps == (NAMES[0],)
    assert rows_of(foreign, "SELECT name, sql FROM sqlite_schema") == schema
    assert rows_of(foreign, "PRAGMA journal_mode") == [("delete",)]


def test_foreign_keys_of_a_user_that_mean_nothing_are_told(foreign: Path) -> None:
    with closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE songs (album TEXT REFERENCES albums (title))")
    with pytest.raises(StatementFailed, match="songs"):
        Migrator(foreign).run()
    assert "background_jobs" not in tables_of(foreign)


def test_looking_at_a_database_leaves_no_trace(database: Path, foreign: Path) -> None:
    Migrator(database).run()
    for path in (database, foreign):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        before = traces_of(path)
        Migrator(path).status()
        assert traces_of(path) == before


def test_looking_at_a_database_with_a_log_reads_the_log_and_leaves_it(database: Path, steps: StepFolder) -> None:
    steps.add("0001_first.sql", "CREATE TABLE t (x);")
    Migrator(database, steps.load()).run()
    writer = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute(\"INSERT INTO migrations VALUES ('0002_logged', 'c', 1)\"); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", writer, database], check=True, timeout=60)
    before = traces_of(database)
    assert Path(f"{database}-wal").stat().st_size > 0
    with pytest.raises(SchemaMismatch, match="0002_logged"):
        Migrator(database, steps.load()).status()
    assert traces_of(database) == before


def test_looking_where_nothing_is_makes_nothing(database: Path) -> None:
    status = Migrator(database).status()
    assert [step.name for step in status.pending] == NAMES
    assert not status.holds_anything
    assert list(database.parent.iterdir()) == []
