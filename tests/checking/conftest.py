"""A store of 5,000 jobs, made once and copied for each test that damages it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from jobstore import JobStore, NewJob, Usage

JOBS = 5_000
CLAIMED, COMPLETED, SPILLED = 1_500, 1_400, 20
LEASE = 24 * 3600.0
FILES = ("", "-wal", "-shm")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all kinds of rows, which nobody changes."""
    path = tmp_path_factory.mktemp("original") / "jobs.db"
    asyncio.run(_fill(path))
    return path


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    """A copy of that store with its texts."""
    return copy_store(original, tmp_path / "jobs.db")


def copy_store(source: Path, target: Path) -> Path:
    for end in FILES:
        if Path(f"{source}{end}").exists():
            shutil.copy(f"{source}{end}", f"{target}{end}")
    shutil.copytree(f"{source}.outputs", f"{target}.outputs")
    return target


async def _fill(path: Path) -> None:
    async with JobStore(path, migrate=True) as store:
        session = await store.sessions.create(name="demo", project_directory="/src/app")
        await store.files.set_included(session.id, [f"src/{n}.py" for n in range(50)])
        for n in range(200):
            await store.kv.set(f"key-{n}", {"n": n, "text": "é\0" * n})
            await store.cached_state.set("/src/app", f"state-{n}", [n] * 10)
        new = [
            NewJob(
                prompt=f"prompt {n}: " + "é" * (n % 700),
                task_type=f"task-{n % 7}",
                api_type="claude",
                session_id=session.id if n % 3 else None,
                idempotency_key=f"job-{n}",
                metadata={"n": n},
                priority=-n,
            )
            for n in range(JOBS)
        ]
        await store.jobs.enqueue_many(new)
        claims = await store.jobs.claim("worker", limit=CLAIMED, lease=LEASE)
        for n, claim in enumerate(claims[:COMPLETED]):
            answer = f"answer {n} " * (20_000 if n < SPILLED else 1 + n % 100)
            await store.jobs.complete(claim, answer, usage=Usage(input_tokens=n, output_tokens=2 * n))
