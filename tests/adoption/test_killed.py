"""An adoption or a migration that is killed at any point leaves the database as before or as after, and can go on."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import JobStore
from jobstore.migrate import Migrator, load_steps, recognise
from tests.processes.support import finish, spawn

from .comparing import assert_nothing_is_lost, rows_of, tables_of
from .old_system import newest

LONG = [pytest.mark.full, pytest.mark.timeout(3000)]
ROUNDS = [3, pytest.param(50, marks=LONG)]
ROUNDS_AND_JOBS = [(3, 300), pytest.param(50, 2_000, marks=LONG)]

PROGRAM = """
    import os, sys
    from pathlib import Path
    from jobstore.migrate import Migrator

    print("ready", flush=True)
    sys.stdin.readline()
    Migrator(Path(sys.argv[1])).run(
        lambda step: print(step.name, flush=True), lambda backup: print("backed up", flush=True))
    print("done", flush=True)
"""


def run_and_kill(path: Path, delay: float) -> None:
    """Start a migration, and kill it so long after it has begun, unless it has ended by then."""
    process = spawn(PROGRAM, path)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(delay)  # not for an event: it is when the process is killed that is up to chance
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def duration_of(path: Path) -> float:
    """Return how many seconds a migration takes that is left alone."""
    process = spawn(PROGRAM, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    code, _, errors = finish(process, "\n")
    assert code == 0, errors
    return time.monotonic() - started


def delays(longest: float, rounds: int) -> Iterator[float]:
    """Yield points in time: by chance, but all over the whole."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    for number in range(rounds):
        yield longest * (number + chance.random()) / rounds


def is_before(path: Path) -> bool:
    """Whether a database is still one of the old system. Opening it undoes what a killed process left halfway."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return recognise(connection) is not None


async def sweep(path: Path) -> int:
    async with JobStore(path) as store:
        return await store.sweep()


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize(("rounds", "jobs"), ROUNDS_AND_JOBS)
def test_an_adoption_that_is_killed_is_as_before_or_as_after_and_can_be_run_again(
    tmp_path: Path, rounds: int, jobs: int, journal: str
) -> None:
    original = tmp_path / "original.db"
    (tmp_path / "answers").mkdir()
    newest(jobs, tmp_path / "answers").write(original, f"journal_mode={journal}")
    before = {table: rows_of(original, table, old=True) for table in tables_of(original)}
    path = tmp_path / "old.db"
    shutil.copy(original, path)
    longest = duration_of(path)
    found = {"before": 0, "after": 0}
    for number, delay in enumerate(delays(longest, rounds)):
        path = tmp_path / f"round {number}.db"
        shutil.copy(original, path)
        run_and_kill(path, delay)
        Migrator(path).status()  # also beside what the killed process left
        if is_before(path):
            found["before"] += 1
            assert {table: rows_of(path, table, old=True) for table in tables_of(path)} == before
            assert Migrator(path).run().adoption is not None
        else:
            found["after"] += 1
            assert Migrator(path).run().applied == []
        assert_nothing_is_lost(original, path)
        assert_no_file_is_left_over(path)
        for file in tmp_path.glob(f"round {number}.db*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    print(found)


def assert_no_file_is_left_over(path: Path) -> None:
    """The second run wrote the same files anew: no other is there that no row names, but for halves."""
    jobs, attempts = rows_of(path, "background_jobs", old=False), rows_of(path, "job_attempts", old=False)
    named = {row["prompt_file_path"] for row in jobs} | {row["output_file_path"] for row in [*jobs, *attempts]}
    outputs = Path(f"{path}.outputs")
    there = {file.relative_to(outputs).as_posix() for file in outputs.rglob("*.txt")}
    assert there == named - {None}
    assert asyncio.run(sweep(path)) == 0


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_migration_that_is_killed_is_as_before_or_as_after_and_can_be_run_again(tmp_path: Path, rounds: int) -> None:
    """Of a database that holds a user's own tables, which is backed up first, as before or as after a step."""
    original = tmp_path / "original.db"
    with closing(sqlite3.connect(original)) as connection, connection:
        connection.execute("CREATE TABLE pets (name TEXT)")
        connection.executemany("INSERT INTO pets VALUES (?)", [(f"Rex {number}",) for number in range(2_000)])
    before = rows_of(original, "pets", old=True)
    steps = load_steps()
    after_steps = [{"pets"}]
    for count in range(1, len(steps) + 1):
        partly = shutil.copy(original, tmp_path / f"{count} steps.db")
        Migrator(partly, steps[:count]).run()
        after_steps.append(tables_of(partly))
    longest = duration_of(shutil.copy(original, tmp_path / "whole.db"))
    for number, delay in enumerate(delays(longest, rounds)):
        path = tmp_path / f"round {number}.db"
        shutil.copy(original, path)
        run_and_kill(path, delay)
        applied = len(Migrator(path).status().applied)
        assert tables_of(path) == after_steps[applied]
        assert rows_of(path, "pets", old=True) == before
        Migrator(path).run()
        assert tables_of(path) == after_steps[-1]
        assert rows_of(path, "pets", old=True) == before


