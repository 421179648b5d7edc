"""Opening the store for one command, and finding a job by what was typed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobstore import InvalidArgument, JobStore

T = TypeVar("T")

_ENDING = re.compile(r"[0-9a-f-]{6,36}")
"""Up to a whole UUID, which ids of other makes may end in."""
_FIND = "SELECT id FROM background_jobs WHERE"


def run(db: str, action: Callable[[JobStore], Awaitable[T]], outputs: str | None = None) -> T:
    """Open a store, act on it and close it."""

    async def act() -> T:
        async with JobStore(db, outputs=outputs) as store:
            return await action(store)

    return asyncio.run(act())


async def find(store: JobStore, typed: str) -> str:
    """Return the id of the job that is meant: as it was typed, unless exactly one ends in it.

    Raises:
        InvalidArgument: Several do.
    """
    parameters = {"typed": typed}
    if not _ENDING.fullmatch(typed) or await store.execute(f"{_FIND} id = :typed", parameters):
        return typed
    rows = await store.execute(f"{_FIND} id LIKE '%' || :typed LIMIT 2", parameters)
    ids = [row["id"] for row in rows]
    if len(ids) > 1:
        raise InvalidArgument("ID", f"several jobs end in {typed}: give more of it")
    return ids[0] if len(ids) == 1 else typed
