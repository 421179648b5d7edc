"""What a handler is given: its job, and ways to stream the answer and to tell how it gets on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any

from pydantic import JsonValue

from jobstore import Claim, Job, JobStore, LeaseLost, UnknownPolicy, Usage
from jobstore.providers import Request
from jobstore.providers.recording import ask
from jobstore.repositories.answers import AttemptAnswer


class JobContext:
    """One attempt at a job, as its handler sees it.

    Attributes:
        store: The store that the job lies in.
        claim: The lease that this attempt holds.
        answer: What there is of the answer.
    """

    def __init__(self, store: JobStore, claim: Claim) -> None:
        self.store = store
        self.claim = claim
        self.answer = AttemptAnswer(store.jobs, claim)

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
        if self.answer.closed:
            raise LeaseLost(self.claim.job_id, self.attempt)
        await self.answer.write(text)

    def stream(
        self,
        client: object,
        request: Request | None = None,
        *,
        on_unknown: UnknownPolicy = "retry",
        **fields: Any,  # noqa: ANN401 - those of a Request
    ) -> AsyncGenerator[str, None]:
        """Ask a model, stream its answer as `write` does, and yield its text as it comes; the call is recorded.

        The job is completed only if the answer came to its end; one that is left before fails the attempt as
        `unfinished_answer`. The counts, the finish reason and calls of tools become the job's, as
        `RecordedCall.stream` tells.

        Args:
            client: An `AsyncAnthropic`, an `AsyncOpenAI` or a `genai.Client`; its own retries are off here.
            request: What to ask; by default what the job says.
            on_unknown: What is to be done about the job should the process die meanwhile; see `UnknownPolicy`.
            **fields: Of the request, where the job says nothing, such as `model` or `max_tokens`.

        Raises:
            InvalidArgument: The request cannot be put to this API; nothing was sent.
            ProviderError: There is no complete answer. Raise `outcome_of(error)` for the next step that fits.
            LeaseLost: The attempt has ended: stop.

        Example:
            >>> @worker.handles("plan")
            ... async def plan(job: JobContext) -> None:
            ...     async for text in job.stream(client, model="claude-opus-5-5"):
            ...         await show(text)
        """
        return self.answer.closes(ask(self.answer, self.store.calls, client, request, on_unknown=on_unknown, **fields))

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

    async def close(self, *, keeps: bool = True) -> None:
        """End the streams, make durable what was streamed, and take no more, as `AttemptAnswer.close` tells.

        The worker calls this when the handler has ended.
        """
        await self.answer.close(keeps=keeps)


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
