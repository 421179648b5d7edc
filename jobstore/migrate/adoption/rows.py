"""Rows of old tables: their values are taken one by one, and whatever does not come over as it was is kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from jobstore.migrate.adoption.values import Raw, as_count, as_flag, as_json, as_milliseconds, as_text
from jobstore.sql import Value


class OldRow:
    """One row of an old table.

    Args:
        values: By the names of their columns, in small letters.

    Attributes:
        changes: What came over as something else, in words.
        problems: What could not come over, in words.
    """

    def __init__(self, values: Mapping[str, Raw]) -> None:
        self.changes: list[str] = []
        self.problems: list[str] = []
        self._values = values
        self._rest = {name: value for name, value in values.items() if value is not None}
        self._kept: dict[str, JsonValue] = {}

    def raw(self, name: str) -> Raw:
        """Take a value as it is; None where there is no such column."""
        return self._rest.pop(name, None)

    def text(self, name: str) -> str | None:
        """Take a text. What is none is made one, and kept as well."""
        value = self.raw(name)
        if value is None or isinstance(value, str):
            return value
        self.changed(name, f"{name} was no text, or not UTF-8")
        return as_text(value)

    def name(self, name: str) -> str | None:
        """Take a text that identifies something: None if it is empty, and without NUL characters, which no id has."""
        text = self.text(name)
        if text and "\0" in text:
            self.changed(name, f"{name} held NUL characters")
            text = text.replace("\0", "\\x00")
        return text or None

    def time(self, name: str) -> int | None:
        """Take a time, in milliseconds; None if there is none, as 0 says too."""
        value = self.raw(name)
        milliseconds = as_milliseconds(value)
        if value is None:
            return None
        if milliseconds is None and value != 0:
            self.problem(name, f"{name} is no time")
        elif not isinstance(value, int) or value == 0:
            self.keep(name)
        elif value == milliseconds:
            self.changes.append(f"{name} was in milliseconds")
        return milliseconds

    def count(self, name: str) -> int | None:
        """Take a number of things."""
        value = self.raw(name)
        count = as_count(value)
        if count is None and value is not None:
            self.problem(name, f"{name} is no number from 0 on")
        elif not isinstance(value, int) and value is not None:
            self.changed(name, f"{name} was no whole number")
        return count

    def flag(self, name: str) -> int:
        """Take a flag: 0 unless it is set."""
        value = self.raw(name)
        flag = as_flag(value)
        if flag is None and value not in {None, ""}:
            self.problem(name, f"{name} is neither true nor false")
        elif value is not None and not isinstance(value, int):
            self.keep(name)
        return int(flag or False)

    def changed(self, name: str, what: str) -> None:
        """Keep a value that came over as something else."""
        self.keep(name)
        self.changes.append(what)

    def problem(self, name: str, what: str) -> None:
        """Keep a value that could not come over."""
        self.keep(name)
        self.problems.append(what)

    def keep(self, name: str) -> None:
        """Keep a value as it was, beside what was made of it."""
        self._kept[name] = as_json(self._values.get(name))

    def add(self, name: str, value: JsonValue) -> None:
        """Keep something that was found out about the row."""
        self._kept[name] = value

    def leftovers(self) -> dict[str, JsonValue]:
        """Return what was kept, and every value that nobody took: those of columns that are not known."""
        return self._kept | {name: as_json(value) for name, value in self._rest.items()}

    def whole(self) -> dict[str, JsonValue]:
        """Return all that the row held."""
        return {name: as_json(value) for name, value in self._values.items() if value is not None}


def rows_of(connection: sqlite3.Connection, table: str) -> Iterator[OldRow]:
    """Yield the rows of a table in the order in which they were written, as far as it is known."""
    [(without_rowid,)] = connection.execute("SELECT wr FROM pragma_table_list(?) WHERE schema = 'main'", (table,))
    cursor = connection.execute(f"SELECT * FROM {quoted(table)} {'' if without_rowid else 'ORDER BY rowid'}")
    names = [column[0].lower() for column in cursor.description]
    try:
        for values in cursor:
            yield OldRow(dict(zip(names, values, strict=True)))
    finally:
        cursor.close()


def insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Value]) -> None:
    """Insert a row."""
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", (*row.values(),))


def quoted(name: str) -> str:
    """Return a name as SQL."""
    return '"' + name.replace('"', '""') + '"'
