"""What the tests of the contract share: making jobs, looking at everything that is stored, waiting for conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobstore import Claim, Job, JobStore
from jobstore.outputs import Outputs
from jobstore.outputs.folder import FolderOutputs

SPILLED = "Ein langer Text, größer als die Zeile. " * 2000
"""Above the inline limit of 64 KiB: it goes to a file."""

TABLES = (
    "sessions", "included_files", "excluded_files", "background_jobs", "job_attempts", "api_calls", "lanes",
    "cached_state", "key_value_store",
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
    outputs = store.jobs._backend.outputs
    assert isinstance(outputs, FolderOutputs)
    return outputs.folder


def outputs_place(store: JobStore) -> str:
    """Return what another store has to be given to read the same large texts."""
    outputs = store.jobs._backend.outputs
    return str(outputs.folder) if isinstance(outputs, FolderOutputs) else outputs.url


def files(store: JobStore) -> set[str]:
    """Return the relative paths of the files, or objects, that lie in the outputs, but for their marker."""
    outputs = store.jobs._backend.outputs
    if not isinstance(outputs, FolderOutputs):
        return {found["path"] for page in outputs._store.list() for found in page} - {"store_id"}
    paths = (path.relative_to(outputs.folder).as_posix() for path in outputs.folder.rglob("*") if path.is_file())
    return set(paths) - {"store_id"}


def stored(store: JobStore, path: str) -> bytes | None:
    """Return what lies in a file, or an object, of the outputs; None if it is not there."""
    return stored_in(store.jobs._backend.outputs, path)


def stored_in(outputs: Outputs, path: str) -> bytes | None:
    """Return what `stored` returns, also when the store is closed by now."""
    try:
        if isinstance(outputs, FolderOutputs):
            return (outputs.folder / path).read_bytes()
        return bytes(outputs._store.get(path).bytes())
    except FileNotFoundError:
        return None


def damage_stored(store: JobStore, path: str, damage: Callable[[Path], object]) -> None:
    """Damage a file of the outputs; or an object, by damaging a file of the same bytes and putting what is left."""
    outputs = store.jobs._backend.outputs
    if isinstance(outputs, FolderOutputs):
        damage(outputs.folder / path)
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "object")
        file.write_bytes(stored(store, path) or b"")
        damage(file)
        if file.is_file():
            outputs._store.put(path, file.read_bytes())
        else:
            outputs._store.delete(path)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 120.0) -> None:
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
