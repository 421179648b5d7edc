"""A full disk: said as such, nothing half-written passes for whole, and the work can be ended and read.

The limit on the size of files is a full disk for one process alone, and it can be lifted again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.processes.support import run

PROGRAM = """
import asyncio, json, resource, sys
from jobstore import DiskFull, JobStore

PIECE = "0123456789 äöü 😀 " * 4000
LIMIT = 2_000_000

def room(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

async def begin(store):
    await store.jobs.enqueue("p", task_type="t", api_type="a")
    [claimed] = await store.jobs.claim("worker")
    return claimed

async def fill(write):
    for number in range(1000):
        await write(PIECE)
        await asyncio.sleep(0.001)

async def refused(call):
    try:
        await call
    except DiskFull as error:
        return str(error)
    return "nothing was refused"

def files(store):
    folder = store.path.with_name(store.path.name + ".outputs")
    return sorted(path.stat().st_size for path in folder.glob("*/*/*"))

async def main():
    async with JobStore(sys.argv[1], migrate=True) as store:
        told = await asyncio.wait_for(tell(store), 100)
    print(json.dumps(told))

async def tell(store):
    room(LIMIT)
    told = {}
    BODY

asyncio.run(main())
"""


def tell(database: Path, body: str) -> dict[str, Any]:
    """Run a piece of a program in a process with little room, and return what it told."""
    code, output, errors = run(PROGRAM.replace("BODY", f"{body.strip()}\n    return told"), database)
    assert code == 0, errors
    assert errors == ""
    told: dict[str, Any] = json.loads(output)
    return told


def test_a_full_disk_ends_a_stream_and_what_came_before_stays_readable(database: Path) -> None:
    told = tell(
        database,
        """
    claimed = await begin(store)
    async def stream():
        async with store.jobs.output(claimed) as output:
            await fill(output.write)
    told["refusal"] = await refused(stream())
    told["again"] = await refused(store.jobs.complete(claimed))
    failed = await store.jobs.fail(claimed, "no room", error_type="DiskFull", retry_in=0)
    told["status"] = failed.status
    partial = await store.jobs.read_response(claimed.job_id)
    told["prefix"] = (PIECE * 100).startswith(partial)
    told["bytes"] = len(partial.encode())
    told["attempt"] = (await store.jobs.attempts(claimed.job_id))[0].output_bytes
    told["files"] = files(store)
    room(resource.RLIM_INFINITY)
    [second] = await store.jobs.claim("worker")
    async with store.jobs.output(second) as output:
        await output.write(PIECE * 100)
    await store.jobs.complete(second)
    told["whole"] = await store.jobs.read_response(second.job_id) == PIECE * 100
    """,
    )
    assert "no room" in told["refusal"]
    assert "no room" in told["again"]
    assert told["status"] == "scheduled"
    assert told["prefix"]
    assert 1_900_000 < told["bytes"] <= 2_000_000
    assert told["files"] == [2_000_000] == [told["attempt"]]
    assert told["whole"]


def test_an_answer_that_found_no_room_in_its_stream_can_still_be_given(database: Path) -> None:
    told = tell(
        database,
        """
    claimed = await begin(store)
    async with store.jobs.output(claimed) as output:
        told["refusal"] = await refused(fill(output.write))
        told["inside"] = await refused(store.jobs.complete(claimed))
        done = await store.jobs.complete(claimed, "the gist of it")
        told["status"] = done.status
    told["response"] = await store.jobs.read_response(claimed.job_id)
    """,
    )
    assert "no room" in told["refusal"]
    assert "no room" in told["inside"]
    assert (told["status"], told["response"]) == ("completed", "the gist of it")


def test_prompts_and_answers_without_room_are_refused_and_leave_nothing(database: Path) -> None:
    told = tell(
        database,
        """
    claimed = await begin(store)
    large = PIECE * 100
    told["prompt"] = await refused(store.jobs.enqueue(large, task_type="t", api_type="a"))
    told["answer"] = await refused(store.jobs.complete(claimed, large))
    told["count"] = await store.jobs.count()
    told["status"] = (await store.jobs.get(claimed.job_id)).status
    told["files"] = files(store)
    room(resource.RLIM_INFINITY)
    await store.jobs.complete(claimed, large)
    told["whole"] = await store.jobs.read_response(claimed.job_id) == large
    """,
    )
    assert "no room" in told["prompt"]
    assert "no room" in told["answer"]
    assert (told["count"], told["status"], told["files"]) == (1, "running", [])
    assert told["whole"]


def test_a_recorded_call_without_room_is_failed_and_its_partial_stays(database: Path) -> None:
    told = tell(
        database,
        """
    async def call(pieces):
        async with store.jobs.record("p", task_type="t", api_type="a") as call:
            told["id"] = call.job.id
            for number in range(pieces):
                await call.write(PIECE)
    for name, pieces in (("while it writes", 1000), ("at its end", 25)):
        told[name] = await refused(call(pieces))
        job = await store.jobs.get(told["id"])
        partial = await store.jobs.read_response(job.id)
        told[name + " job"] = [job.status, job.error_type, (PIECE * 100).startswith(partial), len(partial) > 0]
    """,
    )
    for name in ("while it writes", "at its end"):
        assert "no room" in told[name]
        assert told[f"{name} job"] == ["failed", "DiskFull", True, True]
