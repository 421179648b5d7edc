"""For tests of programs that use jobstore: run a handler or a worker to its end, and look for what was enqueued."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from uuid import uuid4

from pydantic import JsonValue

from jobstore import Job, JobStatus, JobStore
from jobstore.operations import jobs
from jobstore.testing.clock import FakeClock
from jobstore.workers import Worker

WAITING = (JobStatus.IDLE, JobStatus.SCHEDULED)
DAY = 24 * 3600.0


async def run_handler(store: JobStore, handler: Callable[..., Any], prompt: str = "", **fields: Any) -> Job:  # noqa: ANN401
    """Enqueue one job, run a handler for it as a worker would, and return the job as it is then.

    Args:
        store: An open store.
        handler: What `Worker.handles` takes, async or not.
        prompt: The job's.
        **fields: What else `store.jobs.enqueue` takes. Without a `task_type` it is one of this job's own.

    Returns:
        The job after one attempt: completed, failed, canceled, or scheduled to be tried again.

    Example:
        >>> job = await run_handler(store, greet, "Say hello", max_attempts=1)
        >>> assert job.status is JobStatus.COMPLETED and job.response == "Hello!"
    """
    new = {"task_type": f"test-{uuid4().hex}", "api_type": "test", **fields}
    worker = Worker(store, concurrency=1)
    worker.handles(new["task_type"])(handler)
    job = await store.jobs.enqueue(prompt, **new)
    await worker.run(drain=True)
    return await store.jobs.get(job.id)


async def drain(worker: Worker, clock: FakeClock | None = None, *, at_most: float = DAY) -> None:
    """Run a worker until nothing is left that it could do; a clock that is turned by hand goes on to what falls due.

    So retries, snoozed and scheduled jobs, and the leases of workers that are gone take no time.

    Args:
        worker: With its handlers, on an open store.
        clock: The store's; without one, what lies in the future is left there.
        at_most: Seconds that the clock goes on at most.

    Example:
        >>> clock = FakeClock()
        >>> async with JobStore(tmp_path / "jobs.db", migrate=True, clock=clock) as store:
        ...     await drain(make_worker(store), clock)  # with all retries
    """
    await worker.run(drain=True)
    if clock is None:
        return
    end = clock.now + round(at_most * 1000)
    while (due := await worker.store.run(jobs.next_due)) is not None and due <= end:
        clock.now = max(clock.now, due)
        await worker.run(drain=True)


async def assert_enqueued(
    store: JobStore,
    *,
    task_type: str | None = None,
    api_type: str | None = None,
    session_id: str | None = None,
    prompt: str | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
) -> Job:
    """Return the newest job that waits and is like this; what is None may be anything.

    Args:
        store: An open store.
        task_type: Its task type.
        api_type: Its API.
        session_id: Its session.
        prompt: Its whole prompt.
        metadata: What its metadata has, among other things.

    Raises:
        AssertionError: None waits; it tells which do, without their texts.

    Example:
        >>> job = await assert_enqueued(store, task_type="greeting", prompt="Say hello")
    """
    others: Counter[str] = Counter()
    async for job in _waiting(store, task_type=task_type, api_type=api_type, session_id=session_id):
        has = all(name in job.metadata and job.metadata[name] == value for name, value in (metadata or {}).items())
        if has and (prompt is None or await store.jobs.read_prompt(job.id) == prompt):
            return await store.jobs.get(job.id)
    async for job in _waiting(store):
        others[f"{job.task_type}/{job.api_type}"] += 1
    told = ", ".join(f"{count} of {lane}" for lane, count in others.items()) or "none"
    raise AssertionError(f"no such job waits; those that do: {told}")


async def _waiting(store: JobStore, **where: Any) -> AsyncIterator[Job]:  # noqa: ANN401 - what `list` takes
    cursor: str | None = None
    while True:
        page = await store.jobs.list(status=WAITING, cleared=None, limit=500, cursor=cursor, **where)
        for job in page.items:
            yield job
        if (cursor := page.next_cursor) is None:
            return
