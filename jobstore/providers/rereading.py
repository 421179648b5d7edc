"""Copies of responses, read once more by the SDK that they are for: it knows best what they mean.

A client of each SDK asks a transport that, instead of sending anything, gives the copy. So errors, streams and
encodings are understood as they are for the program itself, which reads the original meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import httpx2

from jobstore.providers.base import Adapter, Answer
from jobstore.providers.common import presentable
from jobstore.providers.errors import ProviderError
from jobstore.providers.events import Event, Responded

_NOWHERE = "http://copy.invalid"
_KEY = "none"
_REQUEST_IDS = ("request-id", "x-request-id")

_copy: ContextVar[httpx2.Response] = ContextVar("jobstore_copied_response")


async def reread(adapter: Adapter, response: httpx2.Response, *, streamed: bool) -> AsyncGenerator[Event, None]:
    """Yield what a response tells, `Responded` first and `Done` last.

    Args:
        adapter: Understands what the SDK makes of it.
        response: A copy that nobody else reads.
        streamed: Whether the answer was asked for as a stream.

    Raises:
        ProviderError: There is no complete answer in it.
    """
    answer = adapter.answer()
    answer.request_id = next((response.headers[name] for name in _REQUEST_IDS if name in response.headers), None)
    _copy.set(response)
    try:
        said = await _ASK[adapter.name](streamed)
        if response.is_success:  # Google's SDK tells otherwise only with the first event
            yield Responded(response.status_code, answer.request_id)
        async for heard in _heard(answer, said, streamed=streamed):
            yield heard
    except ProviderError:
        raise
    except Exception as error:  # noqa: BLE001 - SDKs let through whatever an unexpected response leads to
        if not answer.is_complete:
            raise adapter.translate(error, answer.request_id) from presentable(error)
    yield answer.done()


async def _heard(answer: Answer, said: Any, *, streamed: bool) -> AsyncGenerator[Event, None]:  # noqa: ANN401
    if not streamed:
        for heard in answer.read(said):
            yield heard
        return
    async for event in said:
        for heard in answer.hear(event):
            yield heard
        if answer.error is not None and not answer.is_complete:
            raise answer.error


class _Copies(httpx2.AsyncBaseTransport):
    """Answers with the copy that the task reads."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:  # noqa: ARG002 - sent nowhere
        return _copy.get()


def _http() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=_Copies())


async def _anthropic(streamed: bool) -> Any:  # noqa: ANN401, FBT001 - a message or a stream of its events
    from anthropic import AsyncAnthropic, AsyncStream  # noqa: PLC0415 - only for those who use it
    from anthropic.types import Message, RawMessageStreamEvent  # noqa: PLC0415

    def make() -> AsyncAnthropic:
        # The program's own client has its spans already.
        knows_spans = "open_telemetry" in inspect.signature(AsyncAnthropic).parameters
        options: dict[str, Any] = {"open_telemetry": False} if knows_spans else {}
        return AsyncAnthropic(api_key=_KEY, base_url=_NOWHERE, http_client=_http(), max_retries=0, **options)

    kind = AsyncStream[RawMessageStreamEvent]
    client = _client("anthropic", make)
    return await client.post("/v1/messages", cast_to=Message, body={}, stream=streamed, stream_cls=kind)


async def _openai(streamed: bool) -> Any:  # noqa: ANN401, FBT001 - the same
    from openai import AsyncStream  # noqa: PLC0415
    from openai.types.responses import Response, ResponseStreamEvent  # noqa: PLC0415

    kind: Any = AsyncStream[ResponseStreamEvent]
    return await _openai_client().post("/responses", cast_to=Response, body={}, stream=streamed, stream_cls=kind)


async def _openai_chat(streamed: bool) -> Any:  # noqa: ANN401, FBT001 - the same
    from openai import AsyncStream  # noqa: PLC0415
    from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: PLC0415

    kind = AsyncStream[ChatCompletionChunk]
    path = "/chat/completions"
    return await _openai_client().post(path, cast_to=ChatCompletion, body={}, stream=streamed, stream_cls=kind)


def _openai_client() -> Any:  # noqa: ANN401 - it has overloads for what is constant here
    from openai import AsyncOpenAI  # noqa: PLC0415

    return _client("openai", lambda: AsyncOpenAI(api_key=_KEY, base_url=_NOWHERE, http_client=_http(), max_retries=0))


async def _gemini(streamed: bool) -> Any:  # noqa: ANN401, FBT001 - the same
    from google import genai  # noqa: PLC0415
    from google.genai.types import HttpOptions  # noqa: PLC0415

    def make() -> genai.Client:
        unused = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(404)))
        options = HttpOptions(base_url=_NOWHERE, httpx_client=unused, httpx_async_client=_http())
        return genai.Client(api_key=_KEY, enterprise=False, http_options=options)

    models = _client("gemini", make).aio.models
    ask: Any = models.generate_content_stream if streamed else models.generate_content
    return await ask(model="any", contents="any", config={"automatic_function_calling": {"disable": True}})


_ASK: dict[str, Callable[[bool], Awaitable[Any]]] = {
    "anthropic": _anthropic,
    "openai": _openai,
    "openai_chat": _openai_chat,
    "gemini": _gemini,
}
_clients: dict[str, Any] = {}


def _client(sdk: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - each SDK has its own
    """Return the one client that reads copies for an SDK: it holds no connection."""
    if sdk not in _clients:
        _clients[sdk] = make()
    return _clients[sdk]
