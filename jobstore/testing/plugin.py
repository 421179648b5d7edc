"""Fixtures for pytest, there wherever jobstore is installed: a store of the test's own, its clock, an LLM server.

pytest loads this in every run, so it imports what the fixtures need when they are asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jobstore import JobStore
    from jobstore.testing import FakeClock, LLMServer


def _async_fixture(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a fixture for pytest-asyncio, in whichever of its modes, or else for anyio's plugin."""
    try:
        import pytest_asyncio  # noqa: PLC0415 - whichever is there
    except ImportError:
        return pytest.fixture(function)
    return pytest_asyncio.fixture(function)


@pytest.fixture
def jobstore_clock() -> FakeClock:
    """The clock of `jobstore_store`: it stands still until `jobstore_clock.advance(seconds)`."""
    from jobstore.testing import FakeClock  # noqa: PLC0415 - see above

    return FakeClock()


@_async_fixture
async def jobstore_store(tmp_path: Path, jobstore_clock: FakeClock) -> AsyncIterator[JobStore]:
    """An open, empty store in a folder of the test's own."""
    from jobstore import JobStore  # noqa: PLC0415 - see above

    async with JobStore(tmp_path / "jobs.db", migrate=True, clock=jobstore_clock) as store:
        yield store


@_async_fixture
async def jobstore_llm_server() -> AsyncIterator[LLMServer]:
    """A local server that speaks an LLM's protocol; needs `pip install "jobstore[testing]"`."""
    from jobstore.testing import LLMServer  # noqa: PLC0415 - see above

    async with LLMServer() as server:
        yield server
