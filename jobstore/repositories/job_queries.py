"""The part of `store.jobs` that reads: single jobs, lists, texts, and waiting for what comes."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator
from datetime import datetime

from jobstore.errors import InvalidArgument
from jobstore.lifecycle import JobStatus
from jobstore.models import Attempt, Job, Page
from jobstore.operations import attempts, explaining, jobs, leasing, listing
from jobstore.overviews import Explanation, JobStats
from jobstore.repositories import texts, watching
from jobstore.repositories.arguments import check_range, identifier
from jobstore.repositories.backend import Backend
from jobstore.repositories.filters import Statuses, job_filter
from jobstore.sql import Operation, fetch_one

LONGEST_SLEEP = 30.0
"""Seconds after which a wait for work returns in any case: the clock may have been set meanwhile."""
OVERDUE_SLEEP = 0.01
"""Seconds after which it returns when something is due already, which someone may have locked for long."""


class JobQueries:
    """Reading jobs."""

    _backend: Backend

    async def get(self, job_id: str) -> Job:
        """Return a job with the texts that lie in its row.

        Raises:
            JobNotFound: There is no such job.
        """
        return await self._backend.read(jobs.get, identifier("job_id", job_id))

    async def list(
        self,
        *,
        status: Statuses = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        cleared: bool | None = False,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
        order: listing.Order = "newest",
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Return a part of the jobs, without their texts.

        Args:
            status: One or several; None is any.
            session_id: Of this session.
            task_type: Of this task type.
            api_type: For this API.
            cleared: Hidden ones: False leaves them out, True gives only them, None both.
            created_before: Before this aware datetime.
            created_after: At or after this aware datetime.
            order: "newest" first, or "active": running, then waiting, then finished, each newest first.
            limit: How many at most, 1 to 1,000.
            cursor: The `next_cursor` of the part before.

        Raises:
            InvalidArgument: An argument cannot be accepted; it names the argument.

        Example:
            >>> page = await store.jobs.list(status="failed", limit=20)
            >>> more = await store.jobs.list(status="failed", limit=20, cursor=page.next_cursor)
        """
        if order not in {"newest", "active"}:
            raise InvalidArgument("order", 'must be "newest" or "active"')
        check_range("limit", limit, 1, jobs.MAX_ROWS)
        where = job_filter(status, session_id, task_type, api_type, cleared, created_before, created_after)
        begin = None if cursor is None else listing.Cursor.decode(cursor)
        return await self._backend.read(listing.list_jobs, where, order, limit, begin)

    async def count(
        self,
        *,
        status: Statuses = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        cleared: bool | None = None,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
    ) -> int:
        """Return how many jobs there are; the arguments are those of `list`, but hidden jobs count as well."""
        where = job_filter(status, session_id, task_type, api_type, cleared, created_before, created_after)
        return await self._backend.read(listing.count_jobs, where)

    async def stats(self) -> JobStats:
        """Return how many jobs there are by status and lane."""
        return await self._backend.read(listing.stats)

    async def attempts(self, job_id: str) -> builtins.list[Attempt]:
        """Return a job's attempts, the first first; none for an unknown job."""
        return await self._backend.read(attempts.attempts, identifier("job_id", job_id))

    async def explain(self, job_id: str) -> Explanation:
        """Say in a sentence why a job is not running, or what became of it, with what that was told from.

        Only workers that are registered are known, which `Worker` does by itself: whoever calls `claim` is not.

        Raises:
            JobNotFound: There is no such job.

        Example:
            >>> (await store.jobs.explain(job.id)).text
            'It waits: API claude is paused until 2030-01-31 08:00:00 UTC (the key is being replaced).'
        """
        return await self._backend.read(explaining.explain, identifier("job_id", job_id))

    async def read_prompt(self, job_id: str) -> str:
        """Return the whole prompt of a job.

        Raises:
            JobNotFound: There is no such job.
            TextsPruned: It was removed.
            OutputError: Its file is missing, damaged, or lies outside the outputs folder.
        """
        return await texts.read_prompt(self._backend, identifier("job_id", job_id))

    async def read_response(self, job_id: str) -> str | None:
        """Return the whole response of a job; of an unfinished or failed one, its latest partial response.

        Returns:
            The text; None if nothing was answered.

        Raises:
            JobNotFound: There is no such job.
            TextsPruned: It was removed.
            OutputError: Its file is missing, damaged, or lies outside the outputs folder.
        """
        return await texts.read_response(self._backend, identifier("job_id", job_id))

    def open_response(self, job_id: str) -> AsyncIterator[str]:
        """Yield what `read_response` returns, in parts, holding only one of them in memory.

        Raises:
            JobNotFound: There is no such job.
            TextsPruned: It was removed.
            OutputError: Its file is missing, lies outside the outputs folder, or, at the end, proves damaged.

        Example:
            >>> async for text in store.jobs.open_response(job.id):
            ...     print(text, end="")
        """
        return texts.open_response(self._backend, identifier("job_id", job_id))

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield a response from its beginning on, while it is being written by any process.

        A job that waits is waited for. The end comes when the attempt ends, in whatever way.

        Raises:
            JobNotFound: There is no such job.
            TextsPruned: It was removed.
            OutputRestarted: A new attempt has begun, or another answer was recorded than was streamed: tail again
                from the beginning.
            OutputError: The file cannot be read.

        Example:
            >>> async for text in store.jobs.tail(job.id):
            ...     print(text, end="", flush=True)
        """
        return texts.tail(self._backend, identifier("job_id", job_id))

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until a job has ended and return it.

        Raises:
            JobNotFound: There is no such job, or it was pruned meanwhile.
            TimeoutError: It has not ended within `timeout` seconds.
        """
        job = await self.get(job_id)  # outside of the timeout: a job that has ended is returned whatever it is
        if job.status.is_terminal:
            return job
        try:
            async with asyncio.timeout(timeout):
                await self._wait_until_ended(job_id)
        except TimeoutError:
            raise TimeoutError(f"job {job_id} has not ended within {timeout} s") from None
        return await self.get(job_id)

    async def _wait_until_ended(self, job_id: str) -> None:
        signal = self._backend.engine.changes
        while True:
            seen = signal.count
            status, due = await self._backend.read(_status_and_rescue, job_id)
            if status.is_terminal:
                return
            if await self._backend.wait(signal, seen, self._until(due)) == seen:
                # Some lease has ended, or some job has expired, and perhaps there is nobody else who would claim.
                await self._backend.write(leasing.rescue_due, wakes=True)

    def watch(self, session_id: str) -> AsyncIterator[Job]:
        """Follow the jobs of a session: each as it is now, then each again whenever it has changed, by any process.

        The jobs come without their texts, in the order of their changes; of several changes within a tenth of a
        second the last is told. Hidden jobs are among them; deleted ones are told no more. It ends with the store.

        Raises:
            SessionNotFound: There is no such session.
            StoreClosed: The store was closed.

        Example:
            >>> async for job in store.jobs.watch(session.id):
            ...     show(job.id, job.status, job.status_message)
        """
        return watching.watch(self._backend, identifier("session_id", session_id))

    async def wake(self, since: int | None = None) -> int:
        """Wait until there may be new work, and return a token of now.

        Args:
            since: A token taken before looking for work: nothing that came after it is missed. Without one, a
                token is returned at once.

        Example:
            >>> token = await store.jobs.wake()
            >>> while not (claims := await store.jobs.claim("worker-1")):
            ...     token = await store.jobs.wake(since=token)
        """
        signal = self._backend.engine.work
        if since is None:
            self._backend.check_usable()
            return signal.count
        due = await self._backend.read(jobs.next_due)
        return await self._backend.wait(signal, since, self._until(due))

    def _until(self, due: int | None) -> float:
        """Return how many seconds to sleep until a lease ends or a job falls due, at the most."""
        if due is None:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(OVERDUE_SLEEP, (due - self._backend.engine.clock()) / 1000))


def _status_and_rescue(now: int, job_id: str) -> Operation[tuple[JobStatus, int | None]]:
    """Return a job's status, and when the next lease ends or job expires: what `leasing.rescue_due` deals with."""
    status, _ = yield from jobs.status(now, job_id)
    row = (yield from fetch_one(jobs.NEXT_DUE)) or {}
    times = (row.get("lease"), row.get("expires_at"))
    return status, min((time for time in times if time is not None), default=None)
