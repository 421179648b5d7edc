"""Ways into the engine of an open store, for tests of what no public method shows."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable

import pytest

from jobstore import JobStore
from jobstore.engines.sqlite import SQLiteEngine

pytest.register_assert_rewrite("tests.engines.postgres_support")  # so that its assertions tell what they saw

OnWriter = Callable[[Callable[[sqlite3.Connection], object]], Awaitable[object]]


@pytest.fixture
def engine(store: JobStore) -> SQLiteEngine:
    opened = store._open
    assert opened is not None
    engine = opened.backend.engine
    assert isinstance(engine, SQLiteEngine)
    return engine


@pytest.fixture
def on_writer(engine: SQLiteEngine) -> OnWriter:
    """Run a function with the writing connection, between two batches."""

    async def run(function: Callable[[sqlite3.Connection], object]) -> object:
        return await engine._writer.submit(function)

    return run
