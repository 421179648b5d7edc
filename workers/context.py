"""What a handler is given: its job, and ways to stream the answer and to tell how it gets on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

from pydantic import JsonValue

from jobstore import Claim, Job, JobStore, LeaseLost, Usage
from jobstore.outputs import OutputWriter


class JobContext:
    """One attempt at a job, as its handler sees it.

    Attributes:
        store: The store that the job lies in.
        claim: The lease that this attempt holds.
    """

    def __init__(self, store: JobStore, claim: Claim) -> None:
        self.store = store
        self.claim = claim
        self._output: OutputWriter | None = None
        self._stack: AsyncExitStack | None = None  # made with the output: most jobs need neither
        self._opening = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        """Name the job and the attempt."""
        return f"<JobContext {self.claim.job_id} attempt {self.attempt}>"

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self.claim.job

    @property
    def prompt(self) -> str:
        """The whole prompt, also when it lay in a file."""
        return self.claim.prompt

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1 on."""
        return self.claim.attempt

    async def write(self, text: str) -> None:
        """Stream a piece of the answer. If the handler returns None, what was streamed is the answer.

        Raises:
            InvalidJob: It cannot be stored.
            LeaseLost: The attempt has ended: stop.
            DiskFull: There is no room for it.
        """
        async with self._opening:
            if self._closed:
                raise LeaseLost(self.claim.job_id, self.attempt)
            if self._output is None:
                self._stack = AsyncExitStack()
                self._output = await self._stack.enter_async_context(self.store.jobs.output(self.claim))
        await self._output.write(text)

    async def progress(
        self,
        *,
        status_message: str | None = None,
        usage: Usage | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Tell how the job gets on; what is None stays as it is, and metadata is merged.

        Raises:
            LeaseLost: The attempt has ended: stop.
        """
        await self.store.jobs.progress(self.claim, status_message=status_message, usage=usage, metadata=metadata)

    async def close(self) -> None:
        """Make what was streamed durable, and take no more. The worker calls this when the handler has ended."""
        async with self._opening:  # a handler that was given up may be just about to stream its first piece
            self._closed = True
            if self._stack is not None:
                await self._stack.aclose()


class SyncJobContext:
    """The same for a handler that is not async, in its thread: its methods wait until they are done.

    Attributes:
        store: The store that the job lies in; it belongs to the event loop, not to this thread.
        claim: The lease that this attempt holds.
        saw_cancelled: Whether the handler has looked at `cancelled` and found that it is to stop.
    """

    def __init__(self, context: JobContext) -> None:
        self.store = context.store
        self.claim = context.claim
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self.saw_cancelled = False

    def __repr__(self) -> str:
        """Name the job and the attempt."""
        return f"<SyncJobContext {self.claim.job_id} attempt {self.attempt}>"

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self.claim.job

    @property
    def prompt(self) -> str:
        """The whole prompt, also when it lay in a file."""
        return self.claim.prompt

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1 on."""
        return self.claim.attempt

    @property
    def cancelled(self) -> bool:
        """Whether to stop: the job is to be canceled, the time is up, the lease is lost, or the worker stops.

        No thread can be ended from outside: look at this between two steps, and return or raise.
        """
        return self.wait_cancelled(0)

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Wait until `cancelled`, at most so many seconds; return whether it is: a sleep that ends in time."""
        self.saw_cancelled |= self._cancelled.wait(timeout)
        return self.saw_cancelled

    def write(self, text: str) -> None:
        """Stream a piece of the answer, as `JobContext.write` does.

        Raises:
            LeaseLost: The attempt has ended: stop.
        """
        self._wait_for(self._context.write(text))

    def progress(
        self,
        *,
        status_message: str | None = None,
        usage: Usage | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Tell how the job gets on, as `JobContext.progress` does.

        Raises:
            LeaseLost: The attempt has ended: stop.
        """
        self._wait_for(self._context.progress(status_message=status_message, usage=usage, metadata=metadata))

    def cancel(self) -> None:
        """Ask the handler to stop. The worker calls this."""
        self._cancelled.set()

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
