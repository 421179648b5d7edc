"""Who has a database's file: open stores share it, or one program has it to itself, whatever becomes of either."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobstore import DatabaseCorrupt, DatabaseInUse, DatabaseNotFound, DiskFailed, JobStore, ownership
from jobstore.aio import in_thread
from jobstore.migrate import Migrator
from jobstore.ownership import exclusive, shared
from tests.processes.support import finish, run, spawn

HOLD = """
    import contextlib, sys
    from pathlib import Path
    from jobstore.ownership import exclusive

    with exclusive(Path(sys.argv[1]), "restore"):
        print("held", flush=True)
        sys.stdin.readline()
"""
OPEN = """
    import asyncio, sys
    from jobstore import JobStore

    async def main():
        async with JobStore(sys.argv[1]) as store:
            print("open", flush=True)
            await asyncio.to_thread(sys.stdin.readline)

    asyncio.run(main())
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.0)


def started(code: str, database: Path, says: str) -> subprocess.Popen[str]:
    process = spawn(code, database)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == says
    return process


def test_nobody_can_have_alone_what_another_process_has_open(migrated: Path) -> None:
    process = started(OPEN, migrated, "open")
    with pytest.raises(DatabaseInUse, match="is open in") as caught, exclusive(migrated, "restore"):
        pass
    assert caught.value.operation is None
    if Path("/proc/locks").exists():
        assert caught.value.processes == (process.pid,)
    finish(process, "\n")
    with exclusive(migrated, "restore"):
        pass


async def test_a_store_of_the_same_process_counts_too_and_each_for_itself(migrated: Path) -> None:
    async with JobStore(migrated):
        async with JobStore(migrated):
            pass
        with pytest.raises(DatabaseInUse):
            await in_thread(_hold_for_a_moment, migrated)
    await in_thread(_hold_for_a_moment, migrated)


def _hold_for_a_moment(path: Path) -> None:
    with exclusive(path, "restore"):
        pass


@pytest.mark.usefixtures("impatient")
async def test_opening_is_refused_and_told_why_while_somebody_has_it_alone(migrated: Path) -> None:
    process = await in_thread(started, HOLD, migrated, "held")
    with pytest.raises(DatabaseInUse, match=f"worked on \\(restore, process {process.pid}\\)") as caught:
        await JobStore(migrated).open()
    assert caught.value.operation == f"restore, process {process.pid}"
    with pytest.raises(DatabaseInUse, match="restore"):
        await in_thread(_hold_for_a_moment, migrated)
    await in_thread(finish, process, "\n")
    async with JobStore(migrated):
        pass


