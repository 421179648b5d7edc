"""The answer of one attempt while it comes into being: its text, streamed into the outputs, and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, cast

from jobstore.aio import finish
from jobstore.encoding import encode_text
from jobstore.errors import AnswerUnfinished, InvalidArgument, LeaseLost
from jobstore.models import Claim, Usage
from jobstore.outputs import OutputWriter
from jobstore.outputs.writer import FLUSH_BYTES, FLUSH_SECONDS

if TYPE_CHECKING:
    from jobstore.repositories.job_work import JobWork


MAX_EARLY = 1000
"""Pieces of text that wait in memory until the output is open."""
OPEN_SECONDS = FLUSH_SECONDS - 0.05
"""After the first piece the output opens, so that it is in its file by `FLUSH_SECONDS`: opening takes milliseconds."""


class AttemptAnswer:
    """What an attempt has of its answer.

    Attributes:
        claim: The attempt.
        usage: What the models took for it, of all its calls; None if none has told.
        metadata: What the job's is to have besides.
        broken: Why what was streamed is not the whole answer of a model; None if nothing is known against it.
        closed: Whether the attempt ends, or has ended.
    """

    def __init__(self, jobs: JobWork, claim: Claim) -> None:
        self.claim = claim
        self.usage: Usage | None = None
        self.metadata: dict[str, Any] = {}
        self.broken: Exception | None = None
        self.closed = False
        self._jobs = jobs
        self._opening: asyncio.Task[OutputWriter] | None = None
        self._stack = AsyncExitStack()
        self._early: list[str] = []  # what is written before the output is open
        self._early_bytes = 0
        self._due: asyncio.TimerHandle | None = None
        self._has_text = self._has_ended = False
        self._streams: list[AsyncGeneratorType[str, None]] = []

    async def write(self, text: str) -> None:
        """Add a piece of the text; return when it is buffered.

        Raises:
            InvalidJob: It cannot be stored.
            LeaseLost: The attempt has ended.
            DiskFull: There is no room for it.
            OutputError: It cannot be written.
        """
        self._has_text = True
        writer = await _result(self.open_soon())
        await writer.write(text)

    async def write_soon(self, text: str) -> None:
        """Do the same, but open the output only when the text would reach it: a short answer needs none.

        Raises:
            InvalidJob: It cannot be stored.
            JobStoreError: As `write` raises, of what was added before.
        """
        if (self._opening is not None and self._opening.done()) or len(self._early) >= MAX_EARLY:
            await self.write(text)
            return
        self._refuse_if_closed()
        self._early_bytes += len(encode_text("text", text))
        self._has_text = True
        self._early.append(text)
        if self._early_bytes >= FLUSH_BYTES:
            self.open_soon()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(OPEN_SECONDS, self.open_soon)

    def open_soon(self) -> asyncio.Task[OutputWriter]:
        """Begin to open the output, if that is not done.

        Raises:
            LeaseLost: The answer is closed.
        """
        if self._opening is None or _has_failed(self._opening):
            self._refuse_if_closed()
            self._cancel_due()
            self._opening = asyncio.get_running_loop().create_task(self._open())
        return self._opening

    def _refuse_if_closed(self) -> None:
        if self.closed:  # a handler that was given up is just about to stream its first piece
            raise LeaseLost(self.claim.job_id, self.claim.attempt)

    async def unopened(self) -> str | None:
        """Return the answer if nothing of it is in the outputs, nor will be by itself; else None, once it is there.

        Raises:
            JobStoreError: As `flush` raises.
        """
        self._cancel_due()
        await self.flush()
        if self._opening is not None or not (self._has_text or self._has_ended):
            return None
        return "".join(self._early)

    def _cancel_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    async def _open(self) -> OutputWriter:
        writer = await self._stack.enter_async_context(self._jobs.output(self.claim))
        if self._early:
            writer.flush_soon()
        while self._early:  # in their order: who writes meanwhile adds to the end
            await writer.write(self._early.pop(0))
        return writer

    async def flush(self) -> None:
        """Wait until what was written is on its way into the output.

        Raises:
            LeaseLost: The attempt has ended.
            DiskFull: There is no room for it.
            OutputError: The output cannot be opened.
        """
        if self._opening is not None:
            await _result(self._opening)

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
        if self.broken is not None and self._has_text:
            raise InvalidArgument("stream", "what an earlier stream wrote before it broke off would be a part of this")
        self.broken = AnswerUnfinished(self.claim.job_id, self.claim.attempt)

    def fail(self, error: Exception) -> None:
        """Note why a model did not come to the end of its answer."""
        self.broken = error

    def end(self, usage: Usage | None, metadata: dict[str, Any]) -> None:
        """Note that a model has come to the end of its answer."""
        self.broken = None
        self._has_ended = True
        self.metadata |= metadata
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage

    def closes(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """Close a stream with the answer, should its reader have left it."""
        self._streams.append(cast("AsyncGeneratorType[str, None]", stream))
        return stream

    async def close(self, *, keeps: bool = True) -> None:
        """End the streams, make durable what was written, and take no more; whether it could be opened, `flush` tells.

        Args:
            keeps: Whether what has not come to the outputs is to lie there; the answer itself need not, once recorded.

        Raises:
            DiskFull: There is no room for it.
            OutputError: It cannot be written.
        """
        while self._streams:
            stream = self._streams.pop()
            if not stream.ag_running:  # else a reader that does not end is still in it
                await stream.aclose()
        self._cancel_due()
        self.closed = True
        if keeps and self._early and self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        if self._opening is not None:
            await finish(_wait(self._opening))
            _has_failed(self._opening)  # of which who wrote has heard
        await self._stack.aclose()


def _has_failed(opening: asyncio.Task[OutputWriter]) -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


async def _result(opening: asyncio.Task[OutputWriter]) -> OutputWriter:
    """Return what a task opens; cancelled, wait for its end all the same, so that nothing opens behind one's back."""
    if not opening.done():
        await finish(_wait(opening))
    return opening.result()


async def _wait(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
