"""HTTP exchanges with a provider, passed on unchanged, with a copy of each response as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol, Self

import httpx2

_OF_THE_WIRE = frozenset({"content-encoding", "content-length", "transfer-encoding"})


class Left(Exception):
    """Nobody wants the rest of a response."""


class Exchange:
    """One request and its response, for whoever listens.

    Attributes:
        begun: Set when the request may be sent.
        heard: Set when the copy was read, or will not be.
        is_cut: Whether the copy was read up to where the program left the response, before its end.
        is_over: Whether all of it has passed, or none will.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.heard = asyncio.Event()
        self._response: asyncio.Future[httpx2.Response] = asyncio.get_running_loop().create_future()
        self.is_cut = False
        self.is_over = False
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def respond(self, response: httpx2.Response, *, streamed: bool) -> None:
        """Give a copy of a response; of one that is streamed, its body is told as it comes."""
        headers = response.headers
        if not streamed:  # its content is decoded already
            headers = httpx2.Headers([pair for pair in headers.multi_items() if pair[0] not in _OF_THE_WIRE])
            self.tell(response.content)
            self.end()
        if not self._response.done():
            body = _Copied(self._body())
            self._response.set_result(httpx2.Response(response.status_code, headers=headers, stream=body))

    def fail(self, error: Exception) -> None:
        """Tell that there is no response, or not all of it."""
        self.is_over = True
        if not self._response.done():
            self._response.set_exception(error)
            self._response.exception()  # also if nobody asks
        self._put(error)

    def leave(self) -> None:
        """Tell that nobody wants the rest of the response, or any of it."""
        self.fail(Left())

    def leave_rest(self) -> None:
        """The same, unless it is over."""
        if not self.is_over:
            self.leave()

    def tell(self, piece: bytes) -> None:
        """Tell the next piece of the body."""
        self._put(piece)

    def end(self) -> None:
        """Tell that the body has ended."""
        self.is_over = True
        self._put(None)

    async def copied(self) -> httpx2.Response:
        """Return the copy, as soon as there is a response.

        Raises:
            Left: Nobody waited for it.
            Exception: Why there is none.
        """
        return await asyncio.shield(self._response)

    def hang_up(self) -> None:
        """Listen no more."""
        self.begun.set()
        self.heard.set()

    async def _body(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Left):
                self.is_cut = True
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def _put(self, piece: bytes | Exception | None) -> None:
        if not self.heard.is_set():
            self._pieces.put_nowait(piece)


class _Copied(httpx2.AsyncByteStream):
    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


class Tee(httpx2.AsyncByteStream):
    """The body of a response: each piece that passes is told.

    Args:
        stream: The body.
        exchange: Is told.
        ended: Awaited once, when it has passed or is left.
    """

    def __init__(
        self, stream: httpx2.AsyncByteStream, exchange: Exchange, ended: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._ended = ended
        self._has_ended = False
        self._loop = asyncio.get_running_loop()

    def __del__(self) -> None:
        """Tell that a response was dropped, neither read nor closed."""
        if not self._exchange.is_over:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._exchange.leave_rest)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._stream:
                self._exchange.tell(piece)
                yield piece
        except Exception as error:
            self._exchange.fail(error)
            raise
        except BaseException:  # cancelled, or nobody reads on
            self._exchange.leave()
            raise
        if not self._exchange.is_over:
            self._exchange.end()
        await self._end()

    async def aclose(self) -> None:
        """Close the body; what has not passed is not wanted."""
        try:
            await self._stream.aclose()
        finally:
            self._exchange.leave_rest()
        await self._end()

    async def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            await self._ended()


class Listener(Protocol):
    """Whoever listens to the exchanges of one call of an SDK."""

    async def begin(self, request: httpx2.Request) -> Exchange | None:
        """Return what is to be told of an exchange, when its request may be sent; None of no interest."""

    async def ended(self, exchange: Exchange) -> None:
        """Wait, after an exchange, as long as is good."""


listening: ContextVar[Listener | None] = ContextVar("jobstore_listening", default=None)
"""To the call of an SDK that the task is in."""


class TappedClient(httpx2.AsyncClient):
    """Another's HTTP client, whose state and connections it shares; who listens hears what passes."""

    def __init__(self, inner: httpx2.AsyncClient, recorder: object) -> None:
        # Not the base class's: what it sets up is the other's, and found there by `__getattr__`.
        self.inner = inner
        self.recorder = recorder

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the other has
        if name in {"inner", "recorder"}:  # not set yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def is_closed(self) -> bool:
        """Whether the other is closed."""
        return self.inner.is_closed

    def build_request(self, *args: Any, **options: Any) -> httpx2.Request:  # noqa: ANN401 - as the other takes it
        """Let the other make a request."""
        return self.inner.build_request(*args, **options)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:  # noqa: ANN401 - the same
        """Let the other send a request."""
        listener = listening.get()
        exchange = None if listener is None else await listener.begin(request)
        if listener is None or exchange is None:
            return await self.inner.send(request, **options)
        try:
            response = await self.inner.send(request, **options)
        except Exception as error:
            exchange.fail(error)
            raise
        except BaseException:
            exchange.leave()
            raise
        streamed = bool(options.get("stream")) and not response.is_closed  # as one from a cache is
        if streamed and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = Tee(response.stream, exchange, lambda: listener.ended(exchange))
        exchange.respond(response, streamed=streamed)
        return response

    async def aclose(self) -> None:
        """Close the other."""
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        """Enter the other."""
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:  # noqa: ANN401, PYI036 - the other's
        """Leave the other."""
        await self.inner.__aexit__(*error)
