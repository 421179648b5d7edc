"""What the tests of the contract share: making jobs, looking at everything that is stored, waiting for conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jobstore import Claim, Job, JobStore

SPILLED = "Ein langer Text, größer als die Zeile. " * 2000
"""Above the inline limit of 64 KiB: it goes to a file."""

TABLES = (
    "sessions", "included_files", "excluded_files", "background_jobs", "job_attempts", "lanes", "cached_state",
    "key_value_store",
)  # fmt: skip


async def enqueue(store: JobStore, prompt: str = "Say hello", **fields: Any) -> Job:  # noqa: ANN401 - what enqueue takes
    """Enqueue a job of which only what matters to the test is named."""
    return await store.jobs.enqueue(prompt, **{"task_type": "greeting", "api_type": "claude", **fields})


async def start(store: JobStore, prompt: str = "Say hello", *, lease: float = 30.0, **fields: Any) -> Claim:  # noqa: ANN401
    """Enqueue a job and claim it."""
    job = await enqueue(store, prompt, **fields)
    return await claim(store, job, lease=lease)


async def claim(store: JobStore, job: Job, *, lease: float = 30.0) -> Claim:
    """Claim the one job that there is to claim."""
    [claimed] = await store.jobs.claim("worker-1", lease=lease, limit=10)
    assert claimed.job_id == job.id
    return claimed


async def streamed(store: JobStore, claimed: Claim, *pieces: str) -> None:
    """Stream pieces of a response and leave the output."""
    async with store.jobs.output(claimed) as output:
        for piece in pieces:
            await output.write(piece)


async def everything(store: JobStore) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of all tables: what must be the same before and after a refusal."""
    return {table: sorted(map(dict, await store.execute(f"SELECT * FROM {table}")), key=repr) for table in TABLES}


def outputs_folder(store: JobStore) -> Path:
    """Return the folder of the store's large texts."""
    return store.jobs._backend.outputs.folder


def files(store: JobStore) -> set[str]:
    """Return the relative paths of the files that lie in the outputs folder, but for its marker."""
    folder = outputs_folder(store)
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if path != "store_id"}


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 60.0) -> None:
    """Return as soon as a condition holds; fail if it never does."""
    async with asyncio.timeout(within):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.002)


def facts(job: Job) -> dict[str, Any]:
    """Return a job without its texts, which not every answer loads."""
    return job.model_dump(exclude={"prompt", "response"})
