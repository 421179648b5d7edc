"""Fixtures for the adapters: the local LLM server, and the official SDK's client that talks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from anthropic import AsyncAnthropic

from jobstore.testing import LLMServer


@pytest.fixture
async def server() -> AsyncIterator[LLMServer]:
    async with LLMServer() as server:
        yield server


@pytest.fixture
async def client(server: LLMServer) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key="any", base_url=server.url, max_retries=5) as client:
        yield client
