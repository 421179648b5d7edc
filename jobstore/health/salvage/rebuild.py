"""Makes a new database of all rows that can still be read in a damaged one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jobstore.errors import SchemaMismatch
from jobstore.health.mending import create_missing_tables, mend_identity, mend_records, mend_rows, mend_schema
from jobstore.health.report import Salvaged
from jobstore.health.salvage.pages import Pages
from jobstore.health.salvage.records import Cell, Node, read_cells
from jobstore.health.salvage.survey import Entry, Survey
from jobstore.health.schema import Schema, read_schema, steps_had, wanted_schema
from jobstore.migrate import Step
from jobstore.migrate.helpers import quoted
from jobstore.progress import Progress, Tell
from jobstore.sql import Value

BATCH = 500
SAMPLE = 8
"""Rows of a page that are looked at to find out whose it is."""
MOST_KEYS = 1_000
"""So many lost rows are named."""
_NOT_SAVED = ("sqlite_stat",)
"""What SQLite makes anew."""
_TYPES: dict[str, tuple[type, ...]] = {"TEXT": (str,), "INTEGER": (int,), "INT": (int,), "REAL": (float, int)}


class Rebuilt(NamedTuple):
    """What was saved."""

    tables: list[Salvaged]
    done: list[str]
    not_mended: list[str]


class Shape(NamedTuple):
    """How the rows of a table lie in its pages."""

    name: str
    columns: list[str]
    """In the order in which a row holds them: of a table without rowids, those of its key come first."""
    types: list[str]
    not_null: list[bool]
    has_rowids: bool
    rowid_alias: int | None
    """Which column is another name of the rowid, if any: the row itself does not hold it."""
    is_filled: bool
    """Whether SQLite puts rows of its own into it: a part of a virtual table, or `sqlite_sequence`."""


def rebuild(source: Path, target: Path, steps: Sequence[Step], known: str | None, now: int, tell: Tell) -> Rebuilt:
    """Fill an empty file with all that can still be read in a damaged database, and mend what that leaves broken.

    Args:
        source: Read as it lies there, with its log; nobody may have it open.
        target: An empty file.
        steps: Of the schema that it is to have.
        known: Which store it is, as its outputs folder says.
        now: The present time in milliseconds.
        tell: Called as it goes on.

    Raises:
        sqlite3.Error: The new file cannot be written.
        OSError: The old one cannot be read.
    """
    with Pages(source) as pages, contextlib.closing(_open(target, pages.size)) as connection:
        survey = Survey(pages)
        connection.execute("BEGIN")
        not_mended = _create(connection, [entry for entry in survey.schema if entry.kind == "table"])
        steps = _had(survey, steps, read_schema(connection))
        ours = {name for _, name in wanted_schema(steps).objects}
        done = create_missing_tables(connection, steps)
        shapes = [_shape(connection, name) for name in _tables(connection)]
        _assign(survey, shapes)
        tables = [_save(connection, survey, shape, tell) for shape in shapes]
        failed = _create(connection, [entry for entry in survey.schema if entry.kind != "table"])
        not_mended |= {name: why for name, why in failed.items() if name.lower() not in ours}
        mended = mend_schema(connection, steps, now)
        done += [*mended.done, *mend_records(connection, steps, now), *mend_identity(connection, known)]
        rows = mend_rows(connection, steps, now)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    problems = [*mended.not_mended, *not_mended.values(), *rows.not_mended]
    if survey.unknown:
        problems.append(
            f"pages of rows that belong to no table that is known, and were left out: {len(survey.unknown):,}"
        )
    return Rebuilt(tables, [*done, *rows.done], problems)


def _had(survey: Survey, steps: Sequence[Step], actual: Schema) -> Sequence[Step]:
    """Return the steps that the damaged file has had; all of them if what they made is not whole.

    A table that is made with too few columns would not be known as that of its rows, and all of them be lost.

    Raises:
        SchemaMismatch: A newer version has applied others.
    """
    names = {str(values[0]) for values in survey.rows("migrations") if values}
    if unknown := tuple(sorted(names - {step.name for step in steps})):
        raise SchemaMismatch(
            f"the database was migrated by a newer jobstore ({', '.join(unknown)}): repair it with that version",
            unknown,
        )
    had = steps_had(steps, names, actual, is_damaged=True)
    is_whole = had and wanted_schema(had).tables.keys() <= actual.tables.keys()
    return had if is_whole else steps


def _open(target: Path, page_size: int) -> sqlite3.Connection:
    connection = sqlite3.connect(target, isolation_level=None)
    connection.execute(f"PRAGMA page_size={page_size}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=MEMORY").fetchall()  # interrupted, the file is thrown away
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("PRAGMA ignore_check_constraints=ON")  # what breaks them is mended afterwards
    return connection


def _create(connection: sqlite3.Connection, entries: Iterable[Entry]) -> dict[str, str]:
    """Make parts of the schema as they were; return those that cannot be, and why."""
    failed = {}
    for entry in entries:
        if entry.sql is None or entry.name.startswith("sqlite_") or not entry.sql.startswith("CREATE "):
            continue
        try:
            connection.execute(entry.sql)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # the last two if it is no longer one statement
            if not connection.in_transaction:  # such as when the disk is full
                raise
            if "already exists" not in str(error):  # the parts of a virtual table come with it
                failed[entry.name] = f"{entry.kind} {entry.name}: it could not be made anew ({error})"
    return failed


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY rowid"
    ).fetchall()
    return [name for (name,) in rows if not name.startswith(_NOT_SAVED)]


def _shape(connection: sqlite3.Connection, table: str) -> Shape:
    rows = connection.execute(
        'SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid', (table,)
    ).fetchall()
    stored = [row for row in rows if row[4] != 2]  # noqa: PLR2004 - 2: computed when it is read
    [(kind, without_rowid)] = connection.execute(
        "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", (table,)
    ).fetchall()
    has_rowids = not without_rowid
    keys = [row for row in stored if row[3]]
    if not has_rowids:
        stored = [*sorted(keys, key=lambda row: row[3]), *(row for row in stored if not row[3])]
    is_alias = has_rowids and len(keys) == 1 and keys[0][1].upper() == "INTEGER"
    return Shape(
        table,
        [row[0] for row in stored],
        [row[1].upper() for row in stored],
        [bool(row[2]) for row in stored],
        has_rowids,
        stored.index(keys[0]) if is_alias else None,
        kind == "shadow" or table.startswith("sqlite_"),
    )


def _assign(survey: Survey, shapes: Sequence[Shape]) -> None:
    """Give pages of which nothing else is known to the one table whose rows have that shape."""
    left = []
    for number in survey.unknown:
        node = survey.node(number)
        fitting = [shape for shape in shapes if _fits(survey.pages, node, shape)]
        if len(fitting) == 1:
            survey.claim(fitting[0].name, number)
        elif node.is_table:  # others may as well be of an index
            left.append(number)
    survey.unknown = left


def _fits(pages: Pages, node: Node, shape: Shape) -> bool:
    if node.is_table != shape.has_rowids:
        return False
    cells = [cell for cell, _ in zip(read_cells(pages, node), range(SAMPLE), strict=False) if cell is not None]
    return bool(cells) and all(_is_row(cell, shape) for cell in cells)


def _is_row(cell: Cell, shape: Shape) -> bool:
    if len(cell.values) != len(shape.columns):
        return False
    facts = zip(cell.values, shape.types, shape.not_null, strict=True)
    return all(
        _is_value(value, kind, not_null) or number == shape.rowid_alias
        for number, (value, kind, not_null) in enumerate(facts)
    )


def _is_value(value: Value, kind: str, not_null: bool) -> bool:  # noqa: FBT001 - of a tuple
    if value is None:
        return not not_null
    return isinstance(value, _TYPES.get(kind, (object,)))


def _save(connection: sqlite3.Connection, survey: Survey, shape: Shape, tell: Tell) -> Salvaged:
    """Copy the rows of a table; of those that are lost, count what is known of them."""
    if shape.is_filled:
        connection.execute(f"DELETE FROM {quoted(shape.name)}")
    before, damaged = connection.total_changes, 0
    rows: list[tuple[Value, ...]] = []
    nodes = list(survey.numbers(shape.name))
    for done, number in enumerate(nodes, start=1):
        for cell in read_cells(survey.pages, survey.node(number)):
            if cell is None:
                damaged += 1
            else:
                rows.append(_row(cell, shape))
        if len(rows) >= BATCH or done == len(nodes):
            damaged += _insert(connection, shape, rows)
            rows.clear()
            tell(Progress(f"saving {shape.name}", done, len(nodes)))
    saved = connection.total_changes - before
    missing = _missing(connection, survey, shape)
    keys = [key for key in missing.values() if key]
    return Salvaged(table=shape.name, saved=saved, lost=max(damaged, len(missing)), lost_keys=tuple(keys[:MOST_KEYS]))


def _row(cell: Cell, shape: Shape) -> tuple[Value, ...]:
    """Return a row with its rowid in front, if it has one; columns that it is too old to hold are left out."""
    values = list(cell.values[: len(shape.columns)])
    if not shape.has_rowids:
        return tuple(values)
    if shape.rowid_alias is not None and shape.rowid_alias < len(values):
        values[shape.rowid_alias] = cell.rowid
        return tuple(values)
    return (cell.rowid, *values)


def _insert(connection: sqlite3.Connection, shape: Shape, rows: Sequence[tuple[Value, ...]]) -> int:
    """Insert rows; return how many the table cannot hold, such as a text where a number must be."""
    refused, statements = 0, {count: _insert_sql(shape, count) for count in {len(row) for row in rows}}
    for row in rows:
        try:
            connection.execute(statements[len(row)], row)  # one that is there already is left out
        except sqlite3.IntegrityError:
            refused += 1
    return refused


def _insert_sql(shape: Shape, count: int) -> str:
    names = shape.columns if not shape.has_rowids or shape.rowid_alias is not None else ["_rowid_", *shape.columns]
    listed = ", ".join(map(quoted, names[:count]))
    return f"INSERT OR IGNORE INTO {quoted(shape.name)} ({listed}) VALUES ({', '.join('?' * count)})"


def _missing(connection: sqlite3.Connection, survey: Survey, shape: Shape) -> dict[int, str]:
    """Return the rows that an index still knows but that were not saved: rowids, and keys if the index has them."""
    if not shape.has_rowids:
        return {}
    saved = {rowid for (rowid,) in connection.execute(f"SELECT _rowid_ FROM {quoted(shape.name)}")}
    missing: dict[int, str] = {}
    for entry in survey.schema:
        if entry.kind != "index" or entry.table.lower() != shape.name.lower():
            continue
        for values in survey.rows(entry.name):
            if values and isinstance(rowid := values[-1], int) and rowid not in saved:
                is_key = entry.name.startswith("sqlite_autoindex")
                missing[rowid] = str(values[0]) if is_key else missing.get(rowid, "")
    return missing
