"""Streaming a response: pieces are buffered, and written in a thread, soon and in their order."""

from __future__ import annotations

import asyncio
import contextlib
import time

from jobstore.aio import finish, in_thread
from jobstore.encoding import encode_text
from jobstore.errors import JobStoreError, OutputError, OutputTooLarge
from jobstore.outputs.base import MAX_OUTPUT_BYTES, OutputFile

FLUSH_SECONDS, FLUSH_BYTES = 0.25, 8 * 1024
"""What is written to an output reaches its file after this long or this much, whichever is first."""
SYNC_SECONDS = 1.0
MAX_BUFFERED = 1024 * 1024
"""Bytes; a writer that is ahead of the storage by more than this waits."""


class OutputWriter:
    """Streams a response: in its file within 250 ms or 8 KB, and durable within a second.

    In object storage both happen at once: within a second, and the time that an upload takes.

    Args:
        file: Where to.
        limit: Bytes that it may have.

    Attributes:
        noted: How many bytes the attempt's row says that it has.

    Example:
        >>> async with store.jobs.output(claim) as output:
        ...     await output.write("one piece")
    """

    def __init__(self, file: OutputFile, limit: int = MAX_OUTPUT_BYTES) -> None:
        self.noted = 0
        self._file = file
        self._left = limit
        self._limit = limit
        self._buffer = bytearray()
        self._error: BaseException | None = None
        self._something = asyncio.Event()  # there is something to write, or it is the end
        self._enough = asyncio.Event()  # there is enough to write at once, or it is the end
        self._drained = asyncio.Event()
        self._closing = False
        self._flusher = asyncio.get_running_loop().create_task(self._flush_until_closed())

    @property
    def path(self) -> str:
        """Where the text lies, relative to the outputs folder."""
        return self._file.path

    @property
    def size(self) -> int:
        """How many bytes a reader finds there by now."""
        return self._file.size

    async def write(self, text: str) -> None:
        """Add a piece of text; return when it is buffered.

        Raises:
            InvalidJob: It holds a lone surrogate; nothing of it was taken.
            OutputTooLarge: With it, the text would be too large. Nothing of it was taken, nor will be of what follows:
                there would be a gap. What was written before is kept.
            DiskFull: The disk has no room for what was written before.
            OutputError: It could not be written for another reason, or the output is closed.
        """
        data = encode_text("text", text)
        self._raise_if_failed()
        if self._closing:
            raise OutputError("this output is closed", self._file.path)
        if len(data) > self._left:
            self._error = OutputTooLarge(self._limit, self._file.path)
            raise self._error
        self._left -= len(data)
        self._buffer += data
        self._something.set()
        if len(self._buffer) >= FLUSH_BYTES:
            self._enough.set()
        while len(self._buffer) > MAX_BUFFERED:
            self._drained.clear()
            await self._drained.wait()
            self._raise_if_failed()

    def flush_soon(self) -> None:
        """Let what is written next reach the file at once: it has waited elsewhere."""
        self._enough.set()

    async def close(self) -> None:
        """Write the rest, make it durable and close the file, also when cancelled.

        Raises:
            DiskFull: There is no room for it.
            OutputTooLarge: A piece of it was refused.
            OutputError: It could not be written for another reason.
        """
        self._closing = True
        self._something.set()
        self._enough.set()
        await finish(self._wait_for_flusher())
        self._raise_if_failed()

    async def _wait_for_flusher(self) -> None:
        await asyncio.wait([self._flusher])

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    async def _flush_until_closed(self) -> None:
        try:
            await self._flush_loop()
        except JobStoreError as error:
            self._error = error
        except BaseException:
            self._error = OutputError("the output was interrupted: its last piece may be missing", self._file.path)
            raise
        finally:
            self._drained.set()
            self._file.close()

    async def _flush_loop(self) -> None:
        synced_at, dirty = time.monotonic(), False
        while True:
            until_sync = max(0.0, synced_at + SYNC_SECONDS - time.monotonic())
            await _wait(self._something, until_sync if dirty else None)
            await _wait(self._enough, min(FLUSH_SECONDS, until_sync) if dirty else FLUSH_SECONDS)
            closing = self._closing
            data, self._buffer = self._buffer, bytearray()
            if not closing:
                self._something.clear()
                self._enough.clear()
            dirty = dirty or bool(data)
            syncs = dirty and (closing or time.monotonic() >= synced_at + SYNC_SECONDS)
            if data or syncs:
                await in_thread(self._save, data, syncs=syncs)
            self._drained.set()
            if syncs:
                synced_at, dirty = time.monotonic(), False
            if closing:
                return

    def _save(self, data: bytearray, *, syncs: bool) -> None:
        self._file.append(data)
        if syncs:
            self._file.sync()


async def _wait(event: asyncio.Event, timeout: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
