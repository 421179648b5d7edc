"""Copies a whole store into another, of any engine: from SQLite to PostgreSQL, and back.

Rows are copied from one snapshot of the source, page by page, each made the same in the target; then the large texts.
What is there already is compared, not copied again, so an interrupted copy goes on where it ended. Then all of the
source is read once more and compared with all of the target: only if both are the same may the target be used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from jobstore.aio import finish, in_thread, together
from jobstore.clock import Clock, system_clock
from jobstore.databases import Database, find_database, require_schema
from jobstore.engines.base import Snapshot
from jobstore.errors import ConstraintFailed, InvalidArgument, OutputError, PromotionError
from jobstore.models import Text
from jobstore.operations import jobs, migrations, promotion
from jobstore.operations.promotion import FILES, TABLES, Key, Table, TextFile, key_of
from jobstore.outputs import Outputs, place_of
from jobstore.outputs.paths import path_of
from jobstore.repositories.backend import Backend, new_id
from jobstore.sql import Row

SHOWN = 10
"""How many differences an error's message names."""


class TableSum(BaseModel):
    """What a table holds, the same in both stores."""

    model_config = ConfigDict(frozen=True)

    rows: int
    sha256: str
    """Of all rows in the order of their key."""


class Promotion(BaseModel):
    """What was copied and found to be the same in both stores."""

    model_config = ConfigDict(frozen=True)

    source: str
    target: str
    """Without passwords."""
    changed: bool
    """False if the target had been finished before: then it was only compared."""
    tables: dict[str, TableSum]
    files: int
    """Large texts that were read back and are what their rows say."""
    bytes: int
    damaged: list[str]
    """Paths of large texts that are missing or damaged in the source, and were left out."""


class Progress(NamedTuple):
    """How far one stage has come."""

    stage: str
    done: int
    total: int


Report = Callable[[Progress], None]


async def promote(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_outputs: str | os.PathLike[str] | None = None,
    target_outputs: str | os.PathLike[str] | None = None,
    force_rescue: bool = False,
    leave_damaged: bool = False,
    report: Report = lambda _progress: None,
    clock: Clock = system_clock,
) -> Promotion:
    """Copy a store into an empty one: sessions, jobs, attempts, state and large texts, with their ids, times and paths.

    Interrupted, it is called again and goes on. Called again after it has finished, it only compares. Programs that
    use the source are to be stopped before: what they change meanwhile is found at the end, and refused. The target
    cannot be opened until all of it is there.

    Args:
        source: The store to copy, a path or a URL as for `JobStore`.
        target: The store to fill, of the same schema; it is to be migrated and empty.
        source_outputs: Where the source's large texts lie, as for `JobStore`.
        target_outputs: Where the target's are to lie.
        force_rescue: End the leases that workers hold on jobs of the source: they are claimed again, from the target.
        leave_damaged: Copy the rows whose large texts are missing or damaged in the source, without those texts.
        report: Called as it goes on.
        clock: The present time in milliseconds.

    Raises:
        PromotionError: Workers hold leases; or the target is not empty; or texts are missing in the source; or the two
            are not the same at the end.
        InvalidArgument: An argument cannot be accepted.
        DatabaseError: One of the databases cannot be used.
        OutputError: One of the places of large texts cannot be used.

    Example:
        >>> await promote("jobs.db", "postgresql://me@db.example/jobs", target_outputs="s3://bucket/prefix")
    """
    async with _opened(source, source_outputs, clock) as origin, _opened(target, target_outputs, clock) as destination:
        copying = _Copying(origin, destination, report)
        return await copying.run(force_rescue=force_rescue, leave_damaged=leave_damaged)


class _Side(NamedTuple):
    name: str
    store_id: str
    backend: Backend


