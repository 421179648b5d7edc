"""The worker: claims jobs for its handlers, runs them side by side, keeps their leases and reports outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from jobstore import (
    Claim,
    DatabaseBusy,
    DatabaseError,
    DiskFailed,
    InvalidArgument,
    Job,
    JobStatus,
    JobStore,
    JobStoreError,
    LeaseLost,
    PoolTimeout,
)
from jobstore.aio import in_daemon_thread
from jobstore.workers.context import JobContext
from jobstore.workers.outcomes import Outcome, Retry, backoff
from jobstore.workers.signals import heed_signals

logger = logging.getLogger(__name__)

AsyncHandler = Callable[[JobContext], Awaitable[str | None]]
SyncHandler = Callable[[JobContext], str | None]
Report = Callable[[], Awaitable[Job]]
H = TypeVar("H", bound=AsyncHandler | SyncHandler)

REPORT_TRIES = 5
RETRY_SECONDS = 1.0
"""Between tries when the database is busy or its disk full."""


@dataclass(frozen=True, slots=True)
class _Handler:
    function: AsyncHandler | SyncHandler
    timeout: float | None
    is_async: bool


@dataclass(slots=True)
class _Running:
    """One job that is being worked on."""

    claim: Claim
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    interrupted_by: str | None = None

    def interrupt(self, reason: str) -> None:
        """Cancel the handler; the first reason counts."""
        if self.interrupted_by is None:
            self.interrupted_by = reason
            self.scope.cancel()


class Worker:
    """Claims jobs and runs handlers for them until it is told to stop.

    Args:
        store: An open store.
        concurrency: How many jobs run at the same time.
        lease: Seconds until others may have a job, should this process die; renewed while it runs.
        worker_id: The name that attempts carry; by default host, process and a number.

    Example:
        >>> worker = Worker(store, concurrency=16, lease=30.0)
        >>> @worker.handles("greeting")
        ... async def greet(job: JobContext) -> str:
        ...     return "Hello!"
        >>> await worker.run(drain=True)
    """

    _count = 0

    def __init__(
        self, store: JobStore, *, concurrency: int = 16, lease: float = 30.0, worker_id: str | None = None
    ) -> None:
        if not isinstance(store, JobStore):
            raise InvalidArgument("store", f"must be an open JobStore, not {type(store).__name__}")
        if concurrency < 1:
            raise InvalidArgument("concurrency", "must be 1 or more")
        if not lease > 0:
            raise InvalidArgument("lease", "must be a number of seconds above 0")
        Worker._count += 1
        self.id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{Worker._count}"
        self.store = store
        self.concurrency = concurrency
        self.lease = lease
        self._handlers: dict[str, _Handler] = {}
        self._running: dict[tuple[str, int], _Running] = {}
        self._stopping = self._at_once = False
        self._nudge = anyio.Event()

    def handles(self, task_type: str, *, timeout: float | None = None) -> Callable[[H], H]:
        """Make a function the handler of a task type.

        An async function runs in the event loop, any other in a thread. It returns the answer, or None if it
        has streamed it; or it raises `Retry`, `Fail`, `Snooze` or `Cancel`. Any other exception is retried,
        ever later, while attempts remain.

        Args:
            task_type: Which jobs it is for.
            timeout: Seconds that an attempt may take; a job's own `timeout` goes before it.

        Raises:
            InvalidArgument: The task type has a handler already.
        """
        if not isinstance(task_type, str):
            raise InvalidArgument("task_type", 'must be a str: write @worker.handles("type of task")')
        if task_type in self._handlers:
            raise InvalidArgument("task_type", f"{task_type!r} has a handler already")

        def register(function: H) -> H:
            called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
            self._handlers[task_type] = _Handler(function, timeout, inspect.iscoroutinefunction(called))
            return function

        return register

    def stop(self, *, at_once: bool = False) -> None:
        """Claim no more; `run` returns when the running jobs have ended or the grace is over.

        Stopping twice, or before `run`, is fine.

        Args:
            at_once: Without any grace: what runs is released.
        """
        self._stopping = True
        self._at_once |= at_once
        self._nudge.set()

    async def run(self, *, drain: bool = False, grace: float = 10.0) -> None:
        """Work until SIGTERM, SIGINT or `stop()`; then finish what runs within `grace` seconds and release the rest.

        Signals are heeded in the main thread; a second one ends the grace.

        Args:
            drain: End as soon as there is nothing left to claim.
            grace: Seconds; what has not ended by then becomes idle again, and the attempt does not count.

        Raises:
            InvalidArgument: There is no handler.
            DatabaseError: The database failed for good. What ran is released if that is possible.
        """
        if not self._handlers:
            raise InvalidArgument("handles", "there is no handler: register one with @worker.handles(task_type)")
        try:
            with heed_signals(self._heed):
                async with anyio.create_task_group() as jobs:
                    await self._claim_until_stopped(jobs, drain=drain)
                    await self._wait_for_running(grace)
                    for running in self._running.values():
                        running.interrupt("stopped")
        except BaseExceptionGroup as group:
            error = _alone(group)
            raise error from error.__cause__
        finally:
            self._stopping = self._at_once = False

    def _was_stopped(self) -> bool:
        return self._stopping

    async def _claim_until_stopped(self, jobs: TaskGroup, *, drain: bool) -> None:
        while not self._was_stopped():
            self._nudge = anyio.Event()
            free = self.concurrency - len(self._running)
            if free == 0:
                await self._nudge.wait()
                continue
            token = await self.store.jobs.wake()
            claims = await self._claim(free)
            if claims is None:  # it could not be asked
                continue
            if self._was_stopped():
                await self._give_back(claims)
                return
            for claim in claims:
                running = self._running[claim.job_id, claim.attempt] = _Running(claim)
                jobs.start_soon(self._work, running)
            if claims:
                continue
            if drain and not self._running:
                return
            await self._sleep(token)

    async def _claim(self, limit: int) -> list[Claim] | None:
        """Claim, or, when the database is unwell for the moment, wait a little and return None."""
        try:
            return await self._ask(limit)
        except DatabaseError as error:
            if not _is_passing(error):
                raise
            logger.warning("worker %s cannot claim, trying again: %s", self.id, error)
            with anyio.move_on_after(RETRY_SECONDS):
                await self._nudge.wait()
            return None

    async def _ask(self, limit: int) -> list[Claim]:
        return await self.store.jobs.claim(self.id, limit=limit, lease=self.lease, task_types=list(self._handlers))

    async def _give_back(self, claims: list[Claim]) -> None:
        """Release jobs that were claimed while the order to stop came."""
        for claim in claims:
            with contextlib.suppress(JobStoreError):  # their leases will end
                await self.store.jobs.release(claim)

    async def _sleep(self, token: int) -> None:
        """Wait for new work, the end of a running job, or the order to stop."""
        async with anyio.create_task_group() as waiting:

            async def wake() -> None:
                try:
                    await self.store.jobs.wake(since=token)
                except DatabaseError as error:
                    if not _is_passing(error):
                        raise
                    await anyio.sleep(RETRY_SECONDS)
                waiting.cancel_scope.cancel()

            waiting.start_soon(wake)
            await self._nudge.wait()
            waiting.cancel_scope.cancel()

    async def _wait_for_running(self, grace: float) -> None:
        """Wait until all running jobs have ended, or the grace is over."""
        with anyio.move_on_after(grace):
            while self._running and not self._at_once:
                self._nudge = anyio.Event()
                await self._nudge.wait()

    async def _work(self, running: _Running) -> None:
        """Run a job's handler to its end and report it, whatever happens."""
        claim = running.claim
        context = JobContext(self.store, claim)
        try:
            with self.store.jobs.lease_kept(
                claim,
                lease=self.lease,
                lost=partial(running.interrupt, "lost"),
                cancel_requested=partial(running.interrupt, "canceled"),
            ):
                logger.info("job %s attempt %d begins", claim.job_id, claim.attempt)
                try:
                    report = await self._handle(running, context)
                except BaseException:
                    await self._report_shielded(claim, context, partial(self.store.jobs.release, claim))
                    raise
                await self._report_shielded(claim, context, report)
        finally:
            del self._running[claim.job_id, claim.attempt]
            self._nudge.set()

    async def _handle(self, running: _Running, context: JobContext) -> Report:
        """Run the handler and return what is to be reported."""
        jobs, claim = self.store.jobs, running.claim
        handler = self._handlers[claim.job.task_type]
        timeout = claim.job.timeout or handler.timeout
        wait = backoff(claim.job.attempts_used)
        answer: object = None
        deadline = None if timeout is None else anyio.move_on_after(timeout)
        try:
            with running.scope, deadline or contextlib.nullcontext():
                answer = await self._call(handler, context)
        except Outcome as outcome:
            return partial(outcome.report, jobs, claim, wait)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its job's outcome
            return partial(jobs.fail, claim, error, retry_in=wait)
        if running.scope.cancelled_caught:
            return self._interrupted(running)
        if deadline is not None and deadline.cancelled_caught:
            return partial(
                Retry(reason=f"it took more than {timeout} s", error_type="timeout").report, jobs, claim, wait
            )
        if answer is not None and not isinstance(answer, str):
            message = f"the handler returned {type(answer).__name__} instead of str or None"
            return partial(jobs.fail, claim, message, error_type="invalid_result")
        return partial(jobs.complete, claim, answer)

    def _interrupted(self, running: _Running) -> Report:
        jobs, claim = self.store.jobs, running.claim
        if running.interrupted_by == "canceled":
            return partial(jobs.cancel_claimed, claim, "canceled on request")
        return partial(jobs.release, claim)

    async def _call(self, handler: _Handler, context: JobContext) -> object:
        if not handler.is_async:
            # Cancelled, the thread is left to itself: what it returns is dropped.
            return await in_daemon_thread(partial(cast("SyncHandler", handler.function), context))
        try:
            return await cast("AsyncHandler", handler.function)(context)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the handler awaited was cancelled, not the handler: let through, it would look like
            # the end of the worker itself.
            raise Retry(reason="something that it awaited was cancelled", error_type="CancelledError") from None

    async def _report_shielded(self, claim: Claim, context: JobContext, report: Report) -> None:
        with anyio.CancelScope(shield=True):
            await self._report(claim, context, report)

    async def _report(self, claim: Claim, context: JobContext, report: Report) -> None:
        """Make the stream durable and record the outcome, trying again while the database is unwell."""
        for left in reversed(range(REPORT_TRIES)):
            try:
                with contextlib.suppress(JobStoreError):  # if the stream is the answer, `complete` says so again
                    await context.close()
                _log_end(claim, await report())
            except LeaseLost:
                logger.warning("job %s attempt %d: lease lost, result dropped", claim.job_id, claim.attempt)
            except JobStoreError as error:
                if left and isinstance(error, DatabaseError) and _is_passing(error):
                    await anyio.sleep(RETRY_SECONDS)
                    continue
                await self._report_unrecordable(claim, error)
            return

    async def _report_unrecordable(self, claim: Claim, error: JobStoreError) -> None:
        """Put a job off whose outcome cannot be recorded, such as an answer that the disk had no room for."""
        names = (claim.job_id, claim.attempt, type(error).__name__)
        try:
            await self.store.jobs.fail(claim, error, retry_in=backoff(claim.job.attempts_used))
        except JobStoreError:
            # Without a traceback, which could show the user's text.
            logger.error("job %s attempt %d: its outcome could not be recorded (%s): its lease will end", *names)  # noqa: TRY400
        else:
            logger.warning("job %s attempt %d: its outcome could not be recorded (%s)", *names)

    def _heed(self, number: signal.Signals) -> None:
        logger.info("worker %s stops: %s", self.id, number.name)
        self.stop(at_once=self._stopping)


def _alone(error: BaseException) -> BaseException:
    """Return the one error that task groups have wrapped; several stay together."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _log_end(claim: Claim, job: Job) -> None:
    """Log what became of a job, without any text of the user's."""
    level = logging.WARNING if job.status is JobStatus.FAILED else logging.INFO
    why = f" ({job.error_type})" if job.error_type else ""
    logger.log(level, "job %s attempt %d ended: %s%s", claim.job_id, claim.attempt, job.status, why)


def _is_passing(error: DatabaseError) -> bool:
    """Whether trying again later may help."""
    return isinstance(error, DatabaseBusy | DiskFailed | PoolTimeout)
