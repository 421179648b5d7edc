"""The tests of this folder run on every engine: they take `store`, and never ask which one it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobstore import JobStore
from jobstore.testing import FakeClock
from tests import postgres


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Return a database without any table, as it is named to a store."""
    if request.param == "sqlite":
        return tmp_path / "jobs.db"
    url: str = request.getfixturevalue("postgres_database")
    postgres.empty(url)
    return url


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db.outputs"


@pytest.fixture
async def store(database: Path | str, outputs: Path, clock: FakeClock) -> AsyncIterator[JobStore]:
    """Yield a migrated, open store whose time stands still until `clock.advance`."""
    async with JobStore(database, migrate=True, outputs=outputs, clock=clock) as store:
        yield store