async def test_opening_waits_until_it_may(migrated: Path) -> None:
    process = await in_thread(started, HOLD, migrated, "held")
    opening = asyncio.create_task(JobStore(migrated).open())
    assert not (await asyncio.wait([opening], timeout=0.2))[0]
    await in_thread(finish, process, "\n")
    await (await opening).close()


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(migrated: Path) -> None:
    process = await in_thread(started, HOLD, migrated, "held")
    opening = asyncio.create_task(JobStore(migrated).open())
    await asyncio.wait([opening], timeout=0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await in_thread(finish, process, "\n")
    await in_thread(_hold_for_a_moment, migrated)


@pytest.mark.usefixtures("impatient")
def test_no_migration_beside_who_has_it_alone_but_beside_open_stores(database: Path) -> None:
    process = started(HOLD, database, "held")  # which does not exist yet
    with pytest.raises(DatabaseInUse):
        Migrator(database).run()
    assert not database.exists()
    finish(process, "\n")
    with shared(database):
        assert Migrator(database).run().applied


@pytest.mark.parametrize("code", [HOLD, OPEN])
def test_it_ends_with_its_process_however_that_ends(migrated: Path, code: str) -> None:
    process = started(code, migrated, "held" if code is HOLD else "open")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with exclusive(migrated, "restore"):
        pass


async def test_an_opening_that_is_cancelled_at_any_moment_holds_nothing(migrated: Path) -> None:
    for turns in range(12):
        opening = asyncio.create_task(JobStore(migrated).open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        [opened] = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(opened, JobStore):  # it was faster
            await opened.close()
        await in_thread(_hold_for_a_moment, migrated)


async def test_a_store_that_could_not_be_opened_holds_nothing(database: Path) -> None:
    database.write_bytes(b"no database at all, " * 100)
    with pytest.raises(Exception, match="not an SQLite database"):
        await JobStore(database).open()
    await in_thread(_hold_for_a_moment, database)


def test_a_forked_child_holds_nothing_of_its_parents_and_may_hold_its_own(migrated: Path) -> None:
    code, output, errors = run(
        """
        import os, sys
        from pathlib import Path
        from jobstore import DatabaseInUse
        from jobstore.ownership import Share, exclusive

        path = Path(sys.argv[1])
        share = Share(path)
        assert share.take()
        go_read, go_write = os.pipe()
        done_read, done_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(go_read, 1)  # by now the parent holds nothing
            with exclusive(path, "child"):
                pass
            own = Share(path)
            assert own.take()
            share.release()  # the parent's: it must not take its own away
            os.write(done_write, b".")
            os.read(go_read, 1)
            os._exit(0)
        share.release()
        os.write(go_write, b".")
        assert os.read(done_read, 1)
        try:
            with exclusive(path, "parent"):
                print("wrong")
        except DatabaseInUse as error:
            print("refused", error.processes == (pid,) or not error.processes)
        os.write(go_write, b".")
        os.waitpid(pid, 0)
        with exclusive(path, "parent"):
            print("had")
        """,
        migrated,
    )
    assert (code, output) == (0, "refused True\nhad\n"), errors


async def test_whoever_opens_it_over_a_link_shares_it_with_the_others(migrated: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(migrated)
    async with JobStore(link):
        with pytest.raises(DatabaseInUse):
            await in_thread(_hold_for_a_moment, migrated)


def test_a_lock_file_that_somebody_removed_is_made_again(migrated: Path) -> None:
    lock = Path(f"{migrated}.owner")
    with shared(migrated):
        lock.unlink()
        with shared(migrated) as share:
            share.keep()
            with pytest.raises(DatabaseInUse), exclusive(migrated, "restore"):
                pass
    assert lock.stat().st_mode & 0o777 == 0o600


def test_what_was_swapped_before_its_lock_was_made_is_not_used(migrated: Path, tmp_path: Path) -> None:
    Path(f"{migrated}.owner").unlink()
    new = tmp_path / "new"
    new.touch()
    with shared(migrated) as share:
        with exclusive(migrated, "restore") as owner:
            with pytest.raises(DatabaseInUse, match="restore"):
                share.keep()
            owner.swap([*owner.aside(tmp_path / "kept"), (new, owner.path)])
        with pytest.raises(DatabaseInUse, match="replaced just now"):
            share.keep()


def test_without_a_folder_nobody_can_have_it(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFound, match="does not exist"), exclusive(tmp_path / "no" / "jobs.db", "restore"):
        pass


@pytest.mark.parametrize("lock_exists", [False, True])
def test_in_a_folder_that_cannot_be_written_there_are_shares_only(
    public_folder: Path, run_as_nobody: Callable[[str, Path], str], *, lock_exists: bool
) -> None:
    path = public_folder / "jobs.db"
    Migrator(path).run()
    if not lock_exists:
        Path(f"{path}.owner").unlink()
    for file in public_folder.iterdir():
        file.chmod(0o444)
    public_folder.chmod(0o555)
    output = run_as_nobody(
        """
from jobstore import ReadOnlyDatabase
from jobstore.ownership import exclusive, shared

with shared(path) as share:
    share.keep()
    print("shared")
try:
    with exclusive(path, "restore"):
        print("exclusive")
except ReadOnlyDatabase as error:
    print(str(path) in str(error))
""",
        path,
    )
    assert output.split() == ["shared", "True"]


def test_a_swap_moves_all_and_keeps_what_was_there(tmp_path: Path) -> None:
    old, new, kept = tmp_path / "jobs.db", tmp_path / "new", tmp_path / "kept"
    old.write_text("old")
    Path(f"{old}-wal").write_text("old log")
    new.write_text("new")
    with exclusive(old, "restore") as owner:
        owner.swap([*owner.aside(kept), (new, owner.path)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.stat().st_size} == {
        "jobs.db": "new",
        "kept": "old",
        "kept-wal": "old log",
    }


def test_a_swap_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    old, new, kept, other = (tmp_path / name for name in ("jobs.db", "new", "kept", "other"))
    for path in (old, new, other):
        path.write_text(path.name)
    with exclusive(old, "restore") as owner:
        with pytest.raises(DiskFailed, match="other is in the way"):
            owner.swap([*owner.aside(kept), (new, other)])
        with pytest.raises(DiskFailed, match="No such file"):
            owner.swap([*owner.aside(kept), (tmp_path / "missing", owner.path)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.stat().st_size} == {
        path.name: path.name for path in (old, new, other)
    }


def test_a_swap_that_was_killed_at_any_point_is_finished_by_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One round for each system call that changes a name: the process is killed before the n-th of them."""
    for calls in range(12):
        folder = tmp_path / str(calls)
        folder.mkdir()
        killed = _swap_killed_before(calls, folder)
        with caplog.at_level(logging.WARNING), shared(folder / "jobs.db"):
            pass
        contents = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".owner"}
        before = {"jobs.db": "old", "jobs.db-wal": "log", "new": "new"}
        after = {"jobs.db": "new", "kept": "old", "kept-wal": "log"}
        stray = {"jobs.db.swap.part"}  # a plan that was never one, and that the next replaces
        assert {name: text for name, text in contents.items() if name not in stray} in (before, after)
        if not killed:
            break
    else:
        raise AssertionError("the swap makes more calls than this test thought")
    assert "finished the restore of" in caplog.text


@pytest.mark.parametrize("text", ["", "\xff", "[]", '{"operation": ""}', '{"operation": "", "moves": [1]}'])
def test_a_file_that_is_no_plan_of_a_swap_is_named(migrated: Path, text: str) -> None:
    plan = Path(f"{migrated}.swap")
    plan.write_text(text, encoding="latin-1")
    with pytest.raises(DatabaseCorrupt, match=re.escape(f"{plan} is no plan")), shared(migrated):
        pass
    plan.unlink()
    with shared(migrated):
        pass


def _swap_killed_before(calls: int, folder: Path) -> bool:
    for name, text in {"jobs.db": "old", "jobs.db-wal": "log", "new": "new"}.items():
        (folder / name).write_text(text)
    code, _, errors = run(
        """
        import os, signal, sys
        from pathlib import Path
        from jobstore.ownership import exclusive

        folder, left = Path(sys.argv[1]), int(sys.argv[2])
        def watch(event, arguments):
            global left
            if event in ("os.rename", "os.remove"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        with exclusive(folder / "jobs.db", "restore") as owner:
            sys.addaudithook(watch)
            owner.swap([*owner.aside(folder / "kept"), (folder / "new", owner.path)])
        """,
        folder,
        calls,
    )
    assert code in {0, -signal.SIGKILL}, errors
    return code != 0