def test_killed_before_the_commit_the_outputs_that_it_began_are_its_own_the_next_time(tmp_path: Path) -> None:
    """The outputs are marked with the id of a store that never came to be."""
    path = tmp_path / "old.db"
    (tmp_path / "answers").mkdir()
    newest(100, tmp_path / "answers").write(path)
    process = spawn(
        """
        import os, signal, sys
        from pathlib import Path
        from jobstore.migrate import Migrator, adoption

        convert = adoption.Conversion.convert
        def convert_and_die(self, texts):
            convert(self, texts)
            os.kill(os.getpid(), signal.SIGKILL)
        adoption.Conversion.convert = convert_and_die
        Migrator(Path(sys.argv[1])).run()
        """,
        path,
    )
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert Path(f"{path}.adopting").exists()
    marker = (Path(f"{path}.outputs") / "store_id").read_text(encoding="utf-8").strip()
    assert is_before(path)
    result = Migrator(path).run()
    assert result.backup is not None
    assert_nothing_is_lost(result.backup, path)
    assert rows_of(path, "store_identity", old=False)[0]["store_id"] == marker
    assert not Path(f"{path}.adopting").exists()
    assert_no_file_is_left_over(path)


def test_killed_right_after_the_commit_it_is_as_after_and_what_is_left_over_is_tidied(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    (tmp_path / "answers").mkdir()
    newest(100, tmp_path / "answers").write(path)
    process = spawn(
        """
        import os, signal, sys
        from pathlib import Path
        from jobstore.migrate import Migrator
        from jobstore.migrate.adoption import Intent

        Intent.forget = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        Migrator(Path(sys.argv[1])).run()
        """,
        path,
    )
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    [backup] = tmp_path.glob("*.backup-*")
    assert Path(f"{path}.adopting").exists()
    assert not is_before(path)
    assert Migrator(path).run().applied == []
    assert not Path(f"{path}.adopting").exists()
    assert_nothing_is_lost(backup, path)
    assert_no_file_is_left_over(path)


def test_of_several_migrators_at_once_one_adopts_and_the_others_find_it_done(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    (tmp_path / "answers").mkdir()
    newest(200, tmp_path / "answers").write(path)
    processes = [spawn(PROGRAM, path) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [finish(process) for process in processes]
    assert [code for code, _, _ in outcomes] == [0, 0, 0], outcomes
    assert sum("backed up" in output for _, output, _ in outcomes) == 1
    [backup] = tmp_path.glob("*.backup-*")
    assert_nothing_is_lost(backup, path)


def test_what_a_killed_program_has_left_halfway_is_undone_when_it_is_looked_at(tmp_path: Path) -> None:
    """Without a log, half a transaction lies in the file, and nobody can read it before it is rolled back."""
    path = tmp_path / "old.db"
    (tmp_path / "answers").mkdir()
    newest(10, tmp_path / "answers").write(path)
    before = rows_of(path, "background_jobs", old=True)
    process = spawn(
        """
        import os, signal, sqlite3, sys

        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("PRAGMA cache_size=2")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM background_jobs")
        for _ in range(100):
            connection.execute("INSERT INTO meta VALUES (hex(randomblob(9)), hex(randomblob(9000)))")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    process.communicate()
    assert Path(f"{path}-journal").stat().st_size > 0
    told = Migrator(path).rehearse()
    assert told is not None
    assert told.tables["background_jobs"].rows == 10
    assert rows_of(path, "background_jobs", old=True) == before
