"""Object storage that cannot do everything, or is unwell: texts arrive all the same, or are refused whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobstore import JobStore, OutputError
from tests.conformance.support import SPILLED, claim, enqueue

from .conftest import ObjectStorage
from .storage_proxy import Asked, Decide, Refusal, in_front_of

LARGE = "0123456789 äöü 😀\n" * 120_000
"""Several objects."""

Behind = Callable[[Decide], None]


@pytest.fixture
def behind(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    """Put something between the store and its storage."""
    with ExitStack() as stack:

        def put(decide: Decide) -> None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", stack.enter_context(in_front_of(storage.endpoint, decide)))

        yield put


@pytest.mark.parametrize("refusal", [Refusal(501, "NotImplemented"), Refusal(400, "NotImplemented")])
async def test_a_storage_that_knows_no_conditions_takes_texts_all_the_same(
    database: Path, storage: ObjectStorage, behind: Behind, refusal: Refusal
) -> None:
    behind(lambda asked: refusal if asked.is_conditional else None)
    async with JobStore(database, migrate=True, outputs=storage.url) as store:
        job = await enqueue(store, SPILLED)
        assert await store.jobs.read_prompt(job.id) == SPILLED
    assert "some/prefix/store_id" in storage.names()


@pytest.mark.parametrize("refusal", [Refusal(500, "InternalError"), Refusal(503, "SlowDown"), Refusal(None)])
async def test_requests_that_fail_once_are_made_again_and_nothing_is_doubled(
    database: Path, storage: ObjectStorage, behind: Behind, refusal: Refusal
) -> None:
    failed: set[Asked] = set()

    def once(asked: Asked) -> Refusal | None:
        if asked in failed:
            return None
        failed.add(asked)
        return refusal

    behind(once)
    async with JobStore(database, migrate=True, outputs=storage.url) as store:
        claimed = await claim(store, await enqueue(store, LARGE))
        assert claimed.prompt == LARGE
        await store.jobs.complete(claimed, LARGE[::-1])
        assert await store.jobs.read_response(claimed.job_id) == LARGE[::-1]
        objects = -(-len(LARGE.encode()) // 2**20)
        assert len(storage.texts()) == 2 * objects
    assert {asked.method for asked in failed} >= {"GET", "PUT"}


async def test_a_storage_that_refuses_one_object_in_the_middle_leaves_no_job(
    database: Path, storage: ObjectStorage, behind: Behind
) -> None:
    behind(lambda asked: Refusal(403, "AccessDenied") if asked.path.endswith(".more/000001") else None)
    async with JobStore(database, migrate=True, outputs=storage.url) as store:
        with pytest.raises(OutputError, match="access was denied"):
            await enqueue(store, LARGE)
        assert await store.jobs.count() == 0
