"""Writing a table's rows to a file: page by page from one snapshot, with their large texts if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO, Literal, NamedTuple

from jobstore.aio import in_thread
from jobstore.engines.base import Snapshot
from jobstore.errors import InvalidArgument, OutputError
from jobstore.formats import Columns, Format, Kind, RowWriter, codec_of
from jobstore.operations import loading, promotion
from jobstore.operations.promotion import PAGE_CHARACTERS, Key, Table, key_of
from jobstore.outputs import Outputs, TextDecoder
from jobstore.repositories.backend import Backend
from jobstore.sql import Row

Texts = Literal["reference", "inline"]


class TextColumn(NamedTuple):
    """Where a row names a large text, what it says of it, and the column in which a dump has the text itself."""

    path: str
    size: str
    sha256: str | None
    text: str


TEXT_COLUMNS: Mapping[str, tuple[TextColumn, ...]] = {
    "background_jobs": (
        TextColumn("prompt_file_path", "prompt_bytes", "prompt_sha256", "prompt_file_text"),
        TextColumn("output_file_path", "output_bytes", "output_sha256", "output_file_text"),
    ),
    "job_attempts": (TextColumn("output_file_path", "output_bytes", None, "output_file_text"),),
}


def dumped_columns(table: Table, kinds: Mapping[str, Kind | None], texts: Texts) -> Columns:
    """Return what a dump of a table has as columns.

    Raises:
        InvalidArgument: One of them holds what no dump can.
    """
    columns: dict[str, Kind] = {}
    for name, kind in kinds.items():
        if kind is None:
            raise InvalidArgument("table", f"{table.name} has a column {name!r} that is no number and no text")
        columns[name] = kind
    if texts == "inline":
        columns |= {column.text: "text" for column in TEXT_COLUMNS.get(table.name, ())}
    return columns


class Dump:
    """One table on its way into a file.

    Args:
        backend: Where the large texts lie.
        snapshot: What is dumped.
        table: Which table.
        columns: What the file has as columns.
        texts: Whether the large texts are among them.
    """

    def __init__(self, backend: Backend, snapshot: Snapshot, table: Table, columns: Columns, texts: Texts) -> None:
        self._backend = backend
        self._snapshot = snapshot
        self._table = table
        self._columns = columns
        self._text_columns = TEXT_COLUMNS.get(table.name, ()) if texts == "inline" else ()

    async def write(self, file: BinaryIO, name: Format) -> int:
        """Write all rows; return how many."""
        writer = await in_thread(codec_of(name).writer, file, self._columns)
        added = {column.text for column in self._text_columns}
        stored = [column for column in self._columns if column not in added]
        count = 0
        after: Key | None = None
        while rows := await self._snapshot.read(promotion.page, self._table, stored, after):
            await self._write_page(writer, rows)
            after = key_of(self._table, rows[-1])
            count += len(rows)
        await in_thread(writer.finish)
        return count

    async def _write_page(self, writer: RowWriter, rows: Sequence[Row]) -> None:
        """Write the rows of a page, as many at a time as their large texts allow."""
        if not self._text_columns:
            await in_thread(writer.write, rows)
            return
        paths = [row[column.path] for row in rows for column in self._text_columns if row[column.path] is not None]
        answers = await self._snapshot.read(loading.answers, paths) if paths else set()
        part: list[Row] = []
        size = 0
        for row in rows:
            part.append(await in_thread(self._with_texts, row, answers))
            size += sum(len(part[-1][column.text] or "") for column in self._text_columns)
            if size > PAGE_CHARACTERS:
                await in_thread(writer.write, part)
                part, size = [], 0
        if part:
            await in_thread(writer.write, part)

    def _with_texts(self, row: Row, answers: set[str]) -> Row:
        """Return a row with its large texts. An attempt's that became its job's answer comes with the job."""
        full = dict(row)
        for column in self._text_columns:
            path = full[column.path]
            full[column.text] = None
            if path is None or (column.sha256 is None and path in answers):
                continue
            sha256 = None if column.sha256 is None else full[column.sha256]
            text = _text(self._backend.outputs, path, full[column.size], sha256)
            full[column.text] = text
            if text is None:
                full[column.path] = None
        return full


def _text(outputs: Outputs, path: str, size: int | None, sha256: str | None) -> str | None:
    """Read a large text; None if it is one of an attempt that is gone: its job has ended meanwhile.

    Raises:
        OutputError: It is missing or damaged.
    """
    try:
        data = outputs.read(path, None if sha256 is None else size, sha256)
    except OutputError:
        if sha256 is not None:
            raise
        outputs.check_there(path)
        return None
    return TextDecoder().decode(data, path)  # a character that is cut off at the end of a partial is left out
