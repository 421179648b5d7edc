"""The part of `store.jobs` that steers jobs: cancel, retry, clear, prune."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from jobstore.errors import InvalidArgument
from jobstore.models import Job
from jobstore.operations import jobs, leasing
from jobstore.repositories.arguments import check_iterable, identifier, not_negative
from jobstore.repositories.backend import Backend


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

        What it answered before stays readable until a new answer is recorded.

        Raises:
            JobNotFound: There is no such job.
            InvalidTransition: It has not ended.
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

    async def prune(self, *, older_than: float) -> int:
        """Delete the jobs that ended at least `older_than` seconds ago, with their attempts and files.

        Returns:
            How many were deleted.
        """
        age = not_negative("older_than", older_than)
        return await delete_all(self._backend, jobs.prune, age)


async def delete_all(backend: Backend, make_operation: Any, argument: object) -> int:  # noqa: ANN401
    """Repeat an operation that deletes some jobs until none is left; remove the files of each round."""

    def remove_files(pruned: jobs.Pruned | None) -> None:
        if pruned is not None and pruned.file_paths:
            backend.discard(pruned.file_paths)

    total = 0
    while True:
        pruned: jobs.Pruned = await backend.write(make_operation, argument, abandoned=remove_files)
        remove_files(pruned)
        total += pruned.jobs
        if not pruned.jobs:
            return total
