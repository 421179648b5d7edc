"""Two stores of different engines: one filled, one empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobstore import JobStore

from .support import fill, migrate


@pytest.fixture
async def source(tmp_path: Path) -> Path:
    """A file with something of everything in it."""
    path = tmp_path / "source.db"
    async with JobStore(path, migrate=True) as store:
        await fill(store)
    return path


@pytest.fixture
def target(fresh_database: str) -> str:
    """An empty store on PostgreSQL."""
    migrate(fresh_database)
    return fresh_database


@pytest.fixture
def target_outputs(tmp_path: Path) -> Path:
    """Where its large texts are to lie."""
    return tmp_path / "texts"


@pytest.fixture
def back(tmp_path: Path) -> Path:
    """An empty store in another file."""
    path = tmp_path / "back.db"
    migrate(path)
    return path
