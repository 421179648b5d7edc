"""What keeps a store in shape: applying retention, sweeping, giving space back; one process at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NamedTuple

from jobstore.aio import in_thread
from jobstore.operations import jobs, maintenance, promotion
from jobstore.overviews import Vacuumed
from jobstore.repositories import retention
from jobstore.repositories.backend import Backend, new_id

logger = logging.getLogger(__name__)

SPARE = 0.25
"""Of the file, this part may be free: it is filled again by jobs to come, and to grow costs more than to be empty."""
SPARE_BYTES = 64 * 2**20
"""And as much in any case."""

LONGEST_REST = 1.0
"""Seconds between two rounds, however long the loop was blocked."""

Breathe = Callable[[], Awaitable[None]]


class Task(NamedTuple):
    """A part of the maintenance."""

    name: str
    period: float
    """Seconds until it is due again; whoever still does it by half of that holds it for longer."""
    work: Callable[[Backend, Breathe], Coroutine[Any, Any, object]]


class HeldByAnother(Exception):
    """Another process has a task by now that this one was doing."""


async def maintain(backend: Backend) -> list[str]:
    """Do those tasks that are due and that nobody else is doing; return their names."""
    due = await backend.read(maintenance.due, [task.name for task in TASKS])
    return [task.name for task in TASKS if task.name in due and await _do(backend, task)]


async def _do(backend: Backend, task: Task) -> bool:
    turn = _Turn(backend, task)
    if not await backend.write(maintenance.take, task.name, turn.holder, turn.period):
        return False
    try:
        await task.work(backend, turn.breathe)
    except HeldByAnother:
        return False
    logger.info("maintenance: %s done", task.name)
    return True


class _Turn:
    """The right to do a task, which whoever is busy with it renews."""

    def __init__(self, backend: Backend, task: Task) -> None:
        self.holder = new_id()
        self.period = round(task.period * 1000)
        self._backend = backend
        self._task = task
        self._since = time.monotonic()
        self._held_at = backend.engine.clock()

    async def breathe(self) -> None:
        """Leave about half of the time to others, and hold the task for longer.

        Raises:
            HeldByAnother: This process stood still, and another one has it by now.
        """
        await asyncio.sleep(min(time.monotonic() - self._since, LONGEST_REST))
        now = self._backend.engine.clock()
        if now - self._held_at > self.period / 2:
            if not await self._backend.write(maintenance.hold, self._task.name, self.holder, self.period):
                raise HeldByAnother
            self._held_at = now
        self._since = time.monotonic()


async def sweep(backend: Backend, breathe: Breathe | None = None) -> int:
    """Remove large texts that no row names and that are older than a day; return how many."""
    backend.check_usable()
    removed = 0
    pages = backend.outputs.old_files()
    # Listed before the database is asked, so a text named meanwhile is found there.
    while paths := await in_thread(lambda: next(pages, None)):
        named = await backend.read(jobs.file_paths_named, paths)
        removed += await in_thread(backend.outputs.remove, [path for path in paths if path not in named])
        if breathe is not None:
            await breathe()
    return removed


async def vacuum(backend: Backend, *, secure: bool = False) -> Vacuumed:
    """Give back all that is free."""
    backend.check_usable()
    before = await backend.engine.space()
    async with aclosing(backend.engine.vacuum(_TABLES, spare=0, secure=secure)) as steps:
        async for _ in steps:
            pass
    return Vacuumed(before=before, after=await backend.engine.space())


async def _sweep_if_there(backend: Backend, breathe: Breathe) -> None:
    if backend.has_outputs:
        await sweep(backend, breathe)


async def _give_back_much(backend: Backend, breathe: Breathe) -> None:
    """Give space back if much more is free than will soon be filled again; a server does so by itself."""
    space = await backend.engine.space()
    spare = max(round(space.total * SPARE), SPARE_BYTES)
    if space.can_shrink and space.free > spare:
        async with aclosing(backend.engine.vacuum(_TABLES, spare=spare, secure=False)) as steps:
            async for _ in steps:
                await breathe()


# No `PRAGMA optimize`: the plans of all statements are pinned by tests without statistics, and need none.
TASKS = (
    Task("retention", 3600, retention.apply),
    Task("sweep", 24 * 3600, _sweep_if_there),
    Task("space", 3600, _give_back_much),
)
_TABLES = [table.name for table in promotion.TABLES]
