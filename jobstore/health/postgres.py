"""Checks a PostgreSQL schema: what its steps made by the server's catalog, its rows, and its large texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import RawCursor
from psycopg.rows import DictRow, dict_row

from jobstore.clock import Clock
from jobstore.databases import PostgresDatabase, migrate_command
from jobstore.engines.postgres_driver import configure
from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_pipeline import bind, to_query
from jobstore.engines.postgres_server import MINIMUM_SERVER
from jobstore.engines.postgres_statements import DIALECT
from jobstore.errors import DatabaseError
from jobstore.health.checks import SHARED_CHECKS, Check
from jobstore.health.checks.schema import compare_steps
from jobstore.health.report import Finding, bad, good
from jobstore.health.running import open_texts, run_checks
from jobstore.health.schema import steps_had
from jobstore.migrate import Step
from jobstore.migrate.postgres import RECORDS, in_one_statement
from jobstore.operations.migrations import applied, store_id
from jobstore.outputs import Outputs, Place
from jobstore.progress import Tell
from jobstore.sql import MakeOperation, Operation, Statement

T = TypeVar("T")

Connection = psycopg.Connection[DictRow]
Definitions = dict[tuple[str, str], str]
"""What there is in a schema: kind and name → what it is, as the server says it."""

_REFERENCE = "jobstore_check_reference"
"""A schema that is made, looked at, and taken back in the same transaction: nobody else ever sees it."""
_PATIENCE = "SET LOCAL lock_timeout = '1s'"
"""Whoever holds on to a table, such as a migration that does not end, is to be told of, not waited for."""


class PostgresSubject:
    """A PostgreSQL schema: the first of the connection's search_path.

    Args:
        connection: With rows as mappings, in no transaction.
        steps: Of this version's schema.
        command: What applies pending steps.
        clock: The present time in milliseconds.
        tell: Called as it goes on.
    """

    remedy = "mend the rows with SQL, after a pg_dump"
    unreadable = "mend what it says on the server, or restore a pg_dump"
    texts: Outputs | None = None

    def __init__(self, connection: Connection, steps: list[Step], command: str, clock: Clock, tell: Tell) -> None:
        configure(connection)
        self.connection = connection
        self.steps = steps
        self.command = command
        self.clock = clock
        self.tell = tell

    def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads, on a snapshot of its own."""
        try:
            with self.connection.transaction():
                self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                self.connection.execute(_PATIENCE)
                return _drive(self.connection, make_operation(self.clock(), *args))
        except psycopg.Error as error:
            raise translate(error) from None


def check_postgres(
    database: PostgresDatabase, steps: list[Step], place: Place | None, clock: Clock, tell: Tell, *, quick: bool
) -> list[Finding]:
    """Check a PostgreSQL schema and its large texts.

    Raises:
        DatabaseNotFound: There is no such server or database.
    """
    with database.server().connect_blocking(dict_row) as connection:
        subject = PostgresSubject(connection, steps, migrate_command(database), clock, tell)
        try:
            name = subject.read(store_id)
        except DatabaseError:
            name = ""  # the check of it says why
        subject.texts = open_texts(place, name, clock)
        return run_checks(subject, [entry for entry in POSTGRES_CHECKS if entry.quick or not quick], tell)


def server(subject: PostgresSubject) -> Finding:
    """Check which server this is."""
    version = subject.connection.info.server_version
    text = f"PostgreSQL {version // 10000}.{version % 10000}"
    if version < MINIMUM_SERVER:
        return bad("server", f"{text} is too old", f"move to PostgreSQL {MINIMUM_SERVER // 10000} or newer")
    return good("server", text)


def migrations(subject: PostgresSubject) -> Finding:
    """Check the steps that were applied against those of this version."""
    return compare_steps(subject.steps, subject.read(applied), subject.command)


def schema(subject: PostgresSubject) -> Finding:
    """Check that all that the applied steps have made is there, as they made it."""
    steps = steps_had(subject.steps, {record.name for record in subject.read(applied)}) or subject.steps
    try:
        wanted, found = _reference(subject.connection, steps), _present(subject.connection)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        return good("schema", "not looked at: that needs the right to create a schema, which is taken back at once")
    except psycopg.Error as error:
        raise translate(error) from None
    problems = [f"{kind} {name} is missing" for kind, name in sorted(wanted.keys() - found.keys())]
    problems += [
        f"{kind} {name} is another than it should be"
        for kind, name in sorted(wanted.keys() & found.keys())
        if wanted[kind, name] != found[kind, name]
    ]
    notes = [f"not jobstore's own: {kind} {name}" for kind, name in sorted(found.keys() - wanted.keys())]
    if problems:
        return bad(
            "schema",
            f"missing or changed, of what the migrations made: {len(problems)}",
            "make them again as the steps in `jobstore/migrations/postgres` do",
            *problems,
            *notes,
        )
    return good("schema", "every table, column, index, trigger and function is there", *notes)


