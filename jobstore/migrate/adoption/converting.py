"""Turning a database of the old system into a store, within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobstore.clock import from_milliseconds
from jobstore.errors import SchemaMismatch
from jobstore.migrate.adoption.jobs import Jobs
from jobstore.migrate.adoption.leftovers import TABLE, Leftovers
from jobstore.migrate.adoption.recognising import OldDatabase
from jobstore.migrate.adoption.report import REPORT_KEY, Adoption, Findings
from jobstore.migrate.adoption.rows import OldRow, insert, quoted, rows_of
from jobstore.migrate.adoption.sessions import Files, Sessions
from jobstore.migrate.adoption.state import States
from jobstore.migrate.adoption.texts import Texts
from jobstore.migrate.adoption.values import decode
from jobstore.migrate.helpers import rename_table
from jobstore.sql import Value

_ORDER = (
    "sessions",
    "included_files",
    "excluded_files",
    "cached_state",
    "key_value_store",
    "background_jobs",
    "gemini_requests",
)
"""Sessions come first: others name them. A job of a later table gives way to one of the same id."""


class Conversion:
    """One adoption: first `put_aside`, then the steps of the schema, then `convert`.

    Args:
        connection: In a transaction that was begun for writing, with foreign keys off.
        old: What was recognised in that transaction.
        now: The present time in milliseconds.
    """

    def __init__(self, connection: sqlite3.Connection, old: OldDatabase, now: int) -> None:
        self._connection = connection
        self._old = old
        self._now = now
        self._findings = Findings()
        self._aside: dict[str, str] = {}

    def put_aside(self, ours: set[str]) -> None:
        """Rename whatever has a name that the store's schema needs, and let go of indexes, triggers and views that do.

        Args:
            ours: The names of all that the schema will hold.
        """
        needed = ours | {TABLE}
        converted = {spelled.lower() for spelled in self._old.tables.values()}
        schema = self._connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        going = converted | {name.lower() for kind, name, _, _ in schema if kind == "view" and name.lower() in needed}
        for kind, name, table, sql in schema:
            in_the_way = name.lower() in needed or (kind in {"index", "trigger"} and table.lower() in going)
            if kind != "table" and in_the_way and sql is not None:
                self._connection.execute(f"DROP {kind} IF EXISTS {quoted(name)}")
                self._findings.let_go.append(sql)
        for kind, name, _, _ in schema:
            if kind != "table" or name.startswith("sqlite_"):
                continue
            if name.lower() in needed | converted:
                self._rename(name, is_converted=name.lower() in converted)
            else:
                self._findings.kept_tables[name] = name

    def convert(self, texts: Texts) -> Adoption:
        """Fill the store's tables from the old ones, drop these, and return the report, which is kept in the store."""
        with _any_bytes(self._connection):
            self._convert_tables(texts)
        for name in self._aside.values():
            self._connection.execute(f"DROP TABLE {quoted(name)}")
        self._check()
        self._note_broken_views()
        self._note_broken_references()
        self._findings.moved_texts = texts.moved
        report = self._findings.report(from_milliseconds(self._now))
        kept: dict[str, Value] = {"key": REPORT_KEY, "value": report.model_dump_json(), "updated_at": self._now}
        insert(self._connection, "key_value_store", kept)
        return report

    def _rename(self, name: str, *, is_converted: bool) -> None:
        aside = f"old_{name}"
        while self._connection.execute("SELECT 1 FROM sqlite_schema WHERE lower(name) = lower(?)", (aside,)).fetchone():
            aside = f"old_{aside}"
        rename_table(self._connection, name, aside)
        if is_converted:
            self._aside[name.lower()] = aside
        else:
            self._findings.kept_tables[name] = aside

    def _convert_tables(self, texts: Texts) -> None:
        leftovers = Leftovers(self._connection, self._findings)
        sessions = Sessions(self._connection, self._findings, self._now)
        files = Files(self._connection, self._findings, sessions, leftovers)
        jobs = Jobs(self._connection, self._findings, sessions, texts, self._now)
        states = States(self._connection, leftovers, sessions.directories, self._now)
        adopters: dict[str, Callable[[str, OldRow], None]] = {
            "sessions": sessions.adopt,
            "included_files": files.adopt,
            "excluded_files": files.adopt,
            "background_jobs": jobs.adopt,
            "gemini_requests": jobs.adopt,
        }
        for table in (name for name in _ORDER if name in self._aside):
            self._findings.begin(table)
            if table in adopters:
                for row in self._rows(table):
                    adopters[table](table, row)
            else:
                latest = states.latest(table, self._rows(table))
                for number, row in enumerate(self._rows(table)):
                    states.adopt(table, row, number, latest)

    def _rows(self, table: str) -> Iterator[OldRow]:
        return rows_of(self._connection, self._aside[table])

    def _check(self) -> None:
        """Find out whether a row of the store lacks its parent, which foreign keys would have refused."""
        for table in ("included_files", "excluded_files", "background_jobs", "job_attempts"):
            if self._connection.execute(f"PRAGMA foreign_key_check({table})").fetchone() is not None:
                raise SchemaMismatch(f"the database was not adopted: a row of {table} would lack its parent")

    def _note_broken_views(self) -> None:
        views = self._connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
        for (name,) in views:
            try:
                self._connection.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 0").fetchall()
            except sqlite3.OperationalError:
                self._findings.note(name, name, "the view does not fit the tables any more: drop it or mend it")

    def _note_broken_references(self) -> None:
        for table in self._findings.kept_tables.values():
            parents = self._connection.execute(
                """SELECT DISTINCT "table" FROM pragma_foreign_key_list(?) WHERE lower("table") NOT IN
                (SELECT lower(name) FROM sqlite_schema WHERE type = 'table')""",
                (table,),
            ).fetchall()
            for (parent,) in parents:
                self._findings.note(table, table, f"the table refers to {parent}, which is not there any more")


@contextmanager
def _any_bytes(connection: sqlite3.Connection) -> Iterator[None]:
    """Let texts be read that are not UTF-8."""
    factory, connection.text_factory = connection.text_factory, decode
    try:
        yield
    finally:
        connection.text_factory = factory
