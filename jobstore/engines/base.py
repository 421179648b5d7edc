"""What every engine offers, whatever database it drives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from jobstore.engines.signal import Signal
from jobstore.errors import ConnectionLost, DiskFailed, DiskFull
from jobstore.overviews import Space
from jobstore.sql import Dialect, MakeOperation, is_guarded

logger = logging.getLogger(__name__)

T = TypeVar("T")

Abandoned = Callable[[Any], None]
"""Called when the caller was cancelled: with the value if the operation was carried out all the same, else None."""


def is_unsettled(error: BaseException) -> bool:
    """Whether a write that ended so may yet have been carried out, so that its files must stay.

    After a failed sync, only the next start of a process would show it; without a server, nobody can look.
    """
    if isinstance(error, DiskFull):
        return False
    return isinstance(error, DiskFailed | ConnectionLost)


class Request:
    """One caller's operation that may write, on its way through a batch.

    The engine sets `value` or `error` while it drives the batch; they count once the batch is durable. Or it sets
    `deferred`, and settles the request by itself. `since` is when its caller began to wait, as `time.monotonic` has it.

    Args:
        make_operation: Makes a fresh operation; called again if a batch has to be driven again.
        args: Passed to it after the present time.
        size: About how many bytes wait with it, for the back-pressure limit.
        finishing: It ends or renews claims: not held back, and ahead of other work.
        wakes: Its commit may make something claimable.
        abandoned: What to do if the caller is cancelled meanwhile, once it is known how the operation ended.
    """

    __slots__ = (
        "abandoned", "args", "deferred", "error", "finishing", "future", "make_operation", "since", "size", "value",
        "wakes",
    )  # fmt: skip

    def __init__(
        self,
        make_operation: MakeOperation[..., Any],
        args: tuple[Any, ...],
        *,
        size: int = 0,
        finishing: bool = False,
        wakes: bool = False,
        abandoned: Abandoned | None = None,
    ) -> None:
        self.make_operation = make_operation
        self.args = args
        self.size = size
        self.finishing = finishing
        self.wakes = wakes
        self.abandoned = abandoned
        self.future: asyncio.Future[Any] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.deferred = False
        self.since = time.monotonic()

    @property
    def guarded(self) -> bool:
        """Whether its statements may run in turns with those of other operations; see `jobstore.sql.guarded`."""
        return is_guarded(self.make_operation, self.args)

    def abandon(self, value: Any) -> None:  # noqa: ANN401 - the operation's value
        """Tell that the caller was cancelled, with the value if the operation was carried out all the same."""
        if self.abandoned is None:
            return
        try:
            self.abandoned(value)
        except Exception:  # the others of the batch are still to be answered
            logger.exception("clearing up after a cancelled caller failed")


class WriterStats(BaseModel):
    """Figures of the one writer since the store was opened."""

    model_config = ConfigDict(frozen=True)

    waiting_operations: int
    """Operations that wait in front of the writer now."""
    waiting_bytes: int
    blocked_callers: int
    """Callers that wait for room in front of the writer now (back-pressure)."""
    batches: int
    operations: int
    largest_batch: int


class PoolStats(BaseModel):
    """Figures of the pool of reading connections."""

    model_config = ConfigDict(frozen=True)

    size: int
    open: int
    in_use: int
    waiting: int
    """Callers that wait for a connection now."""
    timeouts: int
    reads: int


class WakeStats(BaseModel):
    """Figures of the signals that there may be work."""

    model_config = ConfigDict(frozen=True)

    waiting: int
    """Callers that wait for a change now."""
    own: int
    """Batches of this process that may have made work."""
    foreign: int
    """Times that another process's commits were noticed."""


def wake_stats(changes: Signal, work: Signal, foreign: int) -> WakeStats:
    """Return the figures of an engine's signals, `foreign` of which came from elsewhere."""
    return WakeStats(waiting=changes.waiting + work.waiting, own=work.count - foreign, foreign=foreign)


class StoreStats(BaseModel):
    """What `store.stats()` returns."""

    model_config = ConfigDict(frozen=True)

    writer: WriterStats
    pool: PoolStats
    wake: WakeStats


class Snapshot(Protocol):
    """One moment of a database, as several operations see it."""

    async def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads."""


class Engine(Protocol):
    """Drives operations on one database."""

    dialect: Dialect
    """The facts in which databases differ."""
    changes: Signal
    """Notified after every commit, of any process."""
    work: Signal
    """Notified when there may be something new to claim."""

    @property
    def clock(self) -> Callable[[], int]:
        """The present time in milliseconds, as operations are given it."""

    async def open(self, check: MakeOperation[[], None]) -> None:
        """Connect, and let `check` read the database and refuse it before anything is changed.

        Raises:
            DatabaseError: It is not possible; the message says what to do.
        """

    async def close(self) -> None:
        """Finish what was accepted, then release everything. Closing twice is fine."""

    async def write(self, request: Request) -> Any:  # noqa: ANN401 - the operation's value
        """Run an operation that may write, atomically, and return its value once it is durable."""

    def write_soon(self, request: Request) -> None:
        """Queue a finishing operation that nobody waits for; `close` waits for it."""

    async def write_aside(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation past the queue, from any thread's event loop."""

    async def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads, on one snapshot."""

    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """Hold one snapshot for several operations, for as long as it takes.

        Raises:
            PoolTimeout: No reading connection became free in time.
        """

    async def wait(self, signal: Signal, since: int, timeout: float | None) -> int:
        """Wait until a signal's count differs from `since` or `timeout` seconds pass; return its count."""

    async def space(self) -> Space:
        """Return what the database takes."""

    def overwriting(self) -> AbstractAsyncContextManager[None]:
        """Overwrite meanwhile what is deleted.

        Raises:
            InvalidArgument: The database cannot do that.
        """

    def vacuum(self, tables: Sequence[str], *, spare: int, secure: bool) -> AsyncGenerator[None, None]:
        """Give space back that holds nothing, beside anything, in steps that hold nobody up for long.

        Args:
            tables: Those of the store, for a database that vacuums each by itself.
            spare: End when no more than so many bytes are free.
            secure: Raise unless nothing that was deleted is left in the database.

        Raises:
            InvalidArgument: The database cannot do that, now or ever.
            DatabaseError: It failed. What was given back stays so.
        """

    def stats(self) -> StoreStats:
        """Return the figures of now."""
