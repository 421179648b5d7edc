"""Large answers stream with constant memory, are followed from other processes, and survive their writer's death."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from jobstore import JobStatus, JobStore

from .support import finish, spawn

PIECE = 64 * 1024
LIMIT = 32 * 2**20

WRITER = """
    import asyncio, sys
    import psutil
    from jobstore import JobStore

    async def main(path, pieces):
        process = psutil.Process()
        async with JobStore(path, migrate=True) as store:
            job = await store.jobs.enqueue("p", task_type="task", api_type="api")
            [claim] = await store.jobs.claim("worker", lease=3600)
            print(job.id, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            before = highest = process.memory_info().rss
            async with store.jobs.output(claim) as output:
                for number in range(pieces):
                    await output.write(chr(97 + number % 26) * 65536)
                    highest = max(highest, process.memory_info().rss)
            done = await store.jobs.complete(claim)
            highest = max(highest, process.memory_info().rss)
            print(highest - before, done.output_sha256, flush=True)

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

READER = """
    import asyncio, hashlib, sys
    import psutil
    from jobstore import JobStore

    async def main(path, job_id):
        process = psutil.Process()
        async with JobStore(path) as store:
            digest, before, highest = hashlib.sha256(), process.memory_info().rss, 0
            print("following", flush=True)
            async for text in store.jobs.tail(job_id):
                digest.update(text.encode())
                highest = max(highest, process.memory_info().rss)
            print(highest - before, digest.hexdigest(), flush=True)

    asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def expected_hash(pieces: int) -> str:
    digest = hashlib.sha256()
    for number in range(pieces):
        digest.update(chr(97 + number % 26).encode() * PIECE)
    return digest.hexdigest()


@pytest.mark.parametrize(
    "megabytes", [pytest.param(128, id="128 MB"), pytest.param(1024, id="1 GB", marks=pytest.mark.full)]
)
def test_a_huge_answer_streams_with_constant_memory_while_another_process_follows_it(
    database: Path, megabytes: int
) -> None:
    pieces = megabytes * 2**20 // PIECE
    writer = spawn(WRITER, database, pieces)
    job_id = line(writer)
    reader = spawn(READER, database, job_id)
    assert line(reader) == "following"
    tell(writer)
    code, written, errors = finish(writer, within=280)
    assert code == 0, errors
    code, read, errors = finish(reader, within=280)
    assert code == 0, errors
    writers_growth, writers_hash = written.split()
    readers_growth, readers_hash = read.split()
    print(f"{megabytes} MB: the writer grew by {int(writers_growth) / 2**20:.1f} MB, "
          f"the reader by {int(readers_growth) / 2**20:.1f} MB")  # fmt: skip
    assert writers_hash == readers_hash == expected_hash(pieces)
    assert int(writers_growth) < LIMIT
    assert int(readers_growth) < LIMIT


def test_killing_the_writer_leaves_the_partial_readable(database: Path) -> None:
    writer = spawn(
        """
        import asyncio, sys
        from jobstore import JobStore

        async def main(path):
            async with JobStore(path, migrate=True) as store:
                job = await store.jobs.enqueue("p", task_type="task", api_type="api")
                [claim] = await store.jobs.claim("worker", lease=0.5)
                async with store.jobs.output(claim) as output:
                    await output.write("x" * 100_000)
                    while output.size < 100_000:
                        await asyncio.sleep(0.001)
                    print(job.id, flush=True)
                    await asyncio.Event().wait()

        asyncio.run(main(sys.argv[1]))
        """,
        database,
    )
    job_id = line(writer)
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()

    async def look() -> None:
        async with JobStore(database) as store:
            assert await store.jobs.read_response(job_id) == "x" * 100_000
            # The lease ends by itself, and the job is anybody's again; what was streamed stays readable.
            token = await store.jobs.wake()
            while not (claims := await store.jobs.claim("next")):
                token = await store.jobs.wake(since=token)
            assert claims[0].job_id == job_id
            assert claims[0].attempt == 2
            [first, _] = await store.jobs.attempts(job_id)
            assert first.outcome == "lost"
            assert first.output_file_path is not None
            assert await store.jobs.read_response(job_id) == "x" * 100_000
            done = await store.jobs.complete(claims[0], "whole")
            assert done.status is JobStatus.COMPLETED
            assert await store.jobs.read_response(job_id) == "whole"

    asyncio.run(look())


def test_killing_a_process_in_mid_batch_keeps_all_that_was_acknowledged(database: Path) -> None:
    writer = spawn(
        """
        import asyncio, sys
        from jobstore import JobStore

        async def enqueue(store):
            while True:
                job = await store.jobs.enqueue("p", task_type="task", api_type="api")
                sys.stdout.write(job.id + "\\n")

        async def main(path):
            async with JobStore(path, migrate=True) as store:
                await asyncio.gather(*(enqueue(store) for _ in range(20)))

        asyncio.run(main(sys.argv[1]))
        """,
        database,
    )
    assert writer.stdout is not None
    acknowledged = [line(writer) for _ in range(300)]
    os.kill(writer.pid, signal.SIGKILL)
    _, rest, _ = finish(writer)
    whole_lines = rest.splitlines() if rest.endswith("\n") else rest.splitlines()[:-1]

    async def look() -> None:
        async with JobStore(database) as store:
            rows = await store.execute("SELECT id FROM background_jobs")
            assert {*acknowledged, *whole_lines} <= {row["id"] for row in rows}

    asyncio.run(look())
