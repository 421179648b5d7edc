"""JSON lines: one object a row. JSON columns are texts in it, exactly as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from jobstore.errors import LoadError
from jobstore.formats.base import Columns, Numbered, checked
from jobstore.sql import Row

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class JsonLinesWriter:
    """Writes a line for each row."""

    def __init__(self, file: BinaryIO, _columns: Columns) -> None:
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        for row in rows:
            self._file.write(_dumps(row).encode() + b"\n")

    def finish(self) -> None:
        """There is nothing to end."""


def read_json_lines(file: BinaryIO, columns: Columns) -> Iterator[Numbered]:
    """Yield the rows of a file.

    Raises:
        LoadError: A line is none of such a row.
    """
    for number, line in enumerate(file, start=1):
        yield checked(number, _parsed(number, line), columns)


def _parsed(number: int, line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):  # out here: the error of a line that is not UTF-8 holds all of it
        raise LoadError("it is no JSON object", number)
    return row
