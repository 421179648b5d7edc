"""The README's table of failures is what is seen: with each SDK, and on each engine."""

from __future__ import annotations

import pytest

from jobstore import JobStore
from jobstore.testing import FakeClock
from jobstore.testing.llm_answers import API
from tests.conformance.conftest import database, outputs, store
from tests.providers.support import APIS
from tests.recording import failures

__all__ = ["database", "outputs", "store"]  # fixtures

EACH = [("sqlite", api) for api in APIS] + [("postgres", "anthropic")]


@pytest.mark.parametrize(("database", "api"), EACH, indirect=["database"])
async def test_the_readme_tells_what_becomes_of_each_failure(store: JobStore, clock: FakeClock, api: API) -> None:
    async with failures.setting(store, clock) as scene:
        assert failures.table(await failures.look(scene, api)) == failures.written()
