"""Reading and following large answers: in parts, with little memory, from other processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tracemalloc
from typing import Any

import pytest

from jobstore import JobStatus, JobStore, OutputError
from jobstore.operations import attempts, leasing
from jobstore.sql import Operation
from tests.conformance.support import damage_stored, outputs_place, start, stored, streamed
from tests.processes.support import finish, spawn

MEGABYTE = 2**20


async def test_an_answer_is_streamed_and_read_in_parts_with_little_memory(store: JobStore) -> None:
    claimed = await start(store)
    piece, pieces = "x" * 64 * 1024, 512
    tracemalloc.start()
    try:
        async with store.jobs.output(claimed) as output:
            for _ in range(pieces):
                await output.write(piece)
        await store.jobs.complete(claimed)
        _, peak_of_writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        size = longest = 0
        async for part in store.jobs.open_response(claimed.job_id):
            size += len(part)
            longest = max(longest, len(part))
        _, peak_of_reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == len(piece) * pieces
    assert longest < MEGABYTE
    assert peak_of_writing < 8 * MEGABYTE
    assert peak_of_reading < 8 * MEGABYTE


@pytest.mark.parametrize("damage", ["altered", "truncated", "lengthened"])
async def test_damage_shows_at_the_end_of_reading_in_parts(store: JobStore, damage: str) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "x" * (MEGABYTE // 2))
    done = await store.jobs.complete(claimed)
    data = stored(store, done.output_file_path)
    damaged = {"altered": b"y" + data[1:], "truncated": data[:-1], "lengthened": data + b"x"}[damage]
    damage_stored(store, done.output_file_path, lambda file: file.write_bytes(damaged))
    parts: list[str] = []

    async def read() -> None:
        async for part in store.jobs.open_response(done.id):
            parts.append(part)  # noqa: PERF401 - one by one, because the end is an error

    with pytest.raises(OutputError) as error:
        await read()
    assert error.value.path == done.output_file_path
    assert parts


FOLLOWER = """
    import asyncio, json, sys
    from jobstore import JobStore, OutputRestarted
    from jobstore.testing import FakeClock

    async def main(path, outputs, job_id):
        async with JobStore(path, outputs=outputs, clock=FakeClock()) as store:
            print(json.dumps("ready"), flush=True)
            try:
                async for text in store.jobs.tail(job_id):
                    print(json.dumps(text), flush=True)
                print(json.dumps(None), flush=True)
            except OutputRestarted as error:
                print(json.dumps({"restarted": error.attempt}), flush=True)

    asyncio.run(main(*sys.argv[1:]))
"""


class Follower:
    """Another process that follows a job."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.process: subprocess.Popen[str] = spawn(FOLLOWER, store.path, outputs_place(store), job_id)

    async def hears(self) -> Any:  # noqa: ANN401 - what JSON can say
        line = await asyncio.to_thread(self.process.stdout.readline)
        return json.loads(line)

    async def ends(self) -> None:
        code, output, errors = await asyncio.to_thread(finish, self.process)
        assert (code, output, errors) == (0, "", "")


async def test_another_process_hears_each_piece_before_the_next_is_written(store: JobStore) -> None:
    claimed = await start(store)
    follower = Follower(store, claimed.job_id)
    assert await follower.hears() == "ready"
    async with store.jobs.output(claimed) as output:
        for piece in ("one", "two 😀", "three\0", "x" * 10_000):
            await output.write(piece)
            heard = ""
            while heard != piece:
                heard += await follower.hears()
                assert piece.startswith(heard)
    await store.jobs.complete(claimed)
    assert await follower.hears() is None
    await follower.ends()


async def test_another_process_hears_that_a_new_attempt_has_begun(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "first")
    follower = Follower(store, claimed.job_id)
    assert await follower.hears() == "ready"
    assert await follower.hears() == "first"

    def restart(now: int) -> Operation[leasing.Claimed]:
        yield from attempts.release(now, claimed)
        return (yield from leasing.claim(now, "worker-2", 1, 30_000, None, None))

    [second] = (await store.run(restart)).claims  # in one transaction, or the end of the first might be heard of
    assert second.attempt == 2
    assert await follower.hears() == {"restarted": 1}
    await follower.ends()


async def test_another_process_waits_for_a_job_that_waits(store: JobStore) -> None:
    job = await store.jobs.enqueue("p", task_type="t", api_type="a")
    follower = Follower(store, job.id)
    assert await follower.hears() == "ready"
    [claimed] = await store.jobs.claim("worker-1")
    await store.jobs.complete(claimed, "the answer")
    assert await follower.hears() == "the answer"
    assert await follower.hears() is None
    await follower.ends()
    assert (await store.jobs.get(job.id)).status is JobStatus.COMPLETED
