"""Restoring and resetting, killed at any point: what a store holds is as before or as after, with all its texts."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from pathlib import Path

import pytest

from jobstore.health import backup
from tests.processes.support import finish, spawn

from .conftest import FILLED, contents
from .test_restoring import enqueue

PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    from jobstore.health import reset, restore

    work, path, source, left = sys.argv[1], *map(Path, sys.argv[2:4]), int(sys.argv[4])
    done = 0

    def watch(event, arguments):
        global done
        if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "open", "sqlite3.connect"}:
            done += 1
            if done == left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    reset(path) if work == "reset" else restore(source, path)
    print(done)
"""
"""Kills itself at one of the calls by which it changes files."""

LATER = [*FILLED, ("idle", "later", None)]
OUTCOMES = {"restore": (LATER, FILLED), "reset": (LATER, [])}


def run_to(work: str, path: Path, source: Path, call: int) -> int:
    """Run it, to be killed at one of its calls; return how many it made, or 0 if it was killed."""
    code, output, errors = finish(spawn(PROGRAM, work, path, source, call))
    assert code in {0, -signal.SIGKILL}, errors
    return int(output) if code == 0 else 0


@pytest.mark.parametrize("work", ["restore", "reset"])
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(1200)])])
def test_killed_at_any_point_it_is_as_before_or_as_after(filled: Path, tmp_path: Path, work: str, rounds: int) -> None:
    source = backup(filled, tmp_path / "copies").path
    asyncio.run(enqueue(filled, "later"))
    shutil.rmtree(f"{filled}.wake", ignore_errors=True)
    calls = run_to(work, _copy(filled, tmp_path / "whole"), source, -1)
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}, {calls} calls")
    before, after = OUTCOMES[work]
    for number, call in enumerate(random.Random(seed).sample(range(1, calls + 1), rounds)):  # noqa: S311
        path = _copy(filled, tmp_path / str(number))
        assert run_to(work, path, source, call) == 0
        found = asyncio.run(contents(path))
        assert found in (before, after), f"killed at call {call}"
        assert run_to(work, path, source, -1)  # again, to its end
        assert asyncio.run(contents(path)) == after
        assert not [found for found in path.parent.iterdir() if found.suffix in {".resetting", ".restoring", ".old"}]


def _copy(filled: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(filled, folder)
    shutil.copytree(f"{filled}.outputs", folder / f"{filled.name}.outputs")
    return folder / filled.name
