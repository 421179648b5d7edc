"""Fixtures that all tests share: stores, a server, a clock to turn by hand, and a guard of the event loop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from jobstore import JobStore
from jobstore.testing import FakeClock
from tests import postgres

# A shell lets its background jobs ignore it, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # and `nohup` this one
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_blocking_of_the_event_loop() -> Iterator[BlockBuster]:
    """Fail a test in which the package makes a blocking call on the event loop."""
    with blockbuster_ctx("jobstore") as guard:
        # Where coverage is measured: a task that goes on in another thread's tracer waits for its lock.
        guard.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        yield guard


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
async def store(database: Path, clock: FakeClock) -> AsyncIterator[JobStore]:
    """A migrated, open store whose time stands still until `clock.advance`."""
    async with JobStore(database, migrate=True, clock=clock) as store:
        yield store
