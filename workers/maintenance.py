"""Looking after the store beside the work: now and then, and never in its way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator

from jobstore import JobStore, JobStoreError
from jobstore.aio import finish

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def looked_after(store: JobStore, interval: float | None) -> AsyncIterator[None]:
    """Look every `interval` seconds meanwhile whether something is due, and do it; None is never."""
    if interval is None:
        yield
        return
    task = asyncio.get_running_loop().create_task(_maintain(store, interval))
    try:
        yield
    finally:
        task.cancel()
        await finish(asyncio.wait([task]))


async def _maintain(store: JobStore, interval: float) -> None:
    while True:
        # Workers that were started together do not look together.
        await asyncio.sleep(interval * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        try:
            await store.maintain()
        except JobStoreError as error:
            logger.warning("maintenance failed, trying again when it is due: %s", error)
        except Exception as error:  # noqa: BLE001 - no maintenance is worth a worker
            logger.warning("maintenance failed, trying again when it is due: %s", type(error).__name__)
