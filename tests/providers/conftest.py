"""Fixtures for the adapters: the local LLM server, and the official SDKs' clients that talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from anthropic import AsyncAnthropic

from jobstore.testing import LLMServer
from jobstore.testing.llm_answers import API
from tests.providers.support import APIS, RETRIES, Speaker, speaking


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as server:
        yield server


@pytest.fixture
async def client(server: LLMServer) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key="any", base_url=server.url, max_retries=RETRIES) as client:
        yield client


@pytest.fixture(params=APIS)
async def speaker(request: pytest.FixtureRequest, server: LLMServer) -> AsyncIterator[Speaker]:
    """Each adapter in turn, with its SDK's client."""
    async with speaking(request.param, server.url) as speaker:
        yield speaker


@pytest.fixture
async def speakers(server: LLMServer) -> AsyncIterator[dict[API, Speaker]]:
    """All adapters, each with its SDK's client."""
    async with AsyncExitStack() as stack:
        yield {api: await stack.enter_async_context(speaking(api, server.url)) for api in APIS}


@pytest.fixture
async def openai(server: LLMServer) -> AsyncIterator[Speaker]:
    async with speaking("openai", server.url) as speaker:
        yield speaker


@pytest.fixture
async def openai_chat(server: LLMServer) -> AsyncIterator[Speaker]:
    async with speaking("openai_chat", server.url) as speaker:
        yield speaker


@pytest.fixture
async def gemini(server: LLMServer) -> AsyncIterator[Speaker]:
    async with speaking("gemini", server.url) as speaker:
        yield speaker
