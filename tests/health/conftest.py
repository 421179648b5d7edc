"""Stores to be copied, put back and emptied."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jobstore import JobStore
from jobstore.migrate import Migrator

LANE: dict[str, Any] = {"task_type": "task", "api_type": "api"}
LARGE = "large text " * 10_000


@pytest.fixture
def migrated(database: Path) -> Path:
    Migrator(database).run()
    return database


@pytest.fixture
def filled(migrated: Path) -> Path:
    """A store with a large prompt, a large answer, and one that was being written when its program ended."""
    asyncio.run(_fill(migrated))
    return migrated


async def _fill(path: Path) -> None:
    async with JobStore(path) as store:
        for prompt in ("first", "second", LARGE):
            await store.jobs.enqueue(prompt, **LANE)
        first, second = await store.jobs.claim("worker", limit=2)
        await store.jobs.complete(first, f"answer {LARGE}")
        async with store.jobs.output(second) as output:
            await output.write("half an ans")


async def contents(path: Path, outputs: str | Path | None = None) -> list[tuple[str, str, str | None]]:
    """Return what a store holds: of each job its status, its prompt and its answer, by age."""
    async with JobStore(path, outputs=outputs) as store:
        jobs = sorted((await store.jobs.list()).items, key=lambda job: job.id)
        return [
            (str(job.status), await store.jobs.read_prompt(job.id), await store.jobs.read_response(job.id))
            for job in jobs
        ]


FILLED = [
    ("completed", "first", f"answer {LARGE}"),
    ("running", "second", "half an ans"),
    ("idle", LARGE, None),
]
