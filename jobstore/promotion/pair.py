"""The two stores of a promotion: opening them, what each holds, and how far it has come."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from jobstore.aio import finish, in_thread, together
from jobstore.clock import Clock
from jobstore.databases import find_database, require_schema
from jobstore.engines.base import Snapshot
from jobstore.errors import InvalidArgument, OutputError, PromotionError
from jobstore.models import Text
from jobstore.operations import jobs, migrations, promotion
from jobstore.operations.promotion import FILES, TABLES, Table, TextFile
from jobstore.outputs import Outputs, place_of
from jobstore.progress import Progress, Tell
from jobstore.repositories.backend import Backend
from jobstore.repositories.fitting import fitted
from jobstore.sql import Row

SHOWN = 10
"""How many names an error's message lists."""
READERS = 4

Report = Tell


class Side(NamedTuple):
    """One of the two stores."""

    name: str
    """Without a password."""
    store_id: str
    backend: Backend

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str | os.PathLike[str], outputs: str | os.PathLike[str] | None, clock: Clock
    ) -> AsyncIterator[Side]:
        """Open a store, also one that is being filled and that nobody else may open."""
        database = find_database(url)
        place = outputs or database.outputs
        steps = await in_thread(database.load)
        engine = database.engine(clock, READERS, "full")
        backend = Backend(engine, None if place is None else place_of(place), jobs.INLINE_LIMIT)
        await backend.open(lambda now: require_schema(now, database, steps))
        try:
            yield cls(database.name, await backend.read(migrations.store_id), backend)
        finally:
            await finish(backend.close())


class Pair:
    """The source and the target of one run.

    Args:
        source: Copied.
        target: Filled.
        report: Called as it goes on.
    """

    def __init__(self, source: Side, target: Side, report: Report) -> None:
        self.source = source
        self.target = target
        self.columns: dict[str, list[str]] = {}
        """Of each table, in the order in which both are read."""
        self._report = report

    async def check(self, source: Snapshot) -> None:
        """Refuse what cannot be copied, before anything is written.

        Raises:
            PromotionError: Workers hold leases, or the tables have not the same columns.
            InvalidArgument: Nobody has said where large texts lie.
        """
        if holders := await source.read(promotion.holders):
            held = f"{sum(holders.values())} jobs are running, held by {some(list(holders))}"
            raise PromotionError(f"{held}: stop the workers and try again, or end their leases with --force-rescue")
        for table in TABLES:
            await self._find_columns(source, table)
        if await source.read(promotion.count_files):
            for name, side in (("source_outputs", self.source), ("target_outputs", self.target)):
                if not side.backend.has_outputs:
                    raise InvalidArgument(name, f"there are large texts: say where those of {side.name} lie")

    async def _find_columns(self, source: Snapshot, table: Table) -> None:
        here = await source.read(promotion.columns, table)
        there = await self.target.backend.read(promotion.columns, table)
        if missing := sorted(set(here) ^ set(there)):
            raise PromotionError(f"only one of the two has the columns {some(missing)} of {table.name}", (table.name,))
        self.columns[table.name] = here

    @property
    def target_outputs(self) -> Outputs:
        """Where the target's large texts are to lie.

        Raises:
            InvalidArgument: Nobody has said.
        """
        if not self.target.backend.has_outputs:
            raise InvalidArgument("target_outputs", f"there are texts that {self.target.name} cannot hold in rows")
        return self.target.backend.outputs

    def fitted(self, row: Row) -> tuple[Row, dict[str, bytes]]:
        """Return a row as the target can hold it, and the texts that it then has outside of it, by path."""
        return fitted(row, holds_nul=self.target.backend.engine.dialect.holds_nul)

    async def each_file(self, snapshot: Snapshot, stage: str, work: Callable[[TextFile], Awaitable[None]]) -> None:
        """Do something with each large text that the rows of a store name, some at a time."""
        tell = self.progress(stage, await snapshot.read(promotion.count_files))
        for number in range(len(FILES)):
            after = ""
            while found := await snapshot.read(promotion.files, number, after):
                await together([_told(work(file), tell) for file in found])
                after = found[-1].path

    def progress(self, stage: str, total: int) -> Callable[[int], None]:
        """Report that a stage begins; return what reports that it has come further."""
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self._report(Progress(stage, done, total))

        tell(0)
        return tell


async def _told(work: Awaitable[None], tell: Callable[[int], None]) -> None:
    await work
    tell(1)


def measured(outputs: Outputs, path: str) -> Text | None:
    """Read a large text; None if it cannot be, though its place is there. It blocks.

    Raises:
        OutputError: The whole place is away.
    """
    try:
        return outputs.measure(path)
    except OutputError:
        outputs.check_there(path)
        return None


def is_whole(text: Text | None, file: TextFile) -> bool:
    """Whether a large text that was read is what its row says, as far as it does."""
    if text is None or file.sha256 is None:
        return text is not None
    return (text.size, text.sha256) == (file.size, file.sha256)


def some(names: Sequence[str]) -> str:
    """Return the first of many names."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