@asynccontextmanager
async def _opened(
    url: str | os.PathLike[str], outputs: str | os.PathLike[str] | None, clock: Clock
) -> AsyncIterator[_Side]:
    """Open one of the two, which may be a target that is not yet finished."""
    database: Database = find_database(url)
    place = outputs or database.outputs
    steps = await in_thread(database.load)
    backend = Backend(
        database.engine(clock, 4, "full"), None if place is None else place_of(place), inline_limit=jobs.INLINE_LIMIT
    )
    await backend.open(lambda now: require_schema(now, database, steps))
    try:
        yield _Side(database.name, await backend.read(migrations.store_id), backend)
    finally:
        await finish(backend.close())


class _Copying:
    """One run of a promotion.

    Args:
        source: Copied.
        target: Filled.
        report: Called as it goes on.
    """

    def __init__(self, source: _Side, target: _Side, report: Report) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._run_id = new_id()
        self._columns: dict[str, list[str]] = {}
        self._damaged: list[str] = []

    async def run(self, *, force_rescue: bool, leave_damaged: bool) -> Promotion:
        """Copy what is missing, compare everything, and open the target for use."""
        if self._source.store_id == self._target.store_id:
            raise InvalidArgument("target", "is the source itself: name another database")
        state = await self._target.backend.read(promotion.state)
        finished = state is not None and state.finished
        if not finished:
            if force_rescue:
                await self._end_leases()
            async with self._source.backend.engine.snapshot() as snapshot:
                await self._prepare(snapshot)
                await self._target.backend.write(promotion.begin, self._source.store_id, self._run_id)
                await self._copy(snapshot)
            self._refuse_damaged(leave_damaged)
            self._damaged.clear()  # found again by the comparison
        result = await self._compare(finished=finished, leave_damaged=leave_damaged)
        if not finished:
            await self._target.backend.write(promotion.finish, self._run_id)
        return result

    async def _end_leases(self) -> None:
        while await self._source.backend.read(promotion.holders):
            await self._source.backend.write(promotion.end_leases)

    async def _prepare(self, snapshot: Snapshot) -> None:
        """Refuse what cannot be copied, before anything is written."""
        if holders := await snapshot.read(promotion.holders):
            held = f"{sum(holders.values())} jobs are running, held by {_some(list(holders))}"
            raise PromotionError(f"{held}: stop the workers and try again, or end their leases with --force-rescue")
        for table in TABLES:
            await self._find_columns(snapshot, table)
        if await snapshot.read(promotion.count_files):
            for name, side in (("source_outputs", self._source), ("target_outputs", self._target)):
                if not side.backend.has_outputs:
                    raise InvalidArgument(name, f"there are large texts: say where those of {side.name} lie")

    async def _find_columns(self, snapshot: Snapshot, table: Table) -> None:
        source = await snapshot.read(promotion.columns, table)
        target = await self._target.backend.read(promotion.columns, table)
        if missing := sorted(set(source) ^ set(target)):
            raise PromotionError(f"only one of the two has the columns {_some(missing)} of {table.name}", (table.name,))
        self._columns[table.name] = source

    async def _copy(self, snapshot: Snapshot) -> None:
        for table in TABLES:
            tell = self._progress(f"copying {table.name}", await snapshot.read(promotion.count, table))
            after: Key | None = None
            while rows := await snapshot.read(promotion.page, table, self._columns[table.name], after):
                after = await self._copy_rows(table, rows, after)
                tell(len(rows))
        await self._each_file(snapshot, "copying large texts", self._copy_file)

    async def _copy_rows(self, table: Table, rows: Sequence[Row], after: Key | None) -> Key:
        """Make the target's rows of a page the same; return the page's last key."""
        names, last = self._columns[table.name], key_of(table, rows[-1])
        there = await self._target.backend.read(promotion.between, table, names, after, last)
        known = {key_of(table, row): row for row in there}
        missing = []
        for row in rows:
            fitted, texts = self._fitted(row)
            for path, data in texts.items():
                await in_thread(_write_text, self._target_outputs(), path, data)
            if known.get(key_of(table, row)) != fitted:
                missing.append(fitted)
        if missing:
            try:
                await self._target.backend.write(promotion.put, self._run_id, table, names, missing)
            except ConstraintFailed as error:
                message = f"the target has {table.name} that the source lacks: choose an empty target"
                raise PromotionError(message, (table.name,)) from error
        return last

    def _fitted(self, row: Row) -> tuple[Row, dict[str, bytes]]:
        """Return a row as the target can hold it, and the texts that it then has outside of it, by path."""
        if self._target.backend.engine.dialect.holds_nul:
            return row, {}
        fitted, texts = dict(row), {}
        for kind, column, file, file_columns in _TEXT_COLUMNS:
            text = row.get(column)
            if isinstance(text, str) and "\0" in text:
                data = text.encode()
                digest = hashlib.sha256(data).hexdigest()
                path = path_of(kind, row["id"], digest[:16])
                fitted |= {column: file, **dict(zip(file_columns, (path, len(data), digest), strict=True))}
                texts[path] = data
        return fitted, texts

    async def _copy_file(self, file: TextFile) -> None:
        if not await in_thread(_copy_text, file, self._source.backend.outputs, self._target_outputs()):
            self._damaged.append(file.path)

    def _refuse_damaged(self, leave_damaged: bool) -> None:  # noqa: FBT001
        if self._damaged and not leave_damaged:
            raise PromotionError(
                f"{len(self._damaged)} large texts are missing or damaged in the source ({_some(self._damaged)}): "
                "restore them from a backup, or go on without them with --leave-damaged",
                tuple(self._damaged),
            )

    async def _compare(self, *, finished: bool, leave_damaged: bool) -> Promotion:
        """Read all of both stores.

        Raises:
            PromotionError: They are not the same.
        """
        compared = _Compared()
        async with (
            self._source.backend.engine.snapshot() as source,
            self._target.backend.engine.snapshot() as target,
        ):
            await self._prepare(source)
            for table in TABLES:
                await self._compare_table(source, target, table, compared)

            async def compare(file: TextFile) -> None:
                await self._compare_file(source, file, compared, remove=not finished)

            await self._each_file(target, "comparing large texts", compare)
        self._refuse_damaged(leave_damaged)
        if compared.differences:
            raise PromotionError(_difference(compared.differences, finished=finished), tuple(compared.differences))
        return Promotion(
            source=self._source.name,
            target=self._target.name,
            changed=not finished,
            tables=compared.tables,
            files=compared.files,
            bytes=compared.bytes,
            damaged=self._damaged,
        )

    async def _compare_table(self, source: Snapshot, target: Snapshot, table: Table, compared: _Compared) -> None:
        total = await source.read(promotion.count, table) + await target.read(promotion.count, table)
        tell = self._progress(f"comparing {table.name}", total)
        expected = await self._sum(source, table, tell, lambda row: self._fitted(row)[0])
        found = await self._sum(target, table, tell, lambda row: row)
        if found == expected:
            compared.tables[table.name] = found
        else:
            compared.differences.append(table.name)

    async def _sum(
        self, snapshot: Snapshot, table: Table, tell: Callable[[int], None], fit: Callable[[Row], Row]
    ) -> TableSum:
        names, count, digest = self._columns[table.name], 0, hashlib.sha256()
        after: Key | None = None
        while rows := await snapshot.read(promotion.page, table, names, after):
            await in_thread(_add, digest, names, map(fit, rows))
            after = key_of(table, rows[-1])
            count += len(rows)
            tell(len(rows))
        return TableSum(rows=count, sha256=digest.hexdigest())

    async def _compare_file(self, source: Snapshot, file: TextFile, compared: _Compared, *, remove: bool) -> None:
        text = await in_thread(_measured, self._target_outputs(), file.path)
        whole = text is not None and _is_whole(text, file)
        if text is not None and whole and file.sha256 is None:
            whole = _is_same(text, await in_thread(_measured, self._source.backend.outputs, file.path))
        if text is not None and whole:
            compared.files += 1
            compared.bytes += text.size or 0
        elif await self._is_damaged(source, file):
            self._damaged.append(file.path)
        else:
            compared.differences.append(file.path)
            if remove:  # so that it is copied again the next time
                await in_thread(self._target_outputs().remove, [file.path])

    async def _is_damaged(self, source: Snapshot, file: TextFile) -> bool:
        """Whether a text that is not what it should be in the target is no better in the source."""
        if not await source.read(jobs.file_paths_named, [file.path]):
            return False  # it lies in its row there
        text = await in_thread(_measured, self._source.backend.outputs, file.path)
        return text is None or not _is_whole(text, file)

    async def _each_file(self, snapshot: Snapshot, stage: str, work: Callable[[TextFile], Awaitable[None]]) -> None:
        """Do something with each large text that the rows of a store name, some at a time."""
        tell = self._progress(stage, await snapshot.read(promotion.count_files))
        for number in range(len(FILES)):
            after = ""
            while found := await snapshot.read(promotion.files, number, after):
                await together([_told(work(file), tell) for file in found])
                after = found[-1].path

    def _progress(self, stage: str, total: int) -> Callable[[int], None]:
        """Report that a stage begins; return what reports that it has come further."""
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self._report(Progress(stage, done, total))

        tell(0)
        return tell

    def _target_outputs(self) -> Outputs:
        if not self._target.backend.has_outputs:
            raise InvalidArgument("target_outputs", f"there are texts that {self._target.name} cannot hold in rows")
        return self._target.backend.outputs


