"""Fixtures that all tests share: stores, a server, a clock to turn by hand, and a guard of the event loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from jobstore import JobStore
from jobstore.testing import FakeClock
from tests import postgres

# The same examples in every run, so that a run tells of its change. `--hypothesis-profile=searching` looks for others.
# Neither has limits of time, which a busy machine would exceed.
settings.register_profile("searching", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("searching"), derandomize=True)
settings.load_profile("steady")

# A shell lets its background jobs ignore it, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # and `nohup` this one
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


NOBODY = 65534

_AS_NOBODY = f"""
import os, sys
import jobstore.health, jobstore.store
from jobstore.migrate import load_steps
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
try:
    load_steps()
except PermissionError:
    sys.exit(77)
"""


@pytest.fixture(autouse=True)
def _no_blocking_of_the_event_loop() -> Iterator[BlockBuster]:
    """Fail a test in which the package makes a blocking call on the event loop."""
    with blockbuster_ctx("jobstore") as guard:
        # Where coverage is measured: a task that goes on in another thread's tracer waits for its lock.
        guard.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        yield guard


@pytest.fixture(autouse=True)
def _workers_wait_for_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers that stop wait for their database for as long as tests wait for anything."""
    monkeypatch.setattr("jobstore.workers.worker.STOP_SECONDS", 60.0)
    monkeypatch.setattr("jobstore.repositories.workers.PATIENCE", 60.0)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Return the URL of a PostgreSQL server, which all tests share."""
    with postgres.running_server() as url:
        yield url


@pytest.fixture(scope="module")
def postgres_database(postgres_server: str) -> Iterator[str]:
    """Return the URL of a PostgreSQL database that the tests of a module share."""
    with postgres.new_database(postgres_server) as url:
        yield url


@pytest.fixture
def fresh_database(postgres_server: str) -> Iterator[str]:
    """Return the URL of a PostgreSQL database of the test's own, without any table."""
    with postgres.new_database(postgres_server) as url:
        yield url


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="jobstore-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.fixture
def run_as_nobody() -> Callable[[str, Path], str]:
    """Run Python code as a user who may do nothing, `path` being its variable; return what it prints."""

    def run(code: str, path: Path) -> str:
        if os.name == "nt":
            pytest.skip("Windows has no users to change to")
        script = f"{_AS_NOBODY}\nfrom pathlib import Path\npath = Path({str(path)!r})\n{code}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 77:
            pytest.skip("the package lies in a folder that other users cannot read")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
async def store(database: Path, clock: FakeClock) -> AsyncIterator[JobStore]:
    """A migrated, open store whose time stands still until `clock.advance`."""
    async with JobStore(database, migrate=True, clock=clock) as store:
        yield store
