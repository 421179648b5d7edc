"""Putting rows back that were dumped: read from a file, checked, and written in batches with their large texts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import BinaryIO

from jobstore.aio import in_thread
from jobstore.errors import LoadError, OutputError, StatementFailed
from jobstore.formats import Columns, Format, Numbered, RowReader, codec_of
from jobstore.operations import loading
from jobstore.operations.loading import Existing
from jobstore.operations.promotion import PAGE_CHARACTERS, PAGE_ROWS, Table
from jobstore.outputs import Outputs
from jobstore.repositories.backend import Backend
from jobstore.repositories.dumping import TEXT_COLUMNS, TextColumn
from jobstore.repositories.fitting import fitted
from jobstore.sql import Row, Value


async def check_rows(table: Table, file: BinaryIO, name: Format, columns: Columns) -> None:
    """Read a file to its end and go back, unless it can be read only once.

    Raises:
        LoadError: A line is wrong.
    """
    await in_thread(_check_rows, table, file, name, columns)


def _check_rows(table: Table, file: BinaryIO, name: Format, columns: Columns) -> None:
    if not file.seekable():
        return
    begin = file.tell()
    try:
        for numbered in codec_of(name).reader(file, columns):
            _check_key(table, numbered)
    except LoadError as error:
        raise error.at(table.name, 0) from error.__cause__
    file.seek(begin)


def _check_key(table: Table, numbered: Numbered) -> None:
    for name in table.key:
        if numbered.row.get(name) is None:
            raise LoadError(f"it has no {name}", numbered.number)


class Load:
    """One table on its way out of a file.

    Args:
        backend: Where the rows go.
        table: Which table.
        columns: What the file may have as columns.
        existing: What becomes of rows that are there already.
    """

    def __init__(self, backend: Backend, table: Table, columns: Columns, existing: Existing) -> None:
        self._backend = backend
        self._table = table
        self._columns = columns
        self._existing = existing
        self._text_columns = TEXT_COLUMNS.get(table.name, ())
        self._dealt_with = self._written = 0

    async def read(self, file: BinaryIO, name: Format) -> int:
        """Write all rows; return how many were.

        Raises:
            LoadError: A line is wrong, or its row is refused.
        """
        rows = codec_of(name).reader(file, self._columns)
        try:
            while batch := await in_thread(self._next_batch, rows):
                for _, alike in itertools.groupby(batch, key=lambda numbered: tuple(numbered.row)):
                    await self._write(list(alike))
        except LoadError as error:
            raise error.at(self._table.name, self._dealt_with) from error.__cause__
        return self._written

    def _next_batch(self, rows: RowReader) -> list[Numbered]:
        """Read some rows, with the large texts that they name in place."""
        batch: list[Numbered] = []
        size = 0
        for numbered in itertools.islice(rows, PAGE_ROWS):
            _check_key(self._table, numbered)
            size += sum(len(value) for value in numbered.row.values() if isinstance(value, str))
            batch.append(Numbered(numbered.number, dict(self._with_texts_in_place(numbered))))
            if size > PAGE_CHARACTERS:
                break
        return batch

    def _with_texts_in_place(self, numbered: Numbered) -> Row:
        """Return a row as the database can hold it, once all that it names is where it says."""
        row = dict(numbered.row)
        try:
            for column in self._text_columns:
                _settle(self._backend, column, row)
            changed, texts = fitted(row, holds_nul=self._backend.engine.dialect.holds_nul)
            for path, data in texts.items():
                _write_unless_there(self._backend.outputs, path, data)
        except OutputError as error:
            raise LoadError(str(error), numbered.number) from error
        return changed

    async def _write(self, batch: Sequence[Numbered]) -> None:
        """Write rows together, or, if one is refused, those before it each by itself."""
        rows = [numbered.row for numbered in batch]
        try:
            self._written += await self._backend.write(loading.put, self._table, rows, self._existing, wakes=True)
        except StatementFailed as error:
            if len(batch) == 1:
                raise LoadError(f"the database refuses it: {error}", batch[0].number) from error
        else:
            self._dealt_with += len(batch)
            return
        for numbered in batch:
            await self._write([numbered])


def _settle(backend: Backend, column: TextColumn, row: dict[str, Value]) -> None:
    """Take a large text out of a row and put it where the row says; without it, check that it is there.

    Raises:
        OutputError: It is not there, is another, or cannot be written.
    """
    text, path = row.pop(column.text, None), row.get(column.path)
    if not isinstance(path, str):
        return
    outputs, sha256 = backend.outputs, None if column.sha256 is None else row.get(column.sha256)
    if isinstance(text, str):
        data = text.encode()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise OutputError(f"its {column.text} is not what its {column.sha256} says", path)
        _write_unless_there(outputs, path, data)
    size = outputs.size(path)
    if size is None:
        raise OutputError(f"it names {path}, which is not there: dump it with its texts inline, or bring them", path)
    expected = row.get(column.size)
    if sha256 is not None and size != expected:
        raise OutputError(f"{path} has {size} bytes instead of {expected!r}: restore it from a backup", path)


def _write_unless_there(outputs: Outputs, path: str, data: bytes) -> None:
    """Write a text; one that is there stays, since it may be growing, and no two texts have the same path."""
    if outputs.size(path) is None:
        outputs.copy_in(path, [data])
