"""`store.migrations`: which steps of the schema were applied."""

from __future__ import annotations

from collections.abc import Sequence

from jobstore.migrate import Step, pending_steps
from jobstore.models import AppliedMigration
from jobstore.operations import migrations
from jobstore.repositories.backend import Backend


class MigrationRepository:
    """The steps of the schema. Reached as `store.migrations`."""

    def __init__(self, backend: Backend, steps: Sequence[Step]) -> None:
        self._backend = backend
        self._steps = steps

    async def applied(self) -> list[AppliedMigration]:
        """Return the steps that were applied, in order."""
        return await self._backend.read(migrations.applied)

    async def pending(self) -> list[str]:
        """Return the names of the steps that were not; of an open store, none unless someone changed it."""
        return [step.name for step in pending_steps(self._steps, await self.applied())]
