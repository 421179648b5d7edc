"""What a store promises of its texts holds as well when they lie in object storage: the same tests, run there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobstore import JobStore
from jobstore.testing import FakeClock
from tests.conformance.test_streaming import *  # noqa: F403
from tests.conformance.test_texts import *  # noqa: F403
from tests.outputs.conftest import ObjectStorage
from tests.outputs.test_cancellation import *  # noqa: F403
from tests.outputs.test_reading import *  # noqa: F403

del test_an_answer_is_streamed_and_read_in_parts_with_little_memory  # noqa: F821 - it would count the server's memory


@pytest.fixture
async def store(database: Path, clock: FakeClock, storage: ObjectStorage) -> AsyncIterator[JobStore]:
    """A store as in the other tests, whose large texts lie in object storage."""
    async with JobStore(database, migrate=True, clock=clock, outputs=storage.url) as store:
        yield store
