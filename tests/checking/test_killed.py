"""A repair that is killed at any point leaves the store as it was, or mended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobstore.health import check, repair
from tests.checking.conftest import FILES, copy_store
from tests.checking.support import execute, pages_of, rows_of, zero
from tests.processes.support import finish, spawn

PROGRAM = """
    import sys
    from jobstore.health import repair
    print("begun", flush=True)
    print(repair(sys.argv[1]).report.ok)
"""


def damage(path: Path) -> None:
    zero(path, [1, *pages_of(path, "background_jobs", "internal")])


def break_rules(path: Path) -> None:
    execute(
        path,
        "DROP TABLE key_value_store; DROP INDEX background_jobs_claim; ALTER TABLE sessions DROP COLUMN updated_at;"
        "UPDATE background_jobs SET finished_at = NULL WHERE status = 'completed'",
    )


def content_of(path: Path) -> dict[str, bytes]:
    return {end: Path(f"{path}{end}").read_bytes() for end in FILES[:2] if Path(f"{path}{end}").exists()}


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.parametrize("harm", [damage, break_rules])
def test_killed_at_any_point_it_is_as_before_or_as_after(
    original: Path, tmp_path: Path, harm: Callable[[Path], None], rounds: int
) -> None:
    chance = random.Random(rounds)  # noqa: S311 - it is to repeat itself
    harmed = copy_store(original, tmp_path / "harmed.db")
    harm(harmed)
    wrong = {finding.name for finding in check(harmed).failed}
    duration = _time_of_repair(harmed, tmp_path / "timed.db")
    ends = []
    for number in range(rounds):
        path = copy_store(harmed, tmp_path / f"{number}.db")
        before = content_of(path)
        _kill_repair(path, 1.1 * duration * (number + chance.random()) / rounds)
        left = check(path)  # which finishes a swap that was interrupted
        ends.append(left.ok)
        if not left.ok:
            assert {finding.name for finding in left.failed} == wrong
            assert harm is not damage or content_of(path) == before
        assert repair(path).report.ok
        assert rows_of(path, "SELECT count(*) FROM background_jobs") == [(5000,)]
        assert not list(tmp_path.glob(f"{number}.db.repairing*"))
        _forget(path)
    print(f"{harm.__name__}: {ends.count(False)} as before, {ends.count(True)} as after")


def _time_of_repair(harmed: Path, path: Path) -> float:
    copy_store(harmed, path)
    process = spawn(PROGRAM, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    started = time.monotonic()
    assert finish(process)[:2] == (0, "True\n")
    return time.monotonic() - started


def _kill_repair(path: Path, after: float) -> None:
    process = spawn(PROGRAM, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def _forget(path: Path) -> None:
    shutil.rmtree(f"{path}.outputs")
    for file in path.parent.glob(f"{path.name}*"):
        if file.is_file():
            file.unlink()
