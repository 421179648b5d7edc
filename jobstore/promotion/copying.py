"""Copying what the target lacks: rows page by page, then large texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobstore.aio import in_thread
from jobstore.engines.base import Snapshot
from jobstore.errors import ConstraintFailed, OutputError, PromotionError, StatementFailed
from jobstore.operations import promotion
from jobstore.operations.promotion import TABLES, Key, Table, TextFile, key_of
from jobstore.outputs import Outputs
from jobstore.promotion.pair import Pair, is_whole
from jobstore.sql import Row


class Copying:
    """Makes the target the same as a snapshot of the source.

    Args:
        pair: The two, checked.
        source: The snapshot.
        run_id: What the target was told of this run; once another was told to it, this one is refused.
    """

    def __init__(self, pair: Pair, source: Snapshot, run_id: str) -> None:
        self._pair = pair
        self._source = source
        self._run_id = run_id
        self._damaged: list[str] = []

    async def copy(self) -> list[str]:
        """Copy everything that is missing; return the large texts that are missing or damaged in the source.

        Raises:
            PromotionError: Another process is filling the target by now, or it has rows of its own.
        """
        for table in TABLES:
            tell = self._pair.progress(f"copying {table.name}", await self._source.read(promotion.count, table))
            after: Key | None = None
            names = self._pair.columns[table.name]
            while rows := await self._source.read(promotion.page, table, names, after):
                await self._copy_rows(table, rows, after)
                after = key_of(table, rows[-1])
                tell(len(rows))
        await self._pair.each_file(self._source, "copying large texts", self._copy_file)
        return self._damaged

    async def _copy_rows(self, table: Table, rows: Sequence[Row], after: Key | None) -> None:
        """Make the target's rows of a page the same."""
        names, last = self._pair.columns[table.name], key_of(table, rows[-1])
        there = await self._pair.target.backend.read(promotion.between, table, names, after, last)
        known = {key_of(table, row): row for row in there}
        fitted = [await self._fitted(row) for row in rows]
        if missing := [row for row in fitted if known.get(key_of(table, row)) != row]:
            await self._put(table, names, missing)

    async def _put(self, table: Table, names: Sequence[str], rows: Sequence[Row]) -> None:
        """Write rows; if one is refused that the target cannot hold, find it."""
        try:
            await self._pair.target.backend.write(promotion.put, self._run_id, table, names, rows)
        except ConstraintFailed as error:
            message = f"the target has {table.name} that the source lacks: choose an empty target"
            raise PromotionError(message, (table.name,)) from error
        except StatementFailed as error:
            if len(rows) == 1:
                raise PromotionError(_refused(table, rows[0], error), (table.name,)) from error
        else:
            return
        for row in rows:
            await self._put(table, names, [row])

    async def _fitted(self, row: Row) -> Row:
        """Return a row as the target can hold it, after writing what it cannot."""
        fitted, texts = self._pair.fitted(row)
        for path, data in texts.items():
            await in_thread(_write_text, self._pair.target_outputs, path, data)
        return fitted

    async def _copy_file(self, file: TextFile) -> None:
        if not await in_thread(copy_text, file, self._pair.source.backend.outputs, self._pair.target_outputs):
            self._damaged.append(file.path)


def _refused(table: Table, row: Row, error: StatementFailed) -> str:
    key = ", ".join(f"{name} {row[name]!r}" for name in table.key)
    return f"the target cannot hold the row of {table.name} with {key} ({error}): change it in the source"


class _SourceDamaged(Exception):
    """A large text of the source cannot be read."""


def _write_text(target: Outputs, path: str, data: bytes) -> None:
    """Write a text that came from a row, unless it is there. It blocks."""
    if target.size(path) != len(data):
        target.copy_in(path, [data])


def copy_text(file: TextFile, source: Outputs, target: Outputs) -> bool:
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
    if not is_whole(text, file):
        target.remove([file.path])
        return False
    return True


def _chunks(source: Outputs, path: str) -> Iterator[bytes]:
    """Read a large text of the source, whose failures are not to be taken for the target's."""
    try:
        yield from source.chunks(path, 0)
    except OutputError as error:
        raise _SourceDamaged from error
