"""What the repositories of one open store share: its engine, its outputs folder and its leases."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from uuid_utils import uuid7

from jobstore.aio import finish, in_thread, together
from jobstore.disk import DiskGuard
from jobstore.encoding import encode_text
from jobstore.engines import base
from jobstore.engines.base import Abandoned, Engine, Request, StoreStats
from jobstore.engines.signal import Signal
from jobstore.errors import OutputError, OutputTooLarge, StoreClosed
from jobstore.leases import LeaseKeeper
from jobstore.models import Text
from jobstore.operations import migrations
from jobstore.outputs import MAX_OUTPUT_BYTES, Kind, OutputFile, Outputs, Place, open_outputs
from jobstore.repositories.settlements import Settlements
from jobstore.sql import MakeOperation

T = TypeVar("T")


def new_id() -> str:
    """Return a new UUIDv7: in the order of time, within a process strictly."""
    return str(uuid7())


def is_unsettled(error: BaseException) -> bool:
    """Whether a write that ended so may yet have been carried out; cancelled, the engine tells how it ended."""
    return base.is_unsettled(error) or isinstance(error, asyncio.CancelledError)


_UNGUARDED = DiskGuard([], 0)


class Backend:
    """An open store's parts, usable in the process and event loop that opened it.

    Args:
        engine: Drives the operations.
        outputs_place: Where large texts lie; None if nobody has said.
        inline_limit: Bytes up to which a text stays in its row.
        max_output_bytes: Bytes that one answer may have.
        disk: Keeps some room for what is under way.

    Attributes:
        to_end_first: Ends what still writes by itself, before the store closes.
    """

    def __init__(
        self,
        engine: Engine,
        outputs_place: Place | None,
        inline_limit: int,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        disk: DiskGuard = _UNGUARDED,
    ) -> None:
        self.engine = engine
        self.inline_limit = inline_limit
        self.settlements = Settlements()
        self.max_output_bytes = max_output_bytes
        self._disk = disk
        self._leases = LeaseKeeper(engine)
        self._outputs_place = outputs_place
        self._outputs: Outputs | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self.to_end_first: set[Callable[[], Coroutine[Any, Any, None]]] = set()
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._closed = False

    async def open(self, check: MakeOperation[[], None]) -> None:
        """Connect, and find the outputs.

        Raises:
            DatabaseError: The database cannot be used.
            OutputError: The outputs are another store's, or cannot be reached.
        """
        await self.engine.open(check)
        try:
            await self._find_outputs()
            await self._disk.look()
        except BaseException:
            await finish(self.engine.close())
            raise

    async def close(self) -> None:
        """Finish what was accepted, then release everything."""
        self.check_usable()
        await together([end() for end in list(self.to_end_first)])
        self._closed = True
        await self._leases.close()
        await self.engine.close()
        while self._background:
            await asyncio.wait(self._background)

    def check_usable(self) -> None:
        """Check that this is where the store was opened.

        Raises:
            StoreClosed: It is closed, or belongs to another process or event loop.
        """
        if self._process != os.getpid():
            raise StoreClosed("this store was opened before a fork: open one of its own in the new process")
        if self._closed:
            raise StoreClosed("the store is closed: open it again before using it")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            raise StoreClosed("this store belongs to another event loop: open one in the loop that uses it")

    def write(
        self,
        make_operation: MakeOperation[..., T],
        *args: Any,  # noqa: ANN401 - the operation's own
        size: int = 0,
        finishing: bool = False,
        wakes: bool = False,
        abandoned: Abandoned | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Run an operation that may write, atomically, and return its value once it is durable; see `Request`."""
        self.check_usable()
        return self.engine.write(
            Request(make_operation, args, size=size, finishing=finishing, wakes=wakes, abandoned=abandoned)
        )

    def write_soon(
        self,
        make_operation: MakeOperation[..., Any],
        *args: Any,  # noqa: ANN401 - the operation's own
        wakes: bool = False,
        abandoned: Abandoned | None = None,
    ) -> None:
        """Queue a finishing operation that nobody waits for; `close` waits for it."""
        self.engine.write_soon(Request(make_operation, args, finishing=True, wakes=wakes, abandoned=abandoned))

    def read(self, make_operation: MakeOperation[..., T], *args: Any) -> Coroutine[Any, Any, T]:  # noqa: ANN401
        """Run an operation that only reads."""
        self.check_usable()
        return self.engine.read(make_operation, *args)

    async def wait(self, signal: Signal, since: int, timeout: float | None) -> int:
        """Wait as `Engine.wait` tells.

        Raises:
            StoreClosed: The store was closed, before or meanwhile.
        """
        self.check_usable()
        count = await self.engine.wait(signal, since, timeout)
        self.check_usable()
        return count

    def require_room(self) -> None:
        """Refuse to begin anything new while a disk is nearly full, as of a look about a second ago.

        The next look is made in the background: callers that come together shall go on together, in their order.

        Raises:
            DiskLow: One was.
            StoreClosed: It is closed, or belongs to another process or event loop.
        """
        self.check_usable()  # before anything is begun in a loop that is not this one
        if self._disk.is_due:
            self._in_background(self._disk.look())
        self._disk.require_room()

    @property
    def leases(self) -> LeaseKeeper:
        """What keeps the leases of this process's own claims alive."""
        self.check_usable()
        return self._leases

    @property
    def has_outputs(self) -> bool:
        """Whether somebody has said where the large texts lie."""
        return self._outputs is not None

    @property
    def outputs(self) -> Outputs:
        """The large texts.

        Raises:
            OutputError: Nobody has said where it is.
        """
        if self._outputs is None:
            raise OutputError("a text is, or may become, too large for its row: open the store with outputs=<a folder>")
        return self._outputs

    def stats(self) -> StoreStats:
        """Return the engine's figures."""
        self.check_usable()
        return self.engine.stats()

    async def store_text(self, field: str, kind: Kind, job_id: str, text: str) -> Text:
        """Return a text as it is to be stored, written to a file already if it is too large for its row.

        Raises:
            InvalidJob: It cannot be stored.
            OutputTooLarge: It is an answer, and larger than one may be.
            DiskFull: There is no room for its file.
            OutputError: Its file cannot be written.
        """
        data = encode_text(field, text)
        if kind == "responses" and len(data) > self.max_output_bytes:
            raise OutputTooLarge(self.max_output_bytes)
        if self.fits_row(data):
            return Text(text, size=len(data))
        self.check_usable()
        return await self._in_thread_or_undo(lambda: self.outputs.write(kind, job_id, data), self._discard_text)

    def fits_row(self, data: bytes) -> bool:
        """Return whether a text, given as UTF-8, may lie in its row."""
        return len(data) <= self.inline_limit and (self.engine.dialect.holds_nul or b"\0" not in data)

    def write_text(
        self,
        text: Text,
        column: str,
        make_operation: MakeOperation[..., T],
        *args: Any,  # noqa: ANN401 - the operation's own
        finishing: bool = False,
        wakes: bool = False,
    ) -> Coroutine[Any, Any, T]:
        """Run the operation that records a text, and remove the text's file if the row did not take it.

        Args:
            text: From `store_text`.
            column: The attribute of the operation's value that names the file.
            make_operation: Makes the operation.
            *args: Passed to it.
            finishing: As for `write`.
            wakes: As for `write`.
        """
        if text.inline is not None:
            return self.write(make_operation, *args, size=len(text.inline), finishing=finishing, wakes=wakes)
        write = partial(self.write, make_operation, *args, finishing=finishing, wakes=wakes)
        return self._write_spilled(text.file_path, column, write)

    async def _write_spilled(self, path: str | None, column: str, write: Callable[..., Coroutine[Any, Any, T]]) -> T:
        def settle(value: T | None) -> None:
            if value is None or getattr(value, column) != path:
                self.discard([path or ""])

        try:
            value = await write(abandoned=settle)
        except BaseException as error:
            if not is_unsettled(error):
                settle(None)
            raise
        settle(value)
        return value

    async def create_output(self, job_id: str) -> tuple[Text, OutputFile]:
        """Create a file to stream a response into."""
        return await self._in_thread_or_undo(lambda: self.outputs.create(job_id), self._discard_output)

    def discard(self, paths: list[str]) -> None:
        """Remove files that no row names any more, in the background; `close` waits for it.

        Where nobody has said in which folder they lie, they are left to a sweep of a store that knows.
        """
        if self._outputs is None:
            return
        self._in_background(in_thread(self._outputs.remove, paths))

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for; `close` does."""
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _find_outputs(self) -> None:
        if self._outputs_place is None:
            return
        store_id = await self.engine.read(migrations.store_id)
        self._outputs = await in_thread(open_outputs, self._outputs_place, store_id, self.engine.clock)

    async def _in_thread_or_undo(self, work: Callable[[], T], undo: Callable[[T], None]) -> T:
        """Run blocking work in a thread; if the caller is cancelled meanwhile, undo what it did."""
        done: list[T] = []
        try:
            await in_thread(lambda: done.append(work()))
        except BaseException:
            for value in done:
                undo(value)
            raise
        return done[0]

    def _discard_text(self, text: Text) -> None:
        self.discard([text.file_path or ""])

    def _discard_output(self, created: tuple[Text, OutputFile]) -> None:
        text, file = created
        file.close()
        self._discard_text(text)
