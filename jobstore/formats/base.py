"""What all formats have in common: rows of integers, numbers and texts, each checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from jobstore.errors import LoadError
from jobstore.sql import Row, Value

Format = Literal["jsonl", "csv", "parquet"]
Kind = Literal["integer", "number", "text"]
Columns: TypeAlias = Mapping[str, Kind]
"""The columns of a table, in their order."""

MAX_INTEGER = 2**63


class Numbered(NamedTuple):
    """A row, and where it stands."""

    number: int
    """Of its line, or of its row where there are no lines; from 1 on."""
    row: dict[str, Value]


class RowWriter(Protocol):
    """Writes rows to a file. Its methods block."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, all with the same columns."""

    def finish(self) -> None:
        """Write what ends the file, and leave it open."""


RowReader: TypeAlias = Iterator[Numbered]
"""Reads rows of a file, each once it is asked for. It blocks."""


def checked(number: int, row: Mapping[str, object], columns: Columns) -> Numbered:
    """Return a row whose values are those that its columns can hold.

    Raises:
        LoadError: It has other columns, or other values. They are not quoted.
    """
    check_columns(number, list(row), columns)
    return Numbered(number, {name: _checked(number, name, value, columns[name]) for name, value in row.items()})


def check_columns(number: int, names: Sequence[str], columns: Columns) -> None:
    """Check that a table has all these columns.

    Raises:
        LoadError: It has not.
    """
    if unknown := [name for name in names if name not in columns]:
        raise LoadError(f"the table has no column {unknown[0]!r}", number)


def _checked(number: int, name: str, value: object, kind: Kind) -> Value:
    match kind, value:
        case _, None:
            return None
        case "integer", bool():
            pass
        case "integer", int(value) if -MAX_INTEGER <= value < MAX_INTEGER:
            return value
        case "number", bool():
            pass
        case "number", int(value) | float(value) if not math.isnan(value):
            return float(value)
        case "text", str(value) if _is_storable(value):
            return value
    raise LoadError(f"its {name} is no {kind} that can be stored", number)


def _is_storable(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
