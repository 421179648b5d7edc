"""A local HTTP server that stands in for an LLM API, so that programs can be run and tested offline, SDK included."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any, Self

from jobstore.errors import InvalidArgument, JobStoreError
from jobstore.testing.llm_answers import Answer, LLMRequest, Refusal, Script, default_answer
from jobstore.testing.llm_anthropic import Messages
from jobstore.testing.llm_chat import Chat
from jobstore.testing.llm_gemini import GenerateContent
from jobstore.testing.llm_responses import Responses
from jobstore.testing.llm_wire import Invalid, Protocol

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError("jobstore.testing.LLMServer needs a web server: pip install 'jobstore[testing]'") from error


PROTOCOLS: tuple[Protocol, ...] = (Messages(), Responses(), Chat(), GenerateContent())
IDLE_SECONDS = 3600
"""For how long a connection is kept on which nothing is asked: a request that crosses its end fails, by chance."""


class LLMServer:
    """Speaks Anthropic's, OpenAI's and Google's protocols, streamed and whole, on a free port of 127.0.0.1.

    These are Anthropic's Messages API, OpenAI's Responses API and chat completions, and the Gemini API at /v1 and
    /v1beta. It runs in the event loop that enters it, takes any key, and answers from its script; then with `answer`.

    Args:
        answer: What to reply when the script is empty; by default something derived from the prompt, and at
            least 1 MB of it when the prompt's first line asks for a long plan, whatever `max_tokens` says.
        chunk_size: Characters that a piece of a streamed answer has.
        delay: Seconds before each piece, and before an answer that is not streamed.

    Attributes:
        requests: What was asked, in order.

    Raises:
        InvalidArgument: An argument cannot be accepted; it names the argument.

    Example:
        >>> async with LLMServer() as server:
        ...     server.script(Refusal("rate_limited", retry_after=2), Answer("Hello!", ending="abort"))
        ...     anthropic = AsyncAnthropic(api_key="any", base_url=server.url)
        ...     openai = AsyncOpenAI(api_key="any", base_url=f"{server.url}/v1")
        ...     gemini = genai.Client(api_key="any", http_options=HttpOptions(base_url=server.url))
    """

    def __init__(self, answer: Script = default_answer, *, chunk_size: int = 2000, delay: float = 0.0) -> None:
        if chunk_size < 1:
            raise InvalidArgument("chunk_size", "must be 1 or more")
        if not delay >= 0:
            raise InvalidArgument("delay", "must be a number of seconds, 0 or more")
        self.answer = answer
        self.chunk_size = chunk_size
        self.delay = delay
        self.requests: list[LLMRequest] = []
        self._script: deque[Script] = deque()
        self._answering = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._request_numbers = count(1)
        self._server: uvicorn.Server | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The base URL that an SDK is to be given; OpenAI's wants `/v1` after it.

        Raises:
            JobStoreError: The server does not run.
        """
        if self._server is None:
            raise JobStoreError("the server does not run: use it inside `async with LLMServer() as server:`")
        return self._url

    def script(self, *replies: Script) -> None:
        """Let the next requests get these replies, one each, in order."""
        self._script.extend(replies)

    async def idle(self) -> None:
        """Return when nothing is being answered: all answers have ended, or their clients have gone."""
        await self._idle.wait()

    async def __aenter__(self) -> Self:
        """Start to serve."""
        # Without a log_config, uvicorn leaves the program's logging as it is.
        config = uvicorn.Config(
            self._application(), http="h11", ws="none", lifespan="off", log_config=None, timeout_keep_alive=IDLE_SECONDS
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        with contextlib.ExitStack() as undo:
            # asyncio sends at once what is written to a socket of which it knows that it is TCP's.
            listener = undo.enter_context(socket.socket(proto=socket.IPPROTO_TCP))
            listener.bind(("127.0.0.1", 0))
            await server.startup(sockets=[listener])  # `serve` would also take over the program's signal handlers
            undo.pop_all()
        self._url = "http://127.0.0.1:{1}".format(*listener.getsockname())
        self._server = server
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop at once: what is being answered is cut off."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        running = list(server.server_state.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for listening in server.servers:
            await listening.wait_closed()

    def _application(self) -> ASGIApp:
        routes = [self._route(protocol, path) for protocol in PROTOCOLS for path in protocol.paths]
        anything = Route("/{path:path}", self._refuse_unknown, methods=["GET", "POST"])
        router = Starlette(routes=[*routes, anything])

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            # Cancelled when the server is left, which uvicorn would log as a failure of the application.
            with contextlib.suppress(asyncio.CancelledError), self._counted():
                await router(scope, receive, send)

        return application

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._answering += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._answering -= 1
            if self._answering == 0:
                self._idle.set()

    def _route(self, protocol: Protocol, path: str) -> Route:
        async def endpoint(request: Request) -> ASGIApp:
            return await self._respond(protocol, request)

        return Route(path, endpoint, methods=["POST"])

    async def _respond(self, protocol: Protocol, request: Request) -> ASGIApp:
        request_id = self._new_request_id()
        try:
            asked = protocol.read(_fields(await request.body()), request.path_params)
        except Invalid as error:
            return _refusal(protocol, Refusal(400, str(error)), request_id)
        self.requests.append(asked)
        reply = await self._reply(asked)
        if isinstance(reply, Refusal):
            return _refusal(protocol, reply, request_id)
        if asked.stream:
            return self._event_stream(protocol, asked, reply, request_id)
        whole = self._whole_answer(protocol, asked, reply, request_id)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            if await self._pause(reply, receive):
                await whole(scope, receive, send)

        return respond

    def _whole_answer(self, protocol: Protocol, asked: LLMRequest, answer: Answer, request_id: str) -> ASGIApp:
        if answer.ending in {"error", "failed"}:
            return _refusal(protocol, Refusal("overloaded", error_type=answer.error_type), request_id)
        if answer.ending == "stall":
            return _stall
        if answer.ending != "ok":
            return self._hang_up
        body = json.dumps(protocol.whole(asked, answer, request_id))
        return Response(body, headers=_headers(protocol, request_id), media_type="application/json")

    async def _refuse_unknown(self, request: Request) -> ASGIApp:
        refusal = Refusal(404, f"there is no {request.method} {request.url.path} here")
        return _refusal(PROTOCOLS[0], refusal, self._new_request_id())

    async def _reply(self, asked: LLMRequest) -> Answer | Refusal:
        scripted = self._script.popleft() if self._script else self.answer
        if callable(scripted):
            made = scripted(asked)
            scripted = await made if inspect.isawaitable(made) else made
        return Answer(scripted) if isinstance(scripted, str) else scripted

    def _event_stream(self, protocol: Protocol, asked: LLMRequest, answer: Answer, request_id: str) -> ASGIApp:
        events = protocol.events(asked, answer, request_id, answer.chunk_size or self.chunk_size)
        headers = {"content-type": "text/event-stream; charset=utf-8", **_headers(protocol, request_id)}
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": raw_headers})
            for event in events:
                if not await self._pause(answer, receive):
                    return
                await send({"type": "http.response.body", "body": event, "more_body": True})
            if answer.ending == "abort":
                await self._hang_up(scope, receive, send)
            elif answer.ending == "stall":
                await _stall(scope, receive, send)
            else:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        return respond

    async def _hang_up(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - an ASGI application
        """Close the socket when what was sent has left, whatever should have followed."""
        connections = self._server.server_state.connections if self._server is not None else ()
        transports = [connection.transport for connection in connections]
        for transport in filter(lambda each: each.get_extra_info("peername") == scope["client"], transports):
            transport.close()
        await receive()  # returns when the connection is lost

    async def _pause(self, answer: Answer, receive: Receive) -> bool:
        """Wait as long as a piece takes, and return whether the client is still there."""
        delay = self.delay if answer.delay is None else answer.delay
        try:
            async with asyncio.timeout(delay):
                await _departure(receive)
        except TimeoutError:
            return True
        return False

    def _new_request_id(self) -> str:
        return f"req_{next(self._request_numbers):024d}"


async def _stall(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - an ASGI application
    """Say nothing until the client has gone."""
    await _departure(receive)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _fields(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds.

    Raises:
        Invalid: It holds none.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise Invalid("the body is not JSON") from error
    if not isinstance(fields, dict):
        raise Invalid("the body is not an object")
    return fields


def _refusal(protocol: Protocol, scripted: Refusal, request_id: str) -> Response:
    refusal, status = protocol.resolve(scripted)
    headers = {**_headers(protocol, request_id), **refusal.headers}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    body = json.dumps(protocol.error(refusal, status, request_id))
    return Response(body, status, headers, media_type="application/json")


def _headers(protocol: Protocol, request_id: str) -> dict[str, str]:
    return {} if protocol.request_id_header is None else {protocol.request_id_header: request_id}
