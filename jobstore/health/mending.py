"""Mends an SQLite database in an open transaction: its schema, its identity, and the rows that break a rule."""

from __future__ import annotations

import contextlib
import re
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jobstore.engines.sqlite_driver import drive
from jobstore.errors import StatementFailed
from jobstore.health.encoding import text_rules
from jobstore.health.schema import (
    Column,
    Schema,
    Table,
    compare,
    defined_columns,
    parts_of,
    read_schema,
    tokens,
    wanted_schema,
)
from jobstore.migrate import Step
from jobstore.migrate.helpers import quoted, rebuild_table
from jobstore.operations import invariants
from jobstore.operations.invariants import JSON_RULES, RULES, Rule
from jobstore.operations.jobs import MAX_ROWS
from jobstore.operations.leasing import rescue

_CONSTRAINTS = {"check", "constraint", "foreign", "primary", "unique"}
"""What a part of a table begins with that is no column."""
_KEYS = "background_jobs_idempotency"
"""The index that lets no two jobs have the same key."""
_FILLERS = {
    "id": "lower(hex(randomblob(16)))",
    "task_type": "'unknown'",
    "api_type": "'unknown'",
    "status": "'failed'",
    "value": "'null'",
    "task_types": "'[]'",
}
"""What stands in a lost column that has no default."""


class Mended(NamedTuple):
    """What was mended, and what could not be."""

    done: list[str]
    not_mended: list[str]


def create_missing_tables(connection: sqlite3.Connection, steps: Sequence[Step]) -> list[str]:
    """Make the tables again that are missing; return what was done."""
    wanted, actual = wanted_schema(steps), read_schema(connection)
    missing = [table for name, table in wanted.tables.items() if name not in actual.tables]
    for table in missing:
        connection.execute(table.sql)
    return [f"table {table.name}: made again, as it was missing" for table in missing]


def mend_schema(connection: sqlite3.Connection, steps: Sequence[Step], now: int) -> Mended:
    """Make again what is missing of the schema, and as it should be what was changed; what users added stays.

    Args:
        connection: In a transaction, with foreign keys and CHECKs off.
        steps: What the schema is to be the sum of.
        now: The present time in milliseconds: what a lost time becomes.
    """
    mended = Mended(create_missing_tables(connection, steps), [])
    wanted = wanted_schema(steps)
    faulty = {
        found.table.lower() for found in compare(read_schema(connection), wanted).differences if _is_within(found.kind)
    }
    for name in sorted(faulty):
        with _tried(connection, f"table {name}", "made anew, with its rows", mended):
            _rebuild(connection, read_schema(connection), wanted, name, now)
    for found in compare(read_schema(connection), wanted).differences:
        if (found.kind, found.name) in wanted.objects:
            with _tried(connection, f"{found.kind} {found.name}", f"made anew, as it {found.problem}", mended):
                connection.execute(f"DROP {found.kind} IF EXISTS {quoted(found.name)}")
                if found.name == _KEYS and (freed := _free_duplicate_keys(connection)):
                    mended.done.append(f"jobs with the idempotency key of an older one: {freed:,}; they have none")
                connection.execute(wanted.objects[found.kind, found.name][1])
    return mended


def mend_rows(connection: sqlite3.Connection, steps: Sequence[Step], now: int) -> Mended:
    """Make texts readable, rescue expired leases, and mend the rows that break a rule."""
    mended, rescued = Mended([], []), 0
    _mend_all(connection, text_rules(connection, steps), now, mended)  # before a row of them is read
    while count := drive(connection, rescue(now)):
        rescued += count
    if rescued:
        mended.done.append(f"leases that had ended: {rescued:,}; their jobs were rescued")
    _mend_all(connection, (*JSON_RULES, *RULES), now, mended)
    return mended


def mend_identity(connection: sqlite3.Connection, known: str | None) -> list[str]:
    """Let a database that has forgotten it say again which store it is.

    Args:
        connection: In a transaction.
        known: What its outputs folder says; None if it says nothing.
    """
    if connection.execute("SELECT 1 FROM store_identity").fetchone():
        return []
    name = known or secrets.token_hex(16)
    connection.execute("INSERT INTO store_identity (singleton, store_id) VALUES (1, ?)", (name,))
    return [f"the store's identity: {'as its outputs folder has it' if known else 'a new one'}"]


