"""The part of `store.jobs` that steers jobs: change, cancel, retry, clear, prune, one or many."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pydantic import JsonValue

from jobstore.errors import InvalidArgument
from jobstore.lifecycle import JobStatus
from jobstore.models import MAX_PRIORITY, MIN_PRIORITY, UNCHANGED, Job, Unchanged, check_schedule
from jobstore.operations import bulk, jobs, leasing
from jobstore.operations.listing import Cursor, JobFilter
from jobstore.repositories import maintenance, pruning
from jobstore.repositories.arguments import check_iterable, check_range, identifier, milliseconds, not_negative
from jobstore.repositories.arguments import metadata as check_metadata
from jobstore.repositories.backend import Backend
from jobstore.repositories.filters import Statuses, job_filter
from jobstore.sql import MakeOperation


class JobControl:
    """Steering jobs from outside."""

    _backend: Backend

    async def cancel(self, job_id: str) -> Job:
        """Idle or scheduled → canceled. A running job is asked to end: its worker hears of it at once.

        Raises:
            JobNotFound: There is no such job.
            InvalidTransition: It has ended already.
        """
        return await self._backend.write(leasing.cancel, identifier("job_id", job_id), wakes=True)

    async def update(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        run_at: datetime | Unchanged | None = UNCHANGED,
        metadata: Mapping[str, JsonValue] | None = None,
        max_attempts: int | None = None,
        expires_at: datetime | Unchanged | None = UNCHANGED,
    ) -> Job:
        """Change a job that waits; what is not given stays as it is.

        Args:
            job_id: An idle or scheduled job.
            priority: A 32-bit integer; higher is claimed first.
            run_at: Not before this aware datetime; None is at once.
            metadata: Merged into the job's.
            max_attempts: How often it may be tried, above how often it was.
            expires_at: No attempt begins at or after this aware datetime; None is never. If it has passed, the job
                is canceled.

        Raises:
            InvalidArgument: A field cannot be accepted; it names the field.
            JobNotFound: There is no such job.
            InvalidTransition: It runs, or has ended.

        Example:
            >>> await store.jobs.update(job.id, priority=10, run_at=None)
        """
        if priority is not None:
            check_range("priority", priority, MIN_PRIORITY, MAX_PRIORITY)
        if max_attempts is not None:
            check_range("max_attempts", max_attempts, 1, MAX_PRIORITY)
        changes = jobs.Changes(priority=priority, metadata=check_metadata(metadata), max_attempts=max_attempts)
        if run_at is not UNCHANGED:
            changes = changes._replace(run_at="now" if run_at is None else milliseconds("run_at", run_at))
        if expires_at is not UNCHANGED:
            changes = changes._replace(
                expires_at="never" if expires_at is None else milliseconds("expires_at", expires_at)
            )
        check_schedule(_moment(run_at), _moment(expires_at))
        return await self._backend.write(leasing.update, identifier("job_id", job_id), changes, wakes=True)

    async def cancel_all(
        self,
        *,
        status: Statuses = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        cleared: bool | None = None,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
        everything: bool = False,
    ) -> int:
        """Cancel all unfinished jobs that the filters of `list` find, hidden ones too, as `cancel` does each.

        In transactions of some hundred jobs: those canceled before a failure stay so.

        Args:
            status: Of idle, scheduled and running; None is any of them.
            session_id: Of this session.
            task_type: Of this task type.
            api_type: For this API.
            cleared: Hidden ones: False leaves them out, True means only them, None both.
            created_before: Before this aware datetime.
            created_after: At or after this aware datetime.
            everything: Instead of a filter: without either, nothing is done.

        Returns:
            How many were canceled or, as they run, asked to end. Those asked already do not count.

        Raises:
            InvalidArgument: No filter is given, or one cannot be accepted; it names the argument.

        Example:
            >>> await store.jobs.cancel_all(task_type="summary", status="idle")
        """
        where = job_filter(status, session_id, task_type, api_type, cleared, created_before, created_after)
        _check_meant(where, everything=everything)
        return await self._in_rounds(bulk.cancel, _within(where, bulk.CANCELABLE, "canceled"))

    async def retry_all(
        self,
        *,
        status: Statuses = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        cleared: bool | None = None,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
        everything: bool = False,
    ) -> int:
        """Let all jobs run again that have failed and that the filters of `list` find, as `retry` does each.

        In transactions of some hundred jobs. Each job is retried once, also one that soon fails again. Jobs whose texts
        were pruned stay as they are.

        Args:
            status: Of failed, canceled and completed; None is failed, as to repeat completed jobs costs money.
            session_id: Of this session.
            task_type: Of this task type.
            api_type: For this API.
            cleared: Hidden ones: False leaves them out, True means only them, None both.
            created_before: Before this aware datetime.
            created_after: At or after this aware datetime.
            everything: Instead of a filter: without either, nothing is done.

        Returns:
            How many are idle again.

        Raises:
            InvalidArgument: No filter is given, or one cannot be accepted; it names the argument.

        Example:
            >>> await store.jobs.retry_all(status="failed", created_after=yesterday)
        """
        where = job_filter(status, session_id, task_type, api_type, cleared, created_before, created_after)
        _check_meant(where, everything=everything)
        if where.statuses is None:
            where = replace(where, statuses=(JobStatus.FAILED,))
        return await self._in_rounds(bulk.retry, _within(where, bulk.RETRYABLE, "retried"))

    async def clear_all(
        self,
        *,
        status: Statuses = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
        everything: bool = False,
    ) -> int:
        """Hide all jobs that the filters of `list` find, as `clear` does each; the arguments are those of `cancel_all`.

        Returns:
            How many were not hidden before.

        Raises:
            InvalidArgument: No filter is given, or one cannot be accepted; it names the argument.

        Example:
            >>> await store.jobs.clear_all(status=["completed", "canceled"])
        """
        where = job_filter(status, session_id, task_type, api_type, None, created_before, created_after)
        _check_meant(where, everything=everything)
        return await self._in_rounds(bulk.clear, replace(where, cleared=False))

    async def _in_rounds(
        self, make_operation: MakeOperation[[JobFilter, Cursor | None], bulk.Round], where: JobFilter
    ) -> int:
        total, cursor = 0, None
        while True:
            done = await self._backend.write(make_operation, where, cursor, wakes=True)
            total += done.changed
            cursor = done.cursor
            if cursor is None:
                return total

    async def cancel_session(self, session_id: str) -> int:
        """Cancel all unfinished jobs of a session; return how many that were.

        Raises:
            SessionNotFound: There is no such session.
        """
        total, session_id = 0, identifier("session_id", session_id)
        while canceled := await self._backend.write(jobs.cancel_session, session_id, wakes=True):
            total += canceled
        return total

    async def retry(self, job_id: str) -> Job:
        """failed, canceled or completed → idle, with all its attempts before it again.

        What it answered before stays readable until a new answer is recorded. An `expires_at` that has passed is
        dropped.

        Raises:
            JobNotFound: There is no such job.
            InvalidTransition: It has not ended.
            TextsPruned: Its prompt was removed.
        """
        return await self._backend.write(leasing.retry, identifier("job_id", job_id), wakes=True)

    async def clear(self, job_ids: Iterable[str] | None = None, *, older_than: float | None = None) -> int:
        """Hide jobs from lists: those named, or those that ended at least `older_than` seconds ago.

        Returns:
            How many were not hidden before.

        Raises:
            InvalidArgument: Neither or both were given.
        """
        if (job_ids is None) == (older_than is None):
            raise InvalidArgument("job_ids", "give either job_ids or older_than")
        if job_ids is not None:
            return await self._clear_named(job_ids)
        age = not_negative("older_than", older_than)
        total, after = 0, (-(2**63), "")
        while cleared := await self._backend.write(jobs.clear_finished, age, after):
            total += cleared[0]
            after = cleared[1:]
        return total

    async def _clear_named(self, job_ids: Iterable[str]) -> int:
        if isinstance(job_ids, str):
            job_ids = [job_ids]
        check_iterable("job_ids", job_ids)
        total, remaining = 0, iter(job_ids)
        while part := list(itertools.islice(remaining, jobs.MAX_ROWS)):
            total += await self._backend.write(jobs.clear, [identifier("job_ids", one) for one in part])
        return total

    async def prune(
        self,
        *,
        older_than: float | None = None,
        keep: int | None = None,
        status: Statuses = None,
        task_type: str | None = None,
        api_type: str | None = None,
        texts_only: bool = False,
        dry_run: bool = False,
        secure: bool = False,
    ) -> int:
        """Delete jobs that have ended, with their attempts and files; those of which all that is given holds.

        In transactions of a hundred jobs, beside anything: those deleted before a failure stay so.

        Args:
            older_than: They have ended at least so many seconds ago; 0 is any.
            keep: Of those that the other filters find, whatever their age, this many stay: the ones that ended last.
            status: Of completed, failed and canceled; None is any of them.
            task_type: Of this task type.
            api_type: For this API.
            texts_only: Remove prompts and responses alone. The job stays, says so in `texts_pruned_at`, and cannot be
                retried; to read its texts raises `TextsPruned`.
            dry_run: Only tell how many that would be.
            secure: Overwrite what is deleted meanwhile, then give back what is free as `store.vacuum(secure=True)`
                does: nothing that was deleted is left in the database's file and its log. It does not reach the
                files of large texts, which are unlinked, nor backups, snapshots, and what a file system or an SSD
                keeps.

        Returns:
            Of how many jobs.

        Raises:
            InvalidArgument: Neither `older_than` nor `keep` is given, an argument cannot be accepted, or `secure` is
                asked of a database that cannot do it, such as PostgreSQL.
            DatabaseError: With `secure`: the jobs are gone, but readers kept the log.

        Example:
            >>> await store.jobs.prune(older_than=30 * 86400, keep=1000, status="completed")
        """
        rule = pruning.read_rule(older_than, keep, status, task_type, api_type, texts_only=texts_only)
        if dry_run:
            return await pruning.count(self._backend, rule)
        if not secure:
            return await pruning.prune(self._backend, rule)
        self._backend.check_usable()
        async with self._backend.engine.overwriting():
            pruned = await pruning.prune(self._backend, rule)
        await maintenance.vacuum(self._backend, secure=True)
        return pruned


def _moment(given: datetime | Unchanged | None) -> datetime | None:
    return given if isinstance(given, datetime) else None


def _check_meant(where: JobFilter, *, everything: bool) -> None:
    """Refuse what may be a mistake: no filter at all, or one beside `everything`."""
    if everything == (where != JobFilter()):
        raise InvalidArgument("everything", "name jobs by at least one filter, or pass everything=True without any")


def _within(where: JobFilter, possible: Sequence[JobStatus], done: str) -> JobFilter:
    """Return the filter with only those statuses that something can be done about."""
    if where.statuses is None:
        return replace(where, statuses=possible)
    if not set(where.statuses) <= set(possible):
        raise InvalidArgument("status", f"must be of those that can be {done}: {', '.join(possible)}")
    return where