class _Compared:
    """What a comparison has found so far."""

    def __init__(self) -> None:
        self.tables: dict[str, TableSum] = {}
        self.files = self.bytes = 0
        self.differences: list[str] = []


_TEXT_COLUMNS = (
    ("prompts", "prompt", "", ("prompt_file_path", "prompt_bytes", "prompt_sha256")),
    ("responses", "response", None, ("output_file_path", "output_bytes", "output_sha256")),
)
"""Of a job: where its texts lie, what their columns hold when they lie elsewhere, and what says where."""


async def _told(work: Awaitable[None], tell: Callable[[int], None]) -> None:
    await work
    tell(1)


def _add(digest: Any, names: Sequence[str], rows: Iterator[Row]) -> None:  # noqa: ANN401 - hashlib's type has no name
    for row in rows:
        digest.update(json.dumps([row[name] for name in names], default=bytes.hex).encode() + b"\n")


class _SourceDamaged(Exception):
    """A large text of the source cannot be read."""


def _write_text(target: Outputs, path: str, data: bytes) -> None:
    """Write a text that came from a row, unless it is there. It blocks."""
    if target.size(path) != len(data):
        target.copy_in(path, [data])


def _copy_text(file: TextFile, source: Outputs, target: Outputs) -> bool:
    """Copy a large text unless it is there; return False if it is missing or damaged in the source. It blocks."""
    size = source.size(file.path)
    if size is None:
        source.check_there(file.path)
        return False
    if target.size(file.path) == size:
        return True  # whole; whether it is the same is compared at the end
    try:
        text = target.copy_in(file.path, _chunks(source, file.path))
    except _SourceDamaged:
        return False
    if not _is_whole(text, file):
        target.remove([file.path])
        return False
    return True


def _chunks(source: Outputs, path: str) -> Iterator[bytes]:
    """Read a large text of the source, whose failures are not to be taken for the target's."""
    try:
        yield from source.chunks(path, 0)
    except OutputError as error:
        raise _SourceDamaged from error


def _measured(outputs: Outputs, path: str) -> Text | None:
    """Read a large text; None if it cannot be, though its place is there."""
    try:
        return outputs.measure(path)
    except OutputError:
        outputs.check_there(path)
        return None


def _is_whole(text: Text, file: TextFile) -> bool:
    """Whether a large text that was read is what its row says, as far as it does."""
    if file.sha256 is None:
        return True
    return text.size == file.size and text.sha256 == file.sha256


def _is_same(text: Text, other: Text | None) -> bool:
    return other is not None and (text.size, text.sha256) == (other.size, other.sha256)


def _difference(differences: Sequence[str], *, finished: bool) -> str:
    what = f"source and target differ ({_some(differences)}): "
    if finished:
        return what + "the target was whole before, and one of them was used since; nothing was changed"
    return what + "the source was changed meanwhile; stop the programs that use it, and run it again"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
