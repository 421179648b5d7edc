r"""CSV as spreadsheets read it, and exact: NULL is `\N`, and a text that begins with a backslash has one more.

So NULL and an empty text differ, as in PostgreSQL's own COPY. Line ends, quotes and NUL stand in fields as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from jobstore.errors import LoadError
from jobstore.formats.base import Columns, Kind, Numbered, check_columns, checked
from jobstore.sql import Row, Value

NULL = r"\N"
MAX_FIELD = 2**31 - 1
"""Characters; the module's own limit of 128 Ki is that of no text here. Larger ones some systems refuse."""
_INTEGER = re.compile(r"-?\d+")


class CsvWriter:
    """Writes a header, and a record for each row."""

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text)
        self._columns = list(columns)
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        self._writer.writerows([_field(row[name]) for name in self._columns] for row in rows)

    def finish(self) -> None:
        """Let go of the file."""
        self._text.detach()


def read_csv(file: BinaryIO, columns: Columns) -> Iterator[Numbered]:
    """Yield the rows of a file.

    Raises:
        LoadError: It has no header of such rows, or a record is none.
    """
    csv.field_size_limit(MAX_FIELD)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        records = csv.reader(text, strict=True)
        header = _next(records)
        if header is None:
            raise LoadError("it has no header", 1)
        check_columns(1, header, columns)
        while (record := _next(records)) is not None:
            number = records.line_num
            if len(record) != len(header):
                raise LoadError(f"it has {len(record)} fields instead of {len(header)}", number)
            row = {name: _value(field, columns[name]) for name, field in zip(header, record, strict=True)}
            yield checked(number, row, columns)
    finally:
        text.detach()


def _next(records: Iterator[list[str]]) -> list[str] | None:
    """Return the next record; None at the end."""
    try:
        return next(records, None)
    except (csv.Error, UnicodeDecodeError):
        number = getattr(records, "line_num", 0)
    raise LoadError("it is no CSV in UTF-8", number)  # out here, because that error holds what it could not decode


def _field(value: Value) -> str:
    if value is None:
        return NULL
    text = str(value)
    return f"\\{text}" if text.startswith("\\") else text


def _value(field: str, kind: Kind) -> object:
    """Return what a field stands for; one that is no number stays a text, to be refused."""
    if field == NULL:
        return None
    if kind == "text":
        return field.removeprefix("\\")
    if kind == "integer":
        return int(field) if _INTEGER.fullmatch(field) and len(field) <= len(str(2**63)) + 1 else field
    try:
        return float(field)
    except ValueError:
        return field
