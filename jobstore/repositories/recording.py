"""Recording a call that the program makes anyway: a running job that belongs to the caller."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from jobstore.aio import finish
from jobstore.errors import JobStoreError
from jobstore.models import Claim, Job, Usage
from jobstore.outputs import OutputWriter

if TYPE_CHECKING:
    from jobstore.repositories.job_work import JobWork


class RecordedCall:
    """A call that is being recorded.

    Attributes:
        claim: The running job and its one attempt.
        job: The job as it was last heard of.
        lost: Whether the attempt has ended meanwhile; a late answer is recorded all the same if nobody else has.
        cancel_requested: Whether someone wants the job canceled.
    """

    def __init__(self, jobs: JobWork, claim: Claim) -> None:
        self.claim = claim
        self.job: Job = claim.job
        self.lost = False
        self.cancel_requested = False
        self._jobs = jobs
        self._stack = contextlib.AsyncExitStack()
        self._output: OutputWriter | None = None
        self._opening = asyncio.Lock()
        self._usage: Usage | None = None

    @property
    def finished(self) -> bool:
        """Whether its outcome is recorded."""
        return self.job.status.is_terminal

    async def write(self, text: str) -> None:
        """Add a piece of the response; it survives a crash from about a second later.

        Raises:
            InvalidJob: It cannot be stored.
            LeaseLost: The attempt has ended.
            DiskFull: There is no room for it.
            OutputError: It cannot be written.
        """
        async with self._opening:
            if self._output is None:
                self._output = await self._stack.enter_async_context(self._jobs.output(self.claim))
        await self._output.write(text)

    async def finish(self, text: str | None = None, *, usage: Usage | None = None) -> Job:
        """Record the call as completed; without a text, what was written is the response.

        Raises:
            LeaseLost: The attempt has ended in another way.
        """
        self.job = await self._jobs.complete(self.claim, text, usage=usage)
        await self._stack.aclose()
        return self.job

    def note_lost(self) -> None:
        """Note that the attempt has ended meanwhile."""
        self.lost = True

    def note_cancel_requested(self) -> None:
        """Note that someone wants the job canceled."""
        self.cancel_requested = True

    async def end(self, error: BaseException | None) -> None:
        """Record how the call ended, unless that is done; also when the caller is being cancelled."""
        await finish(self._end(error))

    async def _end(self, error: BaseException | None) -> None:
        if self.finished:
            return
        if error is not None:
            await self._record_failure(error)
            return
        try:
            await self.finish()
        except JobStoreError as failure:
            await self._record_failure(failure)
            raise

    async def _record_failure(self, error: BaseException) -> None:
        """Record an error as far as that is possible: the error itself is what the caller is to see."""
        with contextlib.suppress(JobStoreError):
            await self._stack.aclose()
        with contextlib.suppress(JobStoreError):
            if isinstance(error, asyncio.CancelledError):
                self.job = await self._jobs.cancel_claimed(self.claim, "the caller was cancelled")
            else:
                self.job = await self._jobs.fail(self.claim, error)