def mend_records(connection: sqlite3.Connection, steps: Sequence[Step], now: int) -> list[str]:
    """Record those of the steps again whose records are lost: the schema is their sum by now."""
    records = [(step.name, step.checksum, now) for step in steps]
    sql = "INSERT OR IGNORE INTO migrations (name, checksum, applied_at) VALUES (?, ?, ?)"
    lost = connection.executemany(sql, records).rowcount
    return [f"records of applied migrations: {lost} made again"] if lost else []


def _mend_all(connection: sqlite3.Connection, rules: Sequence[Rule], now: int, mended: Mended) -> None:
    for rule in rules:
        try:
            broken = _mend_by(connection, rule, now)
        except StatementFailed as error:  # its table could not be mended
            mended.not_mended.append(f"{rule.name}: {error}")
            continue
        if broken:
            mended.done.append(f"{rule.meaning}: {broken:,}; {rule.remedy}")


def _mend_by(connection: sqlite3.Connection, rule: Rule, now: int) -> int:
    """Mend the rows that break a rule; return how many."""
    broken = drive(connection, invariants.count_broken(now, rule.table, [rule])).get(rule.name, 0)
    for _ in range(0, broken, MAX_ROWS):
        drive(connection, invariants.mend(now, rule))
    return broken


@contextlib.contextmanager
def _tried(connection: sqlite3.Connection, what: str, how: str, mended: Mended) -> Iterator[None]:
    """Do something as a whole or not at all, and note which."""
    connection.execute("SAVEPOINT mending")
    try:
        yield
    except sqlite3.Error as error:
        if not connection.in_transaction:  # such as when the disk is full
            raise
        connection.execute("ROLLBACK TO mending")
        mended.not_mended.append(f"{what}: {error}")
    else:
        mended.done.append(f"{what}: {how}")
    connection.execute("RELEASE mending")


def _is_within(kind: str) -> bool:
    """Whether a difference of this kind is in the table's own definition."""
    return kind in {"column", "CHECK", "constraint"}


def _rebuild(connection: sqlite3.Connection, actual: Schema, wanted: Schema, name: str, now: int) -> None:
    """Make a table as it should be, with its rows and what users added to it."""
    for (kind, part), (table, _) in wanted.objects.items():
        if table.lower() == name and kind in {"index", "trigger"}:  # made again afterwards
            connection.execute(f"DROP {kind} IF EXISTS {quoted(part)}")
    old, new = actual.tables[name], wanted.tables[name]
    rebuild_table(connection, old.name, _merged(old, new), _values(old, new, now))


def _merged(old: Table, new: Table) -> str:
    """Return the definition of a table as it should be, with the columns that users added."""
    own = [definition for name, definition in defined_columns(old).items() if name not in new.columns]
    parts = parts_of(new.sql)
    columns = [part for part in parts if tokens(part)[0] not in _CONSTRAINTS]
    constraints = [part for part in parts if tokens(part)[0] in _CONSTRAINTS]
    options = re.sub(r"--[^\n]*", "", new.sql).rpartition(")")[2]
    return f"CREATE TABLE {{table}} ({', '.join([*columns, *own, *constraints])}){options}"


def _values(old: Table, new: Table, now: int) -> dict[str, str]:
    """Return the SQL for columns that cannot simply be copied: lost, of another type, or without what they need."""
    values = {}
    for name, column in new.columns.items():
        found = old.columns.get(name)
        needs_value = column.not_null or column.key > 0
        if found is None:
            if needs_value and column.default is None:
                values[column.name] = _filler(column, now)
            continue
        copied = quoted(column.name)
        if found.type != column.type:
            copied = f"CAST({copied} AS {column.type})"
        if needs_value and not found.not_null:
            copied = f"coalesce({copied}, {column.default or _filler(column, now)})"
        if copied != quoted(column.name):
            values[column.name] = copied
    return values


def _filler(column: Column, now: int) -> str:
    name = column.name.lower()
    if name.endswith("_at"):
        return str(now)
    return _FILLERS.get(name, "''" if column.type == "TEXT" else "0")


def _free_duplicate_keys(connection: sqlite3.Connection) -> int:
    """Take an idempotency key that several jobs have from all but the oldest: a damaged index may have let them in."""
    return connection.execute(
        "UPDATE background_jobs SET idempotency_key = NULL WHERE idempotency_key IS NOT NULL AND rowid NOT IN ("
        " SELECT min(rowid) FROM background_jobs WHERE idempotency_key IS NOT NULL GROUP BY idempotency_key)"
    ).rowcount
