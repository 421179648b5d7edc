"""Large texts in object storage are copied down by a backup, and put back by restoring it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobstore import JobStore, OutputError
from jobstore.aio import in_thread
from jobstore.health import backup, reset, restore
from tests.health.conftest import LANE, LARGE, contents

if TYPE_CHECKING:
    from tests.outputs.conftest import ObjectStorage


async def fill(database: Path, url: str) -> None:
    async with JobStore(database, migrate=True, outputs=url) as store:
        await store.jobs.enqueue(LARGE, **LANE)
        [claim] = await store.jobs.claim("worker")
        await store.jobs.complete(claim, f"answer {LARGE}")


async def test_they_are_copied_down_and_put_back(database: Path, storage: ObjectStorage) -> None:
    await fill(database, storage.url)
    before = await contents(database, outputs=storage.url)
    for compress in (False, True):
        made = await in_thread(backup, database, outputs=storage.url, compress=compress)
        assert (made.texts, made.damaged) == (2, [])
        lost = await in_thread(storage.texts)
        for name in lost:
            await in_thread(storage.client.delete_object, Bucket=storage.bucket, Key=f"some/prefix/{name}")
        with pytest.raises(OutputError):
            await contents(database, outputs=storage.url)
        await in_thread(restore, made.path, database, outputs=storage.url)
        assert await contents(database, outputs=storage.url) == before
        assert await in_thread(storage.texts) == lost


async def test_another_stores_bucket_is_refused(database: Path, tmp_path: Path, storage: ObjectStorage) -> None:
    await fill(database, storage.url)
    other = tmp_path / "other.db"
    async with JobStore(other, migrate=True) as store:
        await store.jobs.enqueue(LARGE, **LANE)
    made = await in_thread(backup, other)
    for call in (
        lambda: backup(other, outputs=storage.url),
        lambda: restore(made.path, database, outputs=storage.url),
    ):
        with pytest.raises(OutputError, match="another store"):
            await in_thread(call)
    assert len(await contents(database, outputs=storage.url)) == 1


async def test_after_a_reset_the_bucket_is_still_the_stores(database: Path, storage: ObjectStorage) -> None:
    await fill(database, storage.url)
    done = await in_thread(reset, database, outputs=storage.url)
    assert done.backup is not None
    assert done.backup.texts == 2
    assert await contents(database, outputs=storage.url) == []
    async with JobStore(database, outputs=storage.url) as store:
        await store.jobs.enqueue(LARGE, **LANE)
    await in_thread(restore, done.backup.path, database, outputs=storage.url)
    [(status, prompt, response)] = await contents(database, outputs=storage.url)
    assert (status, prompt, response) == ("completed", LARGE, f"answer {LARGE}")
