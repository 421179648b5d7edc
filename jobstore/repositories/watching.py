"""Following the jobs of a session as they change, whoever changes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from jobstore.clock import seconds, to_milliseconds
from jobstore.models import Job
from jobstore.operations import listing, sessions
from jobstore.operations.jobs import MAX_ROWS
from jobstore.repositories.backend import Backend

LOOK_SECONDS = 0.1
"""Between looks, however fast the jobs change."""
OVERLAP = 10.0
"""Seconds by which one look reaches back behind the last change seen: a commit may come after one that it precedes."""


async def watch(backend: Backend, session_id: str) -> AsyncIterator[Job]:
    """Yield each job of a session, then each again whenever it has changed; see `JobQueries.watch`."""
    await backend.read(sessions.get, session_id)
    seen: dict[str, Job] = {}
    since = 0
    while True:
        token = backend.engine.changes.count  # what is changed from here on is looked for again
        async for job in _changed_since(backend, session_id, since):
            if seen.get(job.id) != job:
                seen[job.id] = job
                yield job
        since = max([0, *map(_changed_at, seen.values())]) - seconds(OVERLAP)
        seen = {job_id: job for job_id, job in seen.items() if _changed_at(job) >= since}
        await backend.wait(backend.engine.changes, token, None)
        await asyncio.sleep(LOOK_SECONDS)


async def _changed_since(backend: Backend, session_id: str, since: int) -> AsyncIterator[Job]:
    while True:
        found = await backend.read(listing.changed_since, session_id, since)
        for job in found:
            yield job
        if len(found) < MAX_ROWS:
            return
        since = _changed_at(found[-1]) + 1  # all of that millisecond are among them


def _changed_at(job: Job) -> int:
    return to_milliseconds(job.updated_at)
