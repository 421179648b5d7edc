"""Whatever the rows of an old database hold: adopting it never fails, and never loses anything."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobstore import JobStore
from jobstore.migrate import Migrator

from .comparing import OldText, assert_nothing_is_lost
from .old_system import BEGIN, CACHED_STATE, FILES, JOBS, KEY_VALUE_STORE, SESSIONS, names_of

ANYTHING = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=12),
    st.binary(max_size=12).map(OldText),
)
TIME = st.sampled_from(
    [BEGIN, BEGIN * 1000, str(BEGIN), BEGIN + 0.25, BEGIN + 1 / 3, 0, -5, 1e300, "2024-02-30", "2024-02-28 10:00"]
)
NAME = st.sampled_from(["a", "b", "", "1", 1, 1.0, "a\0", "/tmp", "/src/app", "/src/app/"])  # noqa: S108 - a folder
STATUS = st.sampled_from(["queued", "running", "completed", "canceled", "failed", "RUNNING ", "odd"])
JSON = st.sampled_from(
    ["{}", " {} ", '{"a": 1.50 }', '{"a": 1, "a": 2}', '{"adopted": {}}', "[1]", "null", '"x"', "{", '{"a": NaN}',
     '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": "\\u0000"}', "[" * 3000, '{"priority": "9"}', "1" * 5000, "\x1c"]
)  # fmt: skip
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("id", "session_id", "path", "file_path", "key", "project_hash", "project_directory"), NAME),
    **dict.fromkeys(("created_at", "updated_at", "start_time", "end_time", "last_update"), TIME),
    **dict.fromkeys(("metadata", "value"), JSON),
    "status": STATUS,
}


def rows(columns: Sequence[str], *more: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows of values that are likely where they are, or anything at all."""
    row = {name: LIKELY.get(name, st.nothing()) | ANYTHING for name in (*names_of(columns), *more)}
    return st.lists(st.fixed_dictionaries(row), max_size=6)


SYSTEM = st.fixed_dictionaries(
    {
        "sessions": rows(SESSIONS, "colour"),
        "included_files": rows(FILES, "file_path"),
        "excluded_files": rows(FILES),
        "cached_state": rows(CACHED_STATE, "colour"),
        "key_value_store": rows(KEY_VALUE_STORE),
        "background_jobs": rows(JOBS, "xml_path", "favourite"),
        "gemini_requests": rows(JOBS),
    }
)


def write(path: Path, system: dict[str, list[dict[str, Any]]]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE background_jobs (id, prompt, status)")
        for table, found in system.items():
            names = list(found[0]) if found else ["id", "prompt", "status"]
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"CREATE TABLE {table} ({', '.join(names)})")
            for row in found:
                values = ", ".join("CAST(? AS TEXT)" if isinstance(row[name], OldText) else "?" for name in names)
                connection.execute(f"INSERT INTO {table} VALUES ({values})", [row[name] for name in names])


def adopt_and_compare(system: dict[str, list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old.db"
        write(path, system)
        result = Migrator(path).run()
        assert result.backup is not None
        assert_nothing_is_lost(result.backup, path)
        asyncio.run(use(path))


async def use(path: Path) -> None:
    """Read every job and every session by the API, and let what runs be rescued and what waits be claimed."""
    async with JobStore(path) as store:
        for job in (await store.jobs.list(limit=1000)).items:
            await store.jobs.read_prompt(job.id)
            await store.jobs.read_response(job.id)
            await store.jobs.attempts(job.id)
            await store.jobs.explain(job.id)
        for session in await store.sessions.list():
            await store.files.included(session.id)
            await store.cached_state.all(session.project_directory)
        await store.kv.items()
        claims = await store.jobs.claim("worker", limit=100)
        assert await store.jobs.count(status="running") == len(claims)
        for claim in claims:
            await store.jobs.complete(claim, "done", metadata={"more": 1})


OPTIONS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@settings(max_examples=40, **OPTIONS)
@given(SYSTEM)
def test_rows_of_any_kind_are_adopted_and_none_is_lost(system: dict[str, list[dict[str, Any]]]) -> None:
    adopt_and_compare(system)


@pytest.mark.full
@pytest.mark.timeout(3000)
@settings(max_examples=3000, **OPTIONS)
@given(SYSTEM)
def test_rows_of_any_kind_are_adopted_and_none_is_lost_for_long(system: dict[str, list[dict[str, Any]]]) -> None:
    adopt_and_compare(system)
