"""What a handler is given: its job, and ways to stream the answer and to tell how it gets on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

from pydantic import JsonValue

from jobstore import Claim, Job, JobStore, Usage
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
        self._stack = AsyncExitStack()
        self._output: OutputWriter | None = None
        self._opening = asyncio.Lock()

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
            if self._output is None:
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
        """Make what was streamed durable. The worker calls this when the handler has ended."""
        await self._stack.aclose()
