"""A store with something of everything in it, and looking at all that two stores hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobstore import CallStatus, JobStore, NewJob, Settlement, Usage
from jobstore.databases import find_database
from jobstore.operations.promotion import TABLES

LARGE = "Ein großer Text mit Umlauten. " * 4000
WITH_NUL = "before\0behind"

Rows = dict[str, list[Mapping[str, Any]]]


async def fill(store: JobStore) -> None:
    """Put into a store sessions, files, state, and jobs of each status with texts of each kind."""
    session = await store.sessions.create(name="demo", project_directory="/src/app", model_settings={"top": [1, None]})
    await store.files.set_included(session.id, ["b.py", "ä.py", "a.py"])
    await store.files.set_excluded(session.id, ["secret.txt"])
    await store.cached_state.set("/src/app", "tabs", ["x", "\0"], ttl=3600)
    await store.kv.set("theme", {"dark": True})
    await store.retention.set("old texts", removes="texts", older_than=3600, keep=5, status="failed")
    await completed(store, "small", "short answer", session_id=session.id, metadata={"z": 1, "a": "\0"})
    await completed(store, LARGE, LARGE[::-1], idempotency_key="once")
    await completed(store, WITH_NUL, WITH_NUL)
    await completed(store, "empty", "")
    await store.jobs.complete(await claimed(store, "streamed"), LARGE, usage=Usage(input_tokens=3, cost=0.1))
    await failed_with_partial(store)
    await store.jobs.cancel((await store.jobs.enqueue("canceled", **LANE)).id)
    await store.jobs.snooze(await claimed(store, "snoozed"), 3600)
    await store.jobs.enqueue_many(NewJob(prompt=f"idle {n}", priority=n, **LANE) for n in range(5))


LANE = {"task_type": "task", "api_type": "api"}


async def claimed(store: JobStore, prompt: str, **fields: Any) -> Any:  # noqa: ANN401
    job = await store.jobs.enqueue(prompt, **{**LANE, "priority": 100, **fields})
    [claim] = await store.jobs.claim("worker")
    assert claim.job_id == job.id
    return claim


async def completed(store: JobStore, prompt: str, response: str, **fields: Any) -> None:  # noqa: ANN401
    await store.jobs.complete(await claimed(store, prompt, **fields), response)


async def failed_with_partial(store: JobStore) -> None:
    """Leave a job behind whose only answer is what an attempt wrote before it failed."""
    claim = await claimed(store, "partial")
    async with store.jobs.output(claim) as output:
        await output.write("as far as it came: ä")
    usage = Usage(input_tokens=3, output_tokens=2**62, cost=0.1 + 0.2)
    call = await store.calls.begin(claim, provider="anthropic", model="ä")
    told = Settlement(status=CallStatus.TRUNCATED, usage=usage, duration=1 / 3, raw_usage={"z": "nul \0", "a": [1.5]})
    await store.calls.settle(call, told)
    await store.calls.begin(claim, provider="anthropic", on_unknown="hold")  # unknown with the end of the attempt
    await store.jobs.fail(claim, "no more", error_type="Boom")


async def rows_of(store: JobStore) -> Rows:
    """Return all rows that a promotion copies, and the lanes that follow from them."""
    found = {
        table.name: await store.execute(f"SELECT * FROM {table.name} ORDER BY {', '.join(table.key)}")
        for table in TABLES
    }
    return {**found, "lanes": await store.execute("SELECT * FROM lanes ORDER BY task_type, api_type")}


async def texts_of(store: JobStore) -> dict[str, tuple[str, str | None]]:
    """Return the prompt and the response of each job."""
    ids = [row["id"] for row in await store.execute("SELECT id FROM background_jobs")]
    return {job_id: (await store.jobs.read_prompt(job_id), await store.jobs.read_response(job_id)) for job_id in ids}


def migrate(url: str | Path) -> None:
    database = find_database(url)
    database.load()
    database.migrator().run()
