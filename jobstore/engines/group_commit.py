"""Group commit: writes that wait together commit together.

Callers' operations queue up; as soon as the database is free, all that wait are committed as one batch,
and each caller is answered after the commit. So one fsync serves many callers, at full durability.
Nothing here is a task: callbacks move a batch on, so no cancellation can stop it halfway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from jobstore.engines.base import Request, WriterStats, is_unsettled
from jobstore.errors import ConnectionLost, DatabaseBusy, DatabaseError, StoreClosed

logger = logging.getLogger(__name__)

MAX_WAITING_OPERATIONS = 4096
MAX_WAITING_BYTES = 64 * 2**20
MAX_BATCH_OPERATIONS = 512
MAX_BATCH_BYTES = 8 * 2**20
"""A batch is what other processes wait for: bounded here in operations and bytes, by the engine in time."""


class Committed(Protocol):
    """How a batch went, as far as the queue cares."""

    @property
    def driven(self) -> int:
        """How many of its requests were driven, from the first on; each has its value or its error."""


C = TypeVar("C", bound=Committed)


class GroupCommit(Generic[C]):
    """The queue in front of the one writer.

    Args:
        commit: Drives a batch and commits it; its future tells how many of the requests were driven, from the
            first on. If it fails, its error is every caller's.
        committed: Called after a batch is durable, before its callers are answered.
        patience: Seconds that a caller waits for a database that is out of reach. A batch is as patient as its last
            caller; when it gives up, so do those behind it who have waited as long, each in a batch of its own or not.
        joins: Whether a request may share a batch with others; one that may not is a batch of its own.
    """

    def __init__(
        self,
        commit: Callable[[list[Request]], asyncio.Future[C]],
        committed: Callable[[C, list[Request]], None],
        patience: float,
        joins: Callable[[Request], bool] = lambda _: True,
    ) -> None:
        self._commit = commit
        self._committed = committed
        self._patience = patience
        self._joins = joins
        self._deferred = 0
        self._finishing: deque[Request] = deque()
        self._ordinary: deque[Request] = deque()
        self._in_flight: list[Request] = []
        self._scheduled = False
        self._closed = self._ended = False
        self._idle: asyncio.Future[None] | None = None
        self._gate = _Gate()
        self._batches = self._operations = self._largest = 0

    async def submit(self, request: Request) -> Any:  # noqa: ANN401 - the operation's value
        """Queue a request and return its value once it is durable.

        Cancelled while queued, the request is withdrawn; cancelled later, it is carried out and its value
        goes to `request.abandoned`.
        """
        self._refuse_if_closed()
        if not request.finishing and not self._gate.entered(request.size):
            await self._wait_at_gate(request)
        future = request.future = asyncio.get_running_loop().create_future()
        self._append(request)
        try:
            return await future
        except asyncio.CancelledError:
            self._give_up(request, future)
            raise

    def submit_nowait(self, request: Request) -> None:
        """Queue a finishing request that nobody waits for, also while `close` waits for the others."""
        if not self._ended:
            self._append(request)

    async def close(self) -> None:
        """Refuse new requests and wait for those that were accepted."""
        self._closed = True
        self._gate.open_for_all()
        while self._in_flight or self._finishing or self._ordinary or self._deferred:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)
        self._ended = True

    def settle(self, request: Request) -> None:
        """Answer the caller of a request that was deferred."""
        self._deferred -= 1
        _answer(request, request.error)
        self._schedule()

    def stats(self) -> WriterStats:
        """Return the figures of now."""
        return WriterStats(
            waiting_operations=len(self._finishing) + len(self._ordinary),
            waiting_bytes=self._gate.bytes,
            blocked_callers=self._gate.blocked,
            batches=self._batches,
            operations=self._operations,
            largest_batch=self._largest,
        )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed: open it again before using it")

    async def _wait_at_gate(self, request: Request) -> None:
        try:
            await self._gate.wait(request.size)
        except asyncio.CancelledError:
            request.abandon(None)
            raise
        if self._closed:
            self._gate.leave(request.size)
            self._refuse_if_closed()

    def _append(self, request: Request) -> None:
        (self._finishing if request.finishing else self._ordinary).append(request)
        self._schedule()

    def _schedule(self) -> None:
        # Not at once: callers that were answered together shall join one batch.
        if not self._scheduled and not self._in_flight:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_batch)

    def _start_batch(self) -> None:
        self._scheduled = False
        batch = self._take()
        if not batch:
            self._tell_idle()
            return
        self._in_flight = batch
        self._commit(batch).add_done_callback(self._finish_batch)

    def _take(self) -> list[Request]:
        batch: list[Request] = []
        size = 0
        for queue in (self._finishing, self._ordinary):
            while queue and len(batch) < MAX_BATCH_OPERATIONS:
                if batch and not self._fits(batch, size, queue[0]):
                    return batch
                request = queue.popleft()
                if not request.finishing:
                    self._gate.leave(request.size)
                if request.future is not None and request.future.cancelled():
                    request.abandon(None)
                    continue
                size += request.size
                batch.append(request)
        return batch

    def _fits(self, batch: list[Request], size: int, request: Request) -> bool:
        return size + request.size <= MAX_BATCH_BYTES and self._joins(batch[0]) and self._joins(request)

    def _finish_batch(self, outcome: asyncio.Future[C]) -> None:
        batch, self._in_flight = self._in_flight, []
        error = outcome.exception()
        if error is None:
            driven = outcome.result().driven
            self._put_back(batch[driven:])
            batch = batch[:driven]
            self._batches += 1
            self._operations += driven
            self._largest = max(self._largest, driven)
            self._committed(outcome.result(), batch)
        for request in batch:
            if request.deferred and error is None:
                self._deferred += 1
            else:
                _answer(request, error or request.error)
        if isinstance(error, ConnectionLost | DatabaseBusy) and error.waited:
            self._give_up_impatient(error)
        self._schedule()

    def _give_up_impatient(self, error: DatabaseError) -> None:
        """Fail those who have waited long enough, or each batch would wait for the database anew."""
        latest = time.monotonic() - self._patience
        for queue in (self._finishing, self._ordinary):
            while queue and queue[0].since <= latest:
                request = queue.popleft()
                if not request.finishing:
                    self._gate.leave(request.size)
                _answer(request, error)

    def _put_back(self, requests: list[Request]) -> None:
        """Return what the batch had no time for to the front, in order."""
        for request in reversed(requests):
            if request.finishing:
                self._finishing.appendleft(request)
            else:
                self._gate.reenter(request.size)
                self._ordinary.appendleft(request)

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None

    def _give_up(self, request: Request, future: asyncio.Future[Any]) -> None:
        """Deal with a request whose caller was cancelled, wherever the request is by now."""
        if not future.cancelled():  # answered, but the caller never saw it
            _abandon(request, future.exception())
            return
        queue = self._finishing if request.finishing else self._ordinary
        if request in queue:
            queue.remove(request)
            if not request.finishing:
                self._gate.leave(request.size)
            request.abandon(None)


def _abandon(request: Request, error: BaseException | None) -> None:
    if error is None:
        request.abandon(request.value)
    elif not is_unsettled(error):  # else it may yet prove to have been carried out: nothing is cleared up
        request.abandon(None)


def _answer(request: Request, error: BaseException | None) -> None:
    future = request.future
    if future is None and error is not None:
        logger.warning("what nobody waited for failed (%s): leases it was to give back will end", type(error).__name__)
    if future is None or future.done():
        _abandon(request, error)
    elif error is None:
        future.set_result(request.value)
    else:
        future.set_exception(error)


class _Gate:
    """Back-pressure: admits callers in order while there is room for their operations and bytes."""

    def __init__(self) -> None:
        self.operations = 0
        self.bytes = 0
        self._blocked: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def blocked(self) -> int:
        return len(self._blocked)

    def entered(self, size: int) -> bool:
        """Enter at once, if there is room and nobody waits for it."""
        if self._blocked or not self._fits(size):
            return False
        self.reenter(size)
        return True

    async def wait(self, size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._blocked.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted, but the caller never saw it
                self.leave(size)
            elif (turn, size) in self._blocked:
                self._blocked.remove((turn, size))
                self._admit()
            raise

    def reenter(self, size: int) -> None:
        self.operations += 1
        self.bytes += size

    def leave(self, size: int) -> None:
        self.operations -= 1
        self.bytes -= size
        self._admit()

    def open_for_all(self) -> None:
        """Let everyone in: the writer is closing, and they will be refused."""
        while self._blocked:
            self._admit_first()

    def _fits(self, size: int) -> bool:
        if self.operations == 0:
            return True  # or one operation larger than the limit would wait forever
        return self.operations < MAX_WAITING_OPERATIONS and self.bytes + size <= MAX_WAITING_BYTES

    def _admit(self) -> None:
        while self._blocked and self._fits(self._blocked[0][1]):
            self._admit_first()

    def _admit_first(self) -> None:
        turn, size = self._blocked.popleft()
        if not turn.done():
            self.reenter(size)
            turn.set_result(None)
