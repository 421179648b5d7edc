"""`store.workers`: which workers live, in every process that uses the database."""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from jobstore.aio import finish
from jobstore.clock import seconds
from jobstore.encoding import check_identifier, check_name
from jobstore.errors import InvalidArgument, JobStoreError
from jobstore.leases import LIFETIME
from jobstore.models import MAX_PRIORITY
from jobstore.operations import registering
from jobstore.operations.registering import Registration
from jobstore.overviews import WorkerInfo
from jobstore.repositories.arguments import check_range, names
from jobstore.repositories.backend import Backend

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a worker's start or end may take for it."""


class WorkerRepository:
    """The workers of a store. Reached as `store.workers`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self) -> builtins.list[WorkerInfo]:
        """Return the workers that live, in the order of their ids; at most 1,000.

        One that ends is gone from the list at once; one that was killed, stands still or is cut off, after 15 s.

        Example:
            >>> busy = [worker.id for worker in await store.workers.list() if worker.running == worker.concurrency]
        """
        return await self._backend.read(registering.live_workers)

    @asynccontextmanager
    async def registered(
        self,
        worker_id: str,
        *,
        task_types: Sequence[str] = (),
        api_types: Sequence[str] = (),
        concurrency: int = 1,
        version: str = "",
        running: Callable[[], int] = lambda: 0,
    ) -> AsyncIterator[None]:
        """List a worker meanwhile. `Worker` does so by itself; this is for workers of your own.

        That it lives is told from a thread of the store, every 5 seconds, even while the event loop is blocked. If
        the database is unwell, the worker is listed later.

        Args:
            worker_id: What it claims jobs as.
            task_types: What it has handlers for.
            api_types: The APIs that it does jobs for, whatever their task type.
            concurrency: How many jobs it runs at the same time, at most.
            version: Of its code.
            running: Returns how many it runs now; called from the store's thread.

        Raises:
            InvalidArgument: An argument cannot be accepted; it names the argument.

        Example:
            >>> async with store.workers.registered("mine", task_types=["plan"]):
            ...     await claim_and_work(store)
        """
        check_identifier("worker_id", worker_id, InvalidArgument)
        check_name("version", version, InvalidArgument)
        check_range("concurrency", concurrency, 1, MAX_PRIORITY, InvalidArgument)
        tasks, apis = (sorted(names(*each) or []) for each in (("task_types", task_types), ("api_types", api_types)))
        worker = Registration(worker_id, socket.gethostname(), os.getpid(), version, tasks, concurrency, apis)
        key = self._backend.leases.announce(worker, running)
        try:
            await self._register(worker, running())
            yield
        finally:
            await finish(self._unregister(worker, key))

    async def _register(self, worker: Registration, running: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._backend.write(registering.register, worker, running, seconds(LIFETIME))
        except (JobStoreError, TimeoutError) as error:
            logger.warning("worker %s is not listed yet: %s", worker.id, type(error).__name__)

    async def _unregister(self, worker: Registration, key: object) -> None:
        """Take a worker off the list; if that takes long, its row has its own end."""
        try:
            async with asyncio.timeout(PATIENCE):
                if not await self._backend.leases.withdraw(key):
                    await self._backend.write(registering.unregister, worker, finishing=True)
        except (JobStoreError, TimeoutError) as error:
            logger.warning("worker %s stays listed for a while: %s", worker.id, type(error).__name__)
