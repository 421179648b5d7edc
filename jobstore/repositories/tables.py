"""`store.tables`: whole tables as files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

from jobstore.errors import InvalidArgument
from jobstore.formats import Columns, Format, codec_of
from jobstore.operations import loading
from jobstore.operations.loading import Existing
from jobstore.operations.promotion import TABLES, Table
from jobstore.repositories.backend import Backend
from jobstore.repositories.dumping import Dump, Texts, dumped_columns
from jobstore.repositories.loading import Load, check_rows

NAMES = tuple(table.name for table in TABLES)
_TABLES = {table.name: table for table in TABLES}


class TableRepository:
    """The tables of a store. Reached as `store.tables`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def names(self) -> tuple[str, ...]:
        """The tables that can be dumped, each behind those that it refers to."""
        return NAMES

    async def dump(
        self,
        files: Mapping[str, BinaryIO],
        *,
        format: Format = "jsonl",  # noqa: A002
        texts: Texts = "reference",
    ) -> dict[str, int]:
        """Write all rows of some tables to open files, as they were at one moment, in bounded memory.

        Values are what the database holds: times in milliseconds since the Unix epoch, JSON as its text, 0 and 1.
        In CSV, NULL is a backslash and an N.

        Args:
            files: For each table, an open binary file. Parquet must be able to tell where in its file it is.
            format: "jsonl", "csv", or with the extra `parquet` "parquet".
            texts: "reference": rows name their large texts, which lie where they lie. "inline": the texts follow as
                columns of their own; then one large text at a time is in memory.

        Returns:
            How many rows each table had.

        Raises:
            InvalidArgument: There is no such table or format, or a column of your own holds bytes.
            OutputError: A large text is missing or damaged, or was removed while this ran.
            OSError: A file cannot be written.

        Example:
            >>> with open("jobs.jsonl", "wb") as file:
            ...     await store.tables.dump({"background_jobs": file}, texts="inline")
        """
        _check(files, format)
        if texts not in {"reference", "inline"}:
            raise InvalidArgument("texts", 'must be "reference" or "inline"')
        self._backend.check_usable()
        counts = {}
        async with self._backend.engine.snapshot() as snapshot:
            for name, file in files.items():
                kinds = await snapshot.read(loading.kinds, _TABLES[name])
                columns = dumped_columns(_TABLES[name], kinds, texts)
                dump = Dump(self._backend, snapshot, _TABLES[name], columns, texts)
                counts[name] = await dump.write(file, format)
        return counts

    async def load(
        self,
        files: Mapping[str, BinaryIO],
        *,
        format: Format = "jsonl",  # noqa: A002
        existing: Existing = "refuse",
    ) -> dict[str, int]:
        """Put rows back that were dumped, of any engine, into tables that are empty unless `existing` says otherwise.

        Each file that can be read twice is read to its end first, so that a bad line is found before anything is
        written. Rows are written in transactions of up to 500. If one is refused, those before it stay, and the
        error says how many: mend the file and go on with `existing="skip"`. A text that came inline is written before
        its row; a row that only names one is refused unless the text is there.

        Args:
            files: For each table, an open binary file. Tables that others refer to come first by themselves.
            format: Of all of them.
            existing: "refuse": the tables must be empty. "skip": rows with the key of one that is there are left out.
                "replace": they take its place.

        Returns:
            How many rows of each table were written.

        Raises:
            InvalidArgument: There is no such table or format, or a table is not empty.
            LoadError: A line is wrong, or the database refuses its row; it names the line, and quotes nothing of it.
            OutputError: Nobody has said where large texts lie, or one cannot be written.

        Example:
            >>> with open("jobs.jsonl", "rb") as file:
            ...     await store.tables.load({"background_jobs": file}, existing="skip")
        """
        _check(files, format)
        if existing not in {"refuse", "skip", "replace"}:
            raise InvalidArgument("existing", 'must be "refuse", "skip" or "replace"')
        in_order = {table: files[table.name] for table in TABLES if table.name in files}
        columns = {table: await self._columns(table) for table in in_order}
        for table, file in in_order.items():
            if existing == "refuse" and not await self._backend.read(loading.is_empty, table):
                raise InvalidArgument(
                    "existing", f"{table.name} is not empty: say whether rows are skipped or replaced"
                )
            await check_rows(table, file, format, columns[table])
        return {
            table.name: await Load(self._backend, table, columns[table], existing).read(file, format)
            for table, file in in_order.items()
        }

    async def _columns(self, table: Table) -> Columns:
        return dumped_columns(table, await self._backend.read(loading.kinds, table), "inline")


def _check(files: Mapping[str, BinaryIO], format: Format) -> None:  # noqa: A002
    if unknown := [name for name in files if name not in _TABLES]:
        raise InvalidArgument("table", f"there is no {unknown[0]!r} to dump or load: it must be of {', '.join(NAMES)}")
    codec_of(format)
