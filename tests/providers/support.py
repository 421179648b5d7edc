"""What the tests of the adapters have in common: one way to ask, whichever SDK it goes through."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from anthropic import AsyncAnthropic
from google import genai
from google.genai.types import HttpOptions, HttpRetryOptions
from openai import AsyncOpenAI

from jobstore import Usage
from jobstore.providers import Adapter, Done, Event, ProviderError, Request, Text, adapter_for
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

    async def _listen(self, heard: list[Event], prompt: str, **fields: Any) -> None:  # noqa: ANN401 - the same
        async for event in self.stream(prompt, **fields):
            heard.append(event)  # noqa: PERF401 - kept also when the next one fails


@asynccontextmanager
async def speaking(api: API, url: str, timeout: float = 60.0) -> AsyncIterator[Speaker]:
    """Yield an adapter with its client, which is closed in the end; it waits for so many seconds."""
    adapter = adapter_for(api)
    if api == "gemini":
        retries = HttpRetryOptions(attempts=RETRIES, initial_delay=0.01)
        options = HttpOptions(base_url=url, retry_options=retries, timeout=round(timeout * 1000))
        gemini = genai.Client(api_key="any", http_options=options)
        yield Speaker(api, adapter, gemini)
        await gemini.aio.aclose()
        gemini.close()
        return
    client: AsyncAnthropic | AsyncOpenAI
    if api == "anthropic":
        client = AsyncAnthropic(api_key="any", base_url=url, max_retries=RETRIES, timeout=timeout)
    else:
        client = AsyncOpenAI(api_key="any", base_url=f"{url}/v1", max_retries=RETRIES, timeout=timeout)
    async with client:
        yield Speaker(api, adapter, client)


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
