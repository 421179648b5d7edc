"""Large answers in object storage: constant memory on both sides, followed elsewhere, and a writer that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from jobstore import JobStore
from tests.outputs.conftest import ObjectStorage, s3, storage

from .support import finish, spawn
from .test_streaming import LIMIT, PIECE, READER, WRITER, expected_hash, line, tell

__all__ = ["s3", "storage"]  # fixtures


def on(storage: ObjectStorage, program: str) -> str:
    """Return a program whose store has its large texts in object storage."""
    return program.replace("JobStore(path", f'JobStore(path, outputs="{storage.url}"')


@pytest.mark.parametrize(
    "megabytes", [pytest.param(64, id="64 MB"), pytest.param(1024, id="1 GB", marks=pytest.mark.full)]
)
def test_a_huge_answer_is_put_and_followed_with_constant_memory(
    database: Path, storage: ObjectStorage, megabytes: int
) -> None:
    pieces = megabytes * 2**20 // PIECE
    writer = spawn(on(storage, WRITER), database, pieces)
    job_id = line(writer)
    reader = spawn(on(storage, READER), database, job_id)
    assert line(reader) == "following"
    tell(writer)
    code, written, errors = finish(writer, within=280)
    assert code == 0, errors
    code, read, errors = finish(reader, within=280)
    assert code == 0, errors
    writers_growth, writers_hash = written.split()
    readers_growth, readers_hash = read.split()
    print(
        f"{megabytes} MB: the writer grew by {int(writers_growth) / 2**20:.1f} MB, "
        f"the reader by {int(readers_growth) / 2**20:.1f} MB"
    )
    assert writers_hash == readers_hash == expected_hash(pieces)
    assert int(writers_growth) < LIMIT
    assert int(readers_growth) < LIMIT


def test_what_a_killed_writer_had_put_is_readable(database: Path, storage: ObjectStorage) -> None:
    writer = spawn(
        on(
            storage,
            """
            import asyncio, sys
            from jobstore import JobStore

            async def main(path):
                async with JobStore(path, migrate=True) as store:
                    job = await store.jobs.enqueue("p", task_type="task", api_type="api")
                    [claim] = await store.jobs.claim("worker", lease=1)
                    async with store.jobs.output(claim) as output:
                        await output.write("x" * 3_000_000)
                        await output.write("the last words")
                        while output.size < 3_000_014:
                            await asyncio.sleep(0.01)
                        print(job.id, flush=True)
                        await asyncio.Event().wait()

            asyncio.run(main(sys.argv[1]))
            """,
        ),
        database,
    )
    job_id = line(writer)
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()

    async def look() -> None:
        async with JobStore(database, outputs=storage.url) as store:
            partial = "x" * 3_000_000 + "the last words"
            assert await store.jobs.read_response(job_id) == partial
            assert "".join([text async for text in store.jobs.tail(job_id)]) == partial  # until its lease ends
            [claim] = await store.jobs.claim("next")
            await store.jobs.complete(claim, "whole")
            assert await store.jobs.read_response(job_id) == "whole"

    asyncio.run(look())
