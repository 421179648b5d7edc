"""Calls of an SDK that the program makes through a recorded client: each has a job, and each try a row of the ledger.

The recording is a task of its own. The program's call waits for it where it must, before a request is sent and after
the response has ended, and never longer than `PATIENCE`; nothing that happens here reaches it. Only one that is strict
waits for all of it, and is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import httpx2

from jobstore.errors import StoreClosed
from jobstore.providers.asked import Asked
from jobstore.providers.base import Adapter
from jobstore.providers.common import presentable
from jobstore.providers.errors import ProviderError
from jobstore.providers.events import Event, Sending
from jobstore.providers.exchanges import Exchange, Left, listening
from jobstore.providers.recording import CallRecorder, hear_out
from jobstore.providers.registry import adapter_for
from jobstore.providers.rereading import reread
from jobstore.repositories.answers import AttemptAnswer

if TYPE_CHECKING:
    from jobstore.store import JobStore

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a call waits for its recording at most, at either end: then it goes on, and the recording follows."""

T = TypeVar("T")


class Refused(BaseException):
    """A call is not made, since it cannot be recorded: no `Exception`, for SDKs would try those again."""


@dataclass
class Recorder:
    """What the calls of a recorded client, and of its copies, have in common.

    Attributes:
        troubles: How many calls could not be recorded whole.
    """

    store: JobStore
    task_type: str
    session_id: str | None
    strict: bool
    troubles: int = 0

    async def record(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call of the SDK, however often that tries, and record it.

        Raises:
            JobStoreError: It cannot be recorded whole, and that is to be told.
        """
        recording = Recording(self)
        token = listening.set(recording)
        try:
            value = await call()
        except Refused:
            recording.raise_trouble()
            raise
        except BaseException as error:
            recording.close()
            recording.leave()
            if isinstance(error, Exception):
                await recording.settled()
            raise
        finally:
            listening.reset(token)
            recording.close()
        if recording.is_over:
            await recording.settled()
            recording.raise_trouble()
        return value


class Recording:
    """One call of the SDK, as it is recorded: all its exchanges, for a job of its own."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._exchanges: list[Exchange] = []
        self._waiting: asyncio.Queue[Exchange | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._trouble: Exception | None = None
        self._closed = False
        self._api_type = "a model"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be heard: the SDK has done its part, and no body is still to pass."""
        return self._closed and all(exchange.is_over for exchange in self._exchanges)

    async def begin(self, request: httpx2.Request) -> Exchange | None:
        """Return what is to be told of an exchange, when its row is written; None if nobody listens.

        Raises:
            Refused: It cannot be recorded, and so is not to be.
        """
        asked = Asked.of(request.method, request.url.path, _body(request))
        if asked is None:
            return None
        if self._task is None:
            self._api_type = asked.api_type
            self._task = asyncio.get_running_loop().create_task(self._record(asked))
        exchange = Exchange()
        self._exchanges.append(exchange)
        if self._task.done():
            exchange.hang_up()
        self._waiting.put_nowait(exchange)
        await self._patiently(exchange.begun.wait())
        if self._trouble is not None and self._recorder.strict:
            raise Refused
        return exchange

    async def ended(self, exchange: Exchange) -> None:
        """Wait until an exchange is recorded; and if it was the last, the call.

        Raises:
            JobStoreError: It could not be recorded whole, and that is to be told.
        """
        await self._patiently(self._recorded(exchange))
        if self.is_over:
            self.raise_trouble()

    def close(self) -> None:
        """Note that the SDK will not try again."""
        if not self._closed:
            self._closed = True
            self._waiting.put_nowait(None)

    def leave(self) -> None:
        """Note that nobody has got a response that is still to be read."""
        for exchange in self._exchanges:
            exchange.leave_rest()

    async def settled(self) -> None:
        """Wait until the job has ended."""
        if self._task is not None:
            await self._patiently(asyncio.wait([self._task]))

    async def _end_early(self) -> None:
        """Record what was heard until now, because the store is about to close."""
        goes_on = not self._closed
        self.close()
        self.leave()
        await self.settled()
        if goes_on and self._trouble is None:
            self._note_trouble(StoreClosed("the store was closed while the call was under way: close it after"))

    def _note_trouble(self, error: Exception) -> None:
        self._trouble = error
        self._recorder.troubles += 1
        logger.warning("a call to %s could not be recorded whole: %s", self._api_type, type(error).__name__)

    def raise_trouble(self) -> None:
        """Tell what went wrong, if that is wanted.

        Raises:
            JobStoreError: What did.
        """
        if self._trouble is not None and self._recorder.strict:
            raise self._trouble

    async def _recorded(self, exchange: Exchange) -> None:
        await exchange.heard.wait()
        if self.is_over:
            await self.settled()

    async def _patiently(self, recording: Awaitable[object]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if self._recorder.strict else PATIENCE):
                await recording

    async def _record(self, asked: Asked) -> None:
        try:
            with self._recorder.store.calls.ended_with_store(self._end_early):
                await self._record_job(asked)
        except (ProviderError, asyncio.CancelledError):
            pass  # how the call ended: that is recorded, and the program's own to bear
        except Exception as error:  # noqa: BLE001 - whatever it is, the call goes on
            self._note_trouble(error)
        finally:
            for exchange in self._exchanges:
                exchange.hang_up()

    async def _record_job(self, asked: Asked) -> None:
        recorder = self._recorder
        async with recorder.store.jobs.record(
            asked.prompt,
            task_type=recorder.task_type,
            api_type=asked.api_type,
            model_used=asked.model,
            session_id=recorder.session_id,
            metadata={"request": asked.rest} if asked.rest else None,
        ) as call:
            failure: BaseException | None = None
            while (exchange := await self._waiting.get()) is not None:
                failure = await self._hear(call.answer, exchange, asked)
            if failure is not None:
                raise failure

    async def _hear(self, answer: AttemptAnswer, exchange: Exchange, asked: Asked) -> BaseException | None:
        """Record one exchange, and return why it brought no complete answer, if so."""
        adapter = adapter_for(asked.adapter)
        calls = self._recorder.store.calls
        row = CallRecorder(calls, answer.claim, adapter.provider, asked.model, flavor=adapter.flavor)
        texts = hear_out(answer, row, _events(exchange, adapter, streamed=asked.streamed))
        try:
            async with aclosing(texts):
                async for _ in texts:
                    pass
        except (ProviderError, asyncio.CancelledError) as failure:
            return failure
        finally:
            exchange.hang_up()
        return None


async def _events(exchange: Exchange, adapter: Adapter, *, streamed: bool) -> AsyncGenerator[Event, None]:
    """Yield what an exchange tells, beginning with that it is about to be made.

    Raises:
        ProviderError: It brought no complete answer.
        CancelledError: The same, because the program did not wait for it.
    """
    yield Sending()
    exchange.begun.set()
    try:
        response = await exchange.copied()
    except Left:
        raise asyncio.CancelledError from None
    except Exception as error:  # noqa: BLE001 - HTTP clients raise what they like
        raise adapter.translate(error) from presentable(error)
    try:
        async with aclosing(reread(adapter, response, streamed=streamed)) as events:
            async for event in events:
                yield event
    except ProviderError:
        if exchange.is_cut and response.is_success:
            raise asyncio.CancelledError from None
        raise


def _body(request: httpx2.Request) -> bytes:
    """Return what a request says; nothing of one that is itself a stream, such as an upload."""
    try:
        return request.content
    except httpx2.RequestNotRead:
        return b""