POSTGRES_CHECKS: Sequence[Check] = (
    Check("server", server, quick=True),
    Check("migrations", migrations, quick=True),
    Check("schema", schema, quick=True),
    *SHARED_CHECKS,
)


def _drive(connection: Connection, operation: Operation[T]) -> T:
    """Run an operation's statements, each in a savepoint, and return its value."""
    try:
        statement = next(operation)
        while True:
            try:
                with connection.transaction():
                    result = _run(connection, statement)
            except psycopg.Error as error:
                statement = operation.throw(translate(error))
            else:
                statement = operation.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


def _run(connection: Connection, statement: Statement) -> Any:  # noqa: ANN401 - depends on `fetch`
    if statement.fetch == "dialect":
        return DIALECT
    if isinstance(statement.parameters, list) or statement.fetch not in {"one", "all"}:
        raise AssertionError(statement.fetch)  # a check only reads
    query, values = bind(to_query(statement.sql), statement.parameters)
    rows = RawCursor(connection).execute(query.text.encode(), values).fetchall()
    if statement.fetch == "one":
        return rows[0] if rows else None
    return rows


def _reference(connection: Connection, steps: Sequence[Step]) -> Definitions:
    """Return what the steps make, in a schema that is taken back."""
    with connection.transaction(force_rollback=True):
        connection.execute(_PATIENCE)
        connection.execute(f"CREATE SCHEMA {_REFERENCE}")
        connection.execute(f"SET LOCAL search_path TO {_REFERENCE}")
        connection.execute(RECORDS)
        for step in steps:
            step.apply(connection, lambda script: in_one_statement(connection, script))
        return _definitions(connection)


def _present(connection: Connection) -> Definitions:
    """Return what there is in the store's schema."""
    with connection.transaction():
        connection.execute(_PATIENCE)  # the server opens a table to say what its defaults are
        return _definitions(connection)


def _definitions(connection: Connection) -> Definitions:
    """Return what there is in the present schema."""
    [row] = connection.execute("SELECT quote_ident(current_schema()) AS name").fetchall()
    place = row["name"]
    return {
        (found["kind"], found["name"]): found["definition"].replace(f" ON {place}.", " ON ").replace(f"{place}.", "")
        for query in _CATALOG
        for found in _rows(connection, query)
    }


def _rows(connection: Connection, query: str) -> Iterator[DictRow]:
    yield from connection.execute(query).fetchall()


_HERE = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_CATALOG = (
    f"""
    SELECT 'table' AS kind, relname::text AS name, relpersistence::text AS definition
    FROM pg_class WHERE relnamespace = {_HERE} AND relkind IN ('r', 'p')
    """,
    f"""
    SELECT 'column' AS kind, relname || '.' || attname AS name, concat_ws(' ', format_type(atttypid, atttypmod),
        CASE WHEN attnotnull THEN 'NOT NULL' END, pg_get_expr(adbin, adrelid),
        CASE WHEN attcollation <> 0 THEN (SELECT collname FROM pg_collation WHERE oid = attcollation) END) AS definition
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = {_HERE} AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
    """,
    f"""
    SELECT 'constraint' AS kind, relname || '.' || conname AS name,
        pg_get_constraintdef(pg_constraint.oid) AS definition
    FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE relnamespace = {_HERE} AND contype <> 'n'
    """,
    f"""
    SELECT 'index' AS kind, relname::text AS name, pg_get_indexdef(indexrelid) AS definition
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE relnamespace = {_HERE}
    """,
    f"""
    SELECT 'trigger' AS kind, relname || '.' || tgname AS name,
        pg_get_triggerdef(pg_trigger.oid, true) || ' ' || tgenabled::text AS definition
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid WHERE relnamespace = {_HERE} AND NOT tgisinternal
    """,
    f"""
    SELECT 'function' AS kind, proname::text AS name, prosrc AS definition
    FROM pg_proc WHERE pronamespace = {_HERE}
    """,
)
"""The kinds of things in a schema. NOT NULL is the column's, although newer servers keep it as a constraint, too."""
