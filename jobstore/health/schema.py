"""Compares an SQLite database's schema with the one that its steps make: each difference by its name."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from jobstore.migrate import RECORDS, Step, split_statements

_TOKEN = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | \w+ | \s+ | .""",
    re.VERBOSE | re.DOTALL,
)
_VIRTUAL = re.compile(r"CREATE\s+VIRTUAL\b", re.IGNORECASE)


class Column(NamedTuple):
    """A column, as SQLite understands it."""

    name: str
    type: str
    not_null: bool
    default: str | None
    key: int
    """Its place in the primary key; 0 if it is not in it."""


class Table(NamedTuple):
    """A table, as SQLite understands it."""

    name: str
    sql: str
    columns: dict[str, Column]
    checks: dict[str, str]
    """The CHECKs: as they are compared, and as they are shown."""
    others: dict[str, str]
    """Foreign keys, UNIQUE, STRICT and WITHOUT ROWID: the same."""


class Schema(NamedTuple):
    """The tables of a database, and what belongs to them."""

    tables: dict[str, Table]
    objects: dict[tuple[str, str], tuple[str, str]]
    """Indexes, triggers and views: kind and name → the table's name and the SQL."""


class Difference(NamedTuple):
    """Something of the reference that a database lacks, or has in another way."""

    kind: str
    table: str
    name: str
    problem: str

    def __str__(self) -> str:
        """Say it in words."""
        place = "" if self.kind == "table" else f" of {self.table}"
        return f"{self.kind} {self.name}{place} {self.problem}"


class Comparison(NamedTuple):
    """How two schemas compare."""

    differences: list[Difference]
    extra: list[str]
    """What a database has beyond the reference: its users' own."""


def reference(steps: Iterable[Step]) -> sqlite3.Connection:
    """Return a database in memory with the schema that these steps make."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(RECORDS)
    for step in steps:
        connection.execute("BEGIN")
        step.apply(connection, split_statements)
        connection.execute("COMMIT")
    return connection


def wanted_schema(steps: Iterable[Step]) -> Schema:
    """Return the schema that steps add up to."""
    with contextlib.closing(reference(steps)) as made:
        return read_schema(made)


def steps_had(
    steps: Sequence[Step], recorded: Collection[str], actual: Schema | None = None, *, is_damaged: bool = False
) -> Sequence[Step]:
    """Return the steps that a database has had; none if nothing tells.

    They are applied in their order, each as a whole: the last one that is recorded, or whose tables and columns are in
    the schema, tells of those before it, whose records may be lost.

    Args:
        steps: All that there are.
        recorded: The names of those that it records.
        actual: Its schema, if that is to be looked at.
        is_damaged: Whether parts of the schema may be lost, so that any part tells; else a table of a user's might.
    """
    parts, before, last = set() if actual is None else _parts(actual), set[tuple[str, str]](), 0
    for number, step in enumerate(steps, 1):
        made = _parts(wanted_schema(steps[:number])) if parts else set()
        own = made - before
        if step.name in recorded or (own & parts if is_damaged else own and own <= parts):
            last = number
        before = made
    return steps[:last]


def _parts(schema: Schema) -> set[tuple[str, str]]:
    columns = {(name, column) for name, table in schema.tables.items() for column in table.columns}
    return {*columns, *(("table", name) for name in schema.tables)}


def read_schema(connection: sqlite3.Connection) -> Schema:
    """Read the schema of a database.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    rows = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%'"
        " ESCAPE '\\' ORDER BY rowid"
    ).fetchall()
    tables = {name.lower(): _read_table(connection, name, sql) for kind, name, _, sql in rows if kind == "table"}
    objects = {(kind, name.lower()): (table, sql) for kind, name, table, sql in rows if kind != "table"}
    return Schema(tables, objects)


def compare(actual: Schema, wanted: Schema) -> Comparison:
    """Compare a database's schema with the one that it should have."""
    differences: list[Difference] = []
    extra = [f"table {actual.tables[name].name}" for name in actual.tables.keys() - wanted.tables.keys()]
    for name, table in wanted.tables.items():
        if name not in actual.tables:
            differences.append(Difference("table", table.name, table.name, "is missing"))
            continue
        differences += _compare_tables(actual.tables[name], table)
        extra += _extra_parts(actual.tables[name], table)
    differences += _compare_objects(actual, wanted)
    extra += [f"{kind} {name}" for kind, name in actual.objects.keys() - wanted.objects.keys()]
    return Comparison(differences, sorted(extra))


def tokens(sql: str) -> list[str]:
    """Return what SQL consists of, without comments, space, quotes around names and the case of letters."""
    return [_plain(token) for token in _TOKEN.findall(sql) if not _is_space(token)]


