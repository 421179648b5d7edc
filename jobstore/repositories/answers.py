"""The answer of one attempt while it comes into being: its text, streamed into the outputs, and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from jobstore.errors import AnswerUnfinished, InvalidArgument
from jobstore.models import Claim, Usage
from jobstore.outputs import OutputWriter

if TYPE_CHECKING:
    from jobstore.repositories.job_work import JobWork


class AttemptAnswer:
    """What an attempt has of its answer.

    Attributes:
        claim: The attempt.
        usage: What the models took for it, of all its calls; None if none has told.
        metadata: What the job's is to have besides.
        broken: Why what was streamed is not the whole answer of a model; None if nothing is known against it.
    """

    def __init__(self, jobs: JobWork, claim: Claim) -> None:
        self.claim = claim
        self.usage: Usage | None = None
        self.metadata: dict[str, Any] = {}
        self.broken: Exception | None = None
        self._jobs = jobs
        self._output: OutputWriter | None = None
        self._stack: AsyncExitStack | None = None  # made with the output: most jobs need neither
        self._opening = asyncio.Lock()
        self._streams: list[AsyncGenerator[str, None]] = []

    async def write(self, text: str) -> None:
        """Add a piece of the text; return when it is buffered.

        Raises:
            InvalidJob: It cannot be stored.
            LeaseLost: The attempt has ended.
            DiskFull: There is no room for it.
            OutputError: It cannot be written.
        """
        async with self._opening:
            if self._output is None:
                self._stack = AsyncExitStack()
                self._output = await self._stack.enter_async_context(self._jobs.output(self.claim))
        await self._output.write(text)

    async def progress(self, status_message: str, usage: Usage | None) -> None:
        """Tell how the answer gets on.

        Raises:
            LeaseLost: The attempt has ended.
        """
        await self._jobs.progress(self.claim, status_message=status_message, usage=usage)

    def begin(self) -> None:
        """Note that a model begins to answer: until `end`, what is streamed is no whole answer.

        Raises:
            InvalidArgument: What an earlier stream left unfinished would be a part of this answer.
        """
        if self.broken is not None and self._output is not None:
            raise InvalidArgument("stream", "what an earlier stream wrote before it broke off would be a part of this")
        self.broken = AnswerUnfinished(self.claim.job_id, self.claim.attempt)

    def fail(self, error: Exception) -> None:
        """Note why a model did not come to the end of its answer."""
        self.broken = error

    def end(self, usage: Usage | None, metadata: dict[str, Any]) -> None:
        """Note that a model has come to the end of its answer."""
        self.broken = None
        self.metadata |= metadata
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage

    def closes(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """Close a stream with the answer, should its reader have left it."""
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        """End the streams, and make durable what was written.

        Raises:
            DiskFull: There is no room for it.
            OutputError: It cannot be written.
        """
        while self._streams:
            await self._streams.pop().aclose()
        if self._stack is not None:
            await self._stack.aclose()
