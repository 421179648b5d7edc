"""One attempt at a job: runs its handler, interrupts it when it has to end, and records what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import anyio

from jobstore import (
    Claim,
    ConnectionLost,
    DatabaseBusy,
    DatabaseError,
    DiskFailed,
    Job,
    JobStatus,
    JobStore,
    JobStoreError,
    LeaseLost,
    PoolTimeout,
    ReadOnlyDatabase,
)
from jobstore.aio import finish, in_daemon_thread, is_being_cancelled
from jobstore.workers.context import JobContext, SyncJobContext
from jobstore.workers.handlers import Handler
from jobstore.workers.hooks import AttemptEvent, Hooks, Moment
from jobstore.workers.outcomes import Outcome, Retry
from jobstore.workers.retries import exponential
from jobstore.workers.tracebacks import describe

logger = logging.getLogger(__name__)

Interruption = Literal["canceled", "lost", "stopped", "timeout"]

REPORT_TRIES = 5
RETRY_SECONDS = 1.0
"""Between tries when the database is busy or away, or its disk full."""
_UNANSWERED = object()
"""What a handler has answered that was interrupted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all attempts of a worker have in common."""

    store: JobStore
    worker_id: str
    lease: float
    """Seconds."""
    cancel_grace: float
    """Seconds that a handler has to end once it is interrupted."""
    hooks: Hooks
    worker: asyncio.Task[Any]
    """Where the worker runs; when the event loop ends, it is cancelled together with the attempts."""


class Report(NamedTuple):
    """What is to be recorded of an attempt, and what the hooks are told then."""

    record: Callable[[], Awaitable[Job]]
    moment: Moment | None = None
    keeps: bool = True
    """Whether what was streamed is to lie in the outputs first; not if it is the answer, and as yet only in memory."""


class RunningAttempt:
    """An attempt under way.

    Args:
        terms: The worker's.
        claim: The lease that it holds.
        handler: What does the job.
        ended: Called once its slot is free: its outcome is recorded, or cannot be.

    Attributes:
        is_recorded: Whether the outcome is, or cannot be, and hooks are being told.
    """

    def __init__(self, terms: Terms, claim: Claim, handler: Handler, ended: Callable[[RunningAttempt], None]) -> None:
        self.claim = claim
        self.is_recorded = False
        self._terms = terms
        self._handler = handler
        self._ended: Callable[[RunningAttempt], None] | None = ended
        self._context = JobContext(terms.store, claim)
        self._lease = contextlib.ExitStack()
        self._thread: SyncJobContext | None = None
        self._scope = anyio.CancelScope()
        self._interrupted_by: Interruption | None = None
        self._handling = True
        self._timers: list[asyncio.TimerHandle] = []
        self._fencing: asyncio.Task[None] | None = None
        self._began = asyncio.get_running_loop().time()
        self._task: asyncio.Task[Any] | None = None

    def keep_lease(self) -> None:
        """Keep the lease alive until the slot is free, also while the handlers of others block the event loop.

        Raises:
            StoreClosed: The store was closed.
        """
        kept = self._terms.store.jobs.lease_kept(
            self.claim,
            lease=self._terms.lease,
            lost=partial(self.interrupt, "lost"),
            cancel_requested=partial(self.interrupt, "canceled"),
        )
        self._lease.enter_context(kept)

    async def run(self) -> None:
        """Run the handler to its end and record it, whatever happens."""
        self._task = asyncio.current_task()
        try:
            self._log(logging.INFO, "begins", event="begin")
            await self._handle_and_record()
        finally:
            self._finish()

    def interrupt(self, reason: Interruption) -> None:
        """Cancel the handler; the first reason counts. If it does not end in time, its slot is freed without it."""
        if self._interrupted_by is not None or not self._handling:
            return
        self._interrupted_by = reason
        self._scope.cancel()
        if self._thread is not None:
            self._thread.cancel()
        self._call_later(self._terms.cancel_grace, self._abandon)

    async def _handle_and_record(self) -> None:
        report = await self._handle()
        if self._fencing is not None:
            self._log(logging.WARNING, "ended too late, result dropped", event="late")
            return
        self._handling = False
        # The event loop ends, or someone has got hold of this task: what became of the job counts all the same.
        await (finish(self._record(report)) if is_being_cancelled() else self._record(report))

    async def _handle(self) -> Report:
        """Run the handler and return what is to be recorded."""
        timeout = self.claim.job.timeout or self._handler.timeout
        if timeout is not None:
            self._call_later(timeout, self.interrupt, "timeout")
        answer = _UNANSWERED
        try:
            with self._scope:
                await self._tell("claim", self.claim.job)
                if self._interrupted_by is None:  # else it is not even begun: it would cost, for nothing
                    answer = await self._call()
        except asyncio.CancelledError:
            if self._interrupted_by is not None or self._terms.worker.cancelling():
                return self._interrupted()
            # By someone else than the worker. To give it back would let it begin anew at once, over and over.
            return self._raised(Retry(reason="it, or what it awaited, was cancelled", error_type="CancelledError"))
        except BaseException as raised:
            if not self._is_in_its_task():  # nothing runs any more, and this is cleared away
                raise
            error = _alone(raised)
            if isinstance(error, Outcome):
                return self._raised(error)
            # Whatever a handler raises is its job's outcome, `sys.exit()` and panics of extensions as well: to end
            # this process by it would let the job do so in the next one, over and over.
            return self._failed(error) if self._interrupted_by is None else self._interrupted()
        if answer is _UNANSWERED or (self._thread is not None and self._thread.saw_cancelled):
            return self._interrupted()
        return self._answered(answer)

    async def _call(self) -> object:
        if self._handler.is_async:
            return await self._handler.function(self._context)
        self._thread = SyncJobContext(self._context)
        with anyio.CancelScope(shield=True):  # a thread is asked to end, and waited for
            return await in_daemon_thread(partial(self._handler.function, self._thread))
        raise AssertionError  # a scope that shields swallows nothing

    def _answered(self, answer: object) -> Report:
        jobs, claim = self._terms.store.jobs, self.claim
        if answer is not None and not isinstance(answer, str):
            message = f"the handler returned {type(answer).__name__} instead of str or None"
            return Report(partial(jobs.fail, claim, message, error_type="invalid_result"), "failure")
        known = self._context.answer
        if answer is None and known.broken is not None:  # what was streamed is none, whatever the handler made of it
            return self._failed(known.broken)

        async def complete() -> Job:
            text = await known.unopened() if answer is None else answer
            return await jobs.complete(claim, text, usage=known.usage, metadata=known.metadata or None)

        return Report(complete, "complete", keeps=answer is not None)

    def _raised(self, outcome: Outcome) -> Report:
        record = partial(outcome.report, self._terms.store.jobs, self.claim, self._wait(outcome))
        return Report(record, "failure" if outcome.is_failure else None)

    def _failed(self, error: BaseException) -> Report:
        jobs, where = self._terms.store.jobs, describe(_without_own_frames(error))
        return Report(partial(jobs.fail, self.claim, error, retry_in=self._wait(error), traceback=where), "failure")

    def _interrupted(self) -> Report:
        if self._interrupted_by == "canceled":
            return Report(partial(self._terms.store.jobs.cancel_claimed, self.claim, "canceled on request"))
        if self._interrupted_by == "timeout":
            return self._timed_out()
        if self._interrupted_by == "lost":
            return Report(self._raise_lost)
        return self._release()

    def _release(self) -> Report:
        return Report(partial(self._terms.store.jobs.release, self.claim))

    def _timed_out(self) -> Report:
        timeout = self.claim.job.timeout or self._handler.timeout
        late = Retry(reason=f"it took more than {timeout} s", error_type="timeout")
        wait = self._wait(TimeoutError(late.reason))
        return Report(partial(late.report, self._terms.store.jobs, self.claim, wait), "failure")

    def _is_in_its_task(self) -> bool:
        with contextlib.suppress(RuntimeError):  # no event loop runs
            return asyncio.current_task() is self._task
        return False

    async def _raise_lost(self) -> Job:
        raise LeaseLost(self.claim.job_id, self.claim.attempt)

    def _wait(self, error: BaseException) -> float | None:
        """Return how many seconds to wait before the next attempt, as the policy has it."""
        attempt = self.claim.job.attempts_used
        try:
            wait = self._handler.retry(attempt, error)
            if wait is None or 0 <= wait < float("inf"):
                return wait
            reason = f"it returned {wait!r}"
        except Exception as failure:  # noqa: BLE001 - it is the user's
            reason = f"it raised {type(failure).__name__}"
        logger.error("the retry policy of %s failed (%s): the default serves", self.claim.job.task_type, reason)
        return exponential()(attempt, error)

    def _abandon(self) -> None:
        """Record the interruption without waiting for the handler any longer: what it does later is refused."""
        if not self._handling or self._fencing is not None:
            return
        self._log(
            logging.WARNING,
            f"its handler goes on {self._terms.cancel_grace} s after it was interrupted ({self._interrupted_by}): its "
            "result will be dropped",
            event="fence",
        )
        self._fencing = asyncio.get_running_loop().create_task(self._fence())

    async def _fence(self) -> None:
        try:
            await finish(self._record(self._interrupted()))
        finally:
            self._finish()

    async def _record(self, report: Report) -> None:
        """Make the stream durable and record the outcome, trying again while the database is unwell."""
        for left in reversed(range(REPORT_TRIES)):
            try:
                with contextlib.suppress(Exception):  # if the stream is the answer, `complete` says so again
                    await self._context.close(keeps=report.keeps)
                job = await report.record()
            except LeaseLost:
                self._log(logging.WARNING, "lease lost, result dropped", event="lease_lost")
                await self._tell("lease_lost", self.claim.job)
            except Exception as error:  # noqa: BLE001 - also what an outcome of the user's own raises
                if left and isinstance(error, DatabaseError) and is_passing(error):
                    await anyio.sleep(RETRY_SECONDS)
                    continue
                await self._record_unrecordable(error)
            else:
                self._log_end(job)
                if report.moment is not None:
                    await self._tell(report.moment, job)
            return

    async def _record_unrecordable(self, error: Exception) -> None:
        """Put a job off whose outcome cannot be recorded, such as an answer that the disk had no room for."""
        what = f"its outcome could not be recorded ({type(error).__name__})"
        with contextlib.suppress(Exception):
            await self._context.close()
        try:
            job = await self._terms.store.jobs.fail(self.claim, error, retry_in=self._wait(error))
        except JobStoreError:
            # Without a traceback, which could show the user's text.
            self._log(logging.ERROR, f"{what}: its lease will end", event="unrecorded")
        else:
            self._log(logging.WARNING, what, event="unrecorded")
            await self._tell("failure", job)

    async def _tell(self, moment: Moment, job: Job) -> None:
        if not self._terms.hooks.has(moment):
            return
        self.is_recorded = moment != "claim"
        started = self.claim.job.started_at or self.claim.job.run_at
        event = AttemptEvent(
            worker_id=self._terms.worker_id,
            job=job,
            attempt=self.claim.attempt,
            waited=max(0.0, (started - self.claim.job.run_at).total_seconds()),
            ran=0.0 if moment == "claim" else asyncio.get_running_loop().time() - self._began,
            error_type=job.error_type,
        )
        await self._terms.hooks.tell(moment, event)

    def _log_end(self, job: Job) -> None:
        level = logging.WARNING if job.status is JobStatus.FAILED else logging.INFO
        if not logger.isEnabledFor(level):
            return
        interruption = self._interrupted_by
        reason = job.error_type or interruption
        why = f" ({reason})" if reason else ""
        ran = round(asyncio.get_running_loop().time() - self._began, 3)
        how = {"status": job.status.value, "error_type": job.error_type, "interrupted_by": interruption}
        self._log(level, f"ended: {job.status}{why}", event="end", ran_seconds=ran, **how)

    def _log(self, level: int, what: str, *, event: str, **facts: object) -> None:
        """Log a transition with its ids, and without any text of the user's."""
        if not logger.isEnabledFor(level):
            return
        job = self.claim.job
        ids = {"job_id": job.id, "attempt": job.attempt, "task_type": job.task_type, "api_type": job.api_type}
        about = {"event": event, "worker_id": self._terms.worker_id, **ids, **facts}
        logger.log(level, "job %s attempt %d %s", self.claim.job_id, self.claim.attempt, what, extra=about)

    def _call_later(self, seconds: float, function: Callable[..., None], *args: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, function, *args))

    def _finish(self) -> None:
        """Free the slot, and let go of the lease, which a handler that goes on must not hold; the first time counts."""
        self._lease.close()
        for timer in self._timers:
            timer.cancel()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended(self)


def is_passing(error: DatabaseError) -> bool:
    """Whether trying again later may help."""
    # Read-only, too: a server is while another one takes its place, and a disk until it is repaired.
    return isinstance(error, ConnectionLost | DatabaseBusy | DiskFailed | PoolTimeout | ReadOnlyDatabase)


def _alone(error: BaseException) -> BaseException:
    """Return what a group holds, if that is one: task groups wrap whatever ends them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    return error


def _without_own_frames(error: BaseException) -> BaseException:
    """Leave out of a traceback how the worker called the handler."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)