def parts_of(sql: str) -> list[str]:
    """Return the columns and constraints of a CREATE TABLE, as they are written."""
    opened, parts = 0, [""]
    for token in _TOKEN.findall(sql):
        if token.startswith(("--", "/*")):
            continue
        opened += (token == "(") - (token == ")")  # noqa: S105 - SQL
        if opened == 0 and token == ")":  # noqa: S105
            break
        if opened == 1 and token == ",":  # noqa: S105
            parts.append("")
        elif opened > 1 or (opened == 1 and (token != "(" or parts[-1])):  # noqa: S105
            parts[-1] += token
    return [part.strip() for part in parts if part.strip()]


def defined_columns(table: Table) -> dict[str, str]:
    """Return the definitions of a table's columns as they are written, by name."""
    definitions = {tokens(part)[0]: part for part in parts_of(table.sql)}
    return {name: definitions[name] for name in table.columns if name in definitions}


def _read_table(connection: sqlite3.Connection, name: str, sql: str) -> Table:
    if _VIRTUAL.match(sql):  # a user's own, which only those who have loaded its module can look into
        return Table(name, sql, {}, {}, {})
    columns = {
        row[0].lower(): Column(row[0], row[1].upper(), bool(row[2]), _plain_default(row[3]), row[4])
        for row in connection.execute(
            'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?)', (name,)
        )
    }
    checks = {" ".join(tokens(check)): " ".join(check.split()) for check in _checks(sql)}
    return Table(name, sql, columns, checks, dict(_other_parts(connection, name)))


def _other_parts(connection: sqlite3.Connection, table: str) -> Iterator[tuple[str, str]]:
    keys = connection.execute(
        'SELECT "from", "table", coalesce("to", \'\'), on_delete, on_update FROM pragma_foreign_key_list(?)', (table,)
    ).fetchall()
    for column, parent, target, deleted, updated in keys:
        text = f"foreign key of {column} to {parent} ({target}) on delete {deleted} on update {updated}"
        yield text.lower(), text
    indexes = connection.execute(
        "SELECT name FROM pragma_index_list(?) WHERE origin = 'u' ORDER BY name", (table,)
    ).fetchall()
    for (index,) in indexes:
        names = [row[0] for row in connection.execute("SELECT name FROM pragma_index_info(?)", (index,))]
        text = f"UNIQUE ({', '.join(names)})"
        yield text.lower(), text
    row = connection.execute(
        "SELECT strict, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", (table,)
    ).fetchone()
    for is_set, text in zip(row or (), ("STRICT", "WITHOUT ROWID"), strict=False):
        if is_set:
            yield text.lower(), text


def _checks(sql: str) -> Iterator[str]:
    """Yield the conditions of the CHECKs of a CREATE TABLE."""
    pieces = [token for token in _TOKEN.findall(sql) if not token.startswith(("--", "/*"))]
    for start, token in enumerate(pieces):
        if token.lower() != "check":
            continue
        opened, condition = 0, ""
        for piece in pieces[start + 1 :]:
            opened += (piece == "(") - (piece == ")")
            condition += piece
            if opened == 0 and piece == ")":
                break
        yield condition.strip()[1:-1].strip()


def _compare_tables(actual: Table, wanted: Table) -> Iterator[Difference]:
    for name, column in wanted.columns.items():
        found = actual.columns.get(name)
        if found is None:
            yield Difference("column", wanted.name, column.name, "is missing")
        elif found[1:] != column[1:]:
            yield Difference("column", wanted.name, column.name, f"is {_described(found)}, not {_described(column)}")
    for kind, here, there in (("CHECK", actual.checks, wanted.checks), ("constraint", actual.others, wanted.others)):
        for compared, shown in there.items():
            if compared not in here:
                yield Difference(kind, wanted.name, shown if kind == "constraint" else f"({shown})", "is missing")


def _extra_parts(actual: Table, wanted: Table) -> Iterator[str]:
    for name in actual.columns.keys() - wanted.columns.keys():
        yield f"column {actual.columns[name].name} of {actual.name}"
    for compared in actual.checks.keys() - wanted.checks.keys():
        yield f"CHECK ({actual.checks[compared]}) of {actual.name}"
    for compared in actual.others.keys() - wanted.others.keys():
        yield f"{actual.others[compared]} of {actual.name}"


def _compare_objects(actual: Schema, wanted: Schema) -> Iterator[Difference]:
    for (kind, name), (table, sql) in wanted.objects.items():
        found = actual.objects.get((kind, name))
        if found is None:
            yield Difference(kind, table, name, "is missing")
        elif tokens(found[1]) != tokens(sql):
            yield Difference(kind, table, name, "is another than it should be")


def _described(column: Column) -> str:
    words: Sequence[str] = (
        column.type or "without a type",
        "NOT NULL" if column.not_null else "",
        "" if column.default is None else f"DEFAULT {column.default}",
        f"(number {column.key} of the primary key)" if column.key else "",
    )
    return " ".join(filter(None, words))


def _plain_default(default: str | None) -> str | None:
    return None if default is None else " ".join(tokens(default))


def _plain(token: str) -> str:
    if token[0] == "'":
        return token
    return token.strip('"`[]').lower() or token


def _is_space(token: str) -> bool:
    return token.isspace() or token.startswith(("--", "/*"))
