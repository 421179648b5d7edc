"""What the tests of the adapters have in common: one way to ask, whichever SDK it goes through."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anthropic
import httpx2
import openai
import pytest
from google import genai
from google.genai.types import HttpOptions, HttpRetryOptions

from jobstore import Usage
from jobstore.providers import Adapter, Done, Event, ProviderError, Request, Text, adapter_for
from jobstore.providers.gemini import NO_RETRIES
from jobstore.testing.llm_answers import API

APIS: tuple[API, ...] = ("anthropic", "openai", "openai_chat", "gemini")
MODELS: dict[API, str] = {
    "anthropic": "claude-opus-5-5",
    "openai": "gpt-6-luna",
    "openai_chat": "gpt-6-luna",
    "gemini": "gemini-3.8-flash",
}
PRIVATE = "words that only the prompt has"
RETRIES = 5

T = TypeVar("T")


@dataclass
class Speaker:
    """An adapter with a client that would try again, if it were not told otherwise."""

    api: API
    adapter: Adapter
    client: Any

    @property
    def model(self) -> str:
        return MODELS[self.api]

    def request(self, prompt: str = PRIVATE, **fields: Any) -> Request:  # noqa: ANN401 - as a request takes them
        return Request(**{"model": self.model, "prompt": prompt, "max_tokens": 1000, **fields})

    def stream(self, prompt: str = PRIVATE, **fields: Any) -> AsyncGenerator[Event, None]:  # noqa: ANN401 - the same
        return self.adapter.stream(self.client, self.request(prompt, **fields))

    async def ask(self, prompt: str = PRIVATE, **fields: Any) -> list[Event]:  # noqa: ANN401 - the same
        return [event async for event in self.stream(prompt, **fields)]

    async def ask_and_fail(self, prompt: str = PRIVATE, **fields: Any) -> tuple[list[Event], ProviderError]:  # noqa: ANN401
        """Return what was heard before the failure, and the failure."""
        heard: list[Event] = []
        with pytest.raises(ProviderError) as failure:
            await self._listen(heard, prompt, **fields)
        assert not any(isinstance(event, Done) for event in heard)
        assert PRIVATE not in "".join(traceback.format_exception(failure.value))
        assert failure.value.provider == self.adapter.provider
        return heard, failure.value

    async def ask_whole(self) -> Any:  # noqa: ANN401 - each SDK has its own
        """Ask through the SDK itself, once and without streaming."""
        arguments = await self.adapter.arguments(self.request())
        match self.api:
            case "anthropic":
                return await self.client.with_options(max_retries=0).messages.create(**arguments)
            case "openai":
                return await self.client.with_options(max_retries=0).responses.create(**arguments)
            case "openai_chat":
                arguments["stream_options"] = None
                return await self.client.with_options(max_retries=0).chat.completions.create(**arguments)
        arguments["config"] = arguments["config"].model_copy(update={"http_options": NO_RETRIES})
        return await self.client.aio.models.generate_content(**arguments)

    async def _listen(self, heard: list[Event], prompt: str, **fields: Any) -> None:  # noqa: ANN401 - the same
        async for event in self.stream(prompt, **fields):
            heard.append(event)  # noqa: PERF401 - kept also when the next one fails


TLS = ssl.create_default_context()
"""Made once: each client would make one of its own, which takes longer than most tests."""


@asynccontextmanager
async def speaking(api: API, url: str, timeout: float = 60.0, version: str = "v1") -> AsyncIterator[Speaker]:
    """Yield an adapter with its client, which waits for so many seconds and is closed in the end."""
    http: Any
    client: Any
    if api == "gemini":
        retries = HttpRetryOptions(attempts=RETRIES, initial_delay=0.01)
        options: dict[str, Any] = {"api_version": version, "retry_options": retries, "timeout": round(timeout * 1000)}
        with httpx2.Client(verify=TLS) as unused:
            async with httpx2.AsyncClient(verify=TLS) as http:
                clients: dict[str, Any] = {"httpx_client": unused, "httpx_async_client": http}
                client = genai.Client(api_key="any", http_options=HttpOptions(base_url=url, **options, **clients))
                yield Speaker(api, adapter_for(api), client)
        return
    options = {"api_key": "any", "max_retries": RETRIES, "timeout": timeout}
    if api == "anthropic":
        http = anthropic.DefaultAsyncHttpxClient(verify=TLS)
        client = anthropic.AsyncAnthropic(base_url=url, http_client=http, **options)
    else:
        http = openai.DefaultAsyncHttpxClient(verify=TLS)
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", http_client=http, **options)
    async with client:
        yield Speaker(api, adapter_for(api), client)


def of_type(events: list[Event], kind: type[T]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in of_type(events, Text))


def usage_of(events: list[Event]) -> Usage:
    return of_type(events, Usage)[-1]


def done_of(events: list[Event]) -> Done:
    [done] = of_type(events, Done)
    assert events[-1] is done
    return done


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return data as one chunk of a chunked response; an empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def raw_server(*pieces: bytes) -> AsyncIterator[str]:
    """Say raw bytes to whoever asks, close the connection, and yield the URL for it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield "http://127.0.0.1:{1}".format(*listening.sockets[0].getsockname())
