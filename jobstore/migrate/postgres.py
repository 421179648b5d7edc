"""Applies pending steps to a PostgreSQL schema: each with its record in one transaction."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from jobstore.clock import Clock, from_milliseconds, system_clock
from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_schema import SCHEMA_LOCK
from jobstore.engines.postgres_server import Server
from jobstore.engines.postgres_statements import statements
from jobstore.errors import DatabaseBusy, InvalidArgument, SchemaMismatch
from jobstore.migrate.adoption import REPORT_KEY, Adoption, read_report
from jobstore.migrate.steps import POSTGRES_STEPS, Result, Status, Step, check_applied, load_steps, pending_steps
from jobstore.models import AppliedMigration

BUSY_DEADLINE = 60.0
"""Seconds: another migrator may be at a long step, another program at what a step changes; all others wait behind."""

RECORDS = """
    CREATE TABLE IF NOT EXISTS migrations (
        name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
        checksum TEXT NOT NULL,
        applied_at BIGINT NOT NULL
    )
"""
"""The table of what was applied, which is there before any step."""

_TRANSACTION = re.compile(
    r"(BEGIN|START|COMMIT|END|ABORT|PREPARE TRANSACTION|ROLLBACK(?! (WORK |TRANSACTION )?TO\b))\b", re.IGNORECASE
)
_BODY = re.compile(r"\bBEGIN ATOMIC\b", re.IGNORECASE)
"""Begins a function's body in SQL, whose END is no statement."""

Connection = psycopg.Connection[tuple[object, ...]]


class PostgresMigrator:
    """Brings one PostgreSQL schema up to date: the first of the connection's search_path.

    It makes no backup: that is the server's own tools' (`pg_dump`). A step that fails leaves nothing behind.

    Args:
        url: The database, as libpq takes it.
        name: What it is called in messages: without a password.
        steps: What to apply, in order; by default the steps of this version.
        clock: The present time in milliseconds.

    Example:
        >>> PostgresMigrator("postgresql://host/jobs?options=-csearch_path%3Djobs", "jobs").run()
    """

    def __init__(self, url: str, name: str, steps: Sequence[Step] | None = None, clock: Clock = system_clock) -> None:
        self._server = Server(url, name, system_clock)
        self._steps = load_steps(POSTGRES_STEPS) if steps is None else list(steps)
        self._clock = clock

    def status(self) -> Status:
        """Return what was applied and what is pending. It changes nothing.

        Raises:
            DatabaseError: The server cannot be reached, or the schema does not fit this version.
        """
        with self._connected() as connection:
            applied = _read_applied(connection)
        check_applied(self._steps, applied)
        return Status(applied, pending_steps(self._steps, applied), holds_anything=False)

    def run(
        self,
        announce: Callable[[Step], None] = lambda _: None,
        backed_up: Callable[[Path], None] = lambda _: None,  # noqa: ARG002 - no backup is made
    ) -> Result:
        """Apply what is pending. Several migrators at once are fine: each step is applied by one of them.

        Args:
            announce: Called with each step before it is applied.
            backed_up: Never called.

        Raises:
            DatabaseError: A step failed, and was undone; those before it remain. Or the schema does not fit.
        """
        if not self.status().pending:
            return Result([], None)
        applied: list[str] = []
        with self._connected() as connection:
            for step in self._steps:
                with connection.transaction():
                    if self._is_pending(connection, step):
                        announce(step)
                        self._apply(connection, step)
                        applied.append(step.name)
        return Result(applied, None)

    def rehearse(self) -> None:
        """Return None: the old system had files alone. Adopt one, and promote it."""

    def adoption(self) -> Adoption | None:
        """Return the report of the adoption that made the store that was promoted to this one, if it was made so.

        Raises:
            DatabaseError: The server cannot be reached, or there is no store.
        """
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT value::text FROM key_value_store WHERE key = %s", (REPORT_KEY,)
            ).fetchall()
        return read_report(str(rows[0][0])) if rows else None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._server.connect_blocking(tuple_row) as connection:
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # what others did is seen in time
                _require_schema(connection, self._server.name)
                yield connection
        except psycopg.Error as error:
            raise translate(error) from None

    def _is_pending(self, connection: Connection, step: Step) -> bool:
        """Wait for other migrators, and ask again: one may have been here meanwhile."""
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{BUSY_DEADLINE}s",))
        try:
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (SCHEMA_LOCK,))
        except psycopg.errors.LockNotAvailable:
            raise DatabaseBusy(BUSY_DEADLINE) from None
        applied = _read_applied(connection)
        check_applied(self._steps, applied)
        return step in pending_steps(self._steps, applied)

    def _apply(self, connection: Connection, step: Step) -> None:
        connection.execute(RECORDS)
        transaction = _transaction(connection)
        try:
            with _without_transactions(connection):
                step.apply(connection, lambda script: in_one_statement(connection, script))
            is_same = _transaction(connection) == transaction
        except Exception as error:  # noqa: BLE001 - of any kind: the step is undone
            reason = _reason(error)
            raise SchemaMismatch(f"step {step.name} failed and was undone: {reason}", (step.name,)) from None
        if not is_same:
            raise SchemaMismatch(
                f"step {step.name} ended its transaction: what it did before remains; undo that and mend the step",
                (step.name,),
            )
        connection.execute("RESET search_path")  # which the step may have changed
        connection.execute(
            "INSERT INTO migrations (name, checksum, applied_at) VALUES (%s, %s, %s)",
            (step.name, step.checksum, self._clock()),
        )


class _StepCursor(psycopg.Cursor[Any]):
    """Refuses statements that would begin or end the step's transaction."""

    def execute(self, query: Any, *args: Any, **options: Any) -> _StepCursor:  # noqa: ANN401 - as psycopg's
        self._refuse_transactions(query)
        return super().execute(query, *args, **options)

    def executemany(self, query: Any, *args: Any, **options: Any) -> None:  # noqa: ANN401
        self._refuse_transactions(query)
        super().executemany(query, *args, **options)

    def stream(self, query: Any, *args: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401
        self._refuse_transactions(query)
        return super().stream(query, *args, **options)

    def _refuse_transactions(self, query: str | bytes | sql.Composable) -> None:
        text = query.as_string(self) if isinstance(query, sql.Composable) else query
        _refuse_transactions(text.decode() if isinstance(text, bytes) else text)


@contextlib.contextmanager
def _without_transactions(connection: Connection) -> Iterator[None]:
    usual, connection.cursor_factory = connection.cursor_factory, _StepCursor
    try:
        yield
    finally:
        connection.cursor_factory = usual


def _refuse_transactions(script: str) -> None:
    has_body = any(map(_BODY.search, parts := statements(script)))
    for statement in parts:
        found = _TRANSACTION.match(statement)
        if found and not (has_body and found.group().upper() == "END"):
            raise InvalidArgument(
                "sql", f"{found.group()} would begin or end the step's transaction, which is the runner's business"
            )


def _transaction(connection: Connection) -> object:
    [(number,)] = connection.execute("SELECT pg_current_xact_id()::text").fetchall()
    return number


def in_one_statement(connection: psycopg.Connection[Any], script: str) -> list[str]:
    """Return what runs a whole script, and refuses one that would end the transaction."""
    connection.execute("SELECT set_config('jobstore.step', %s, true)", (script,))
    return ["DO $$ BEGIN EXECUTE current_setting('jobstore.step'); END $$"]


def _reason(error: Exception) -> str:
    if isinstance(error, psycopg.Error):
        return str(translate(error))
    return str(error) or type(error).__name__


def _require_schema(connection: Connection, name: str) -> None:
    [(schema,)] = connection.execute("SELECT current_schema()").fetchall()
    if schema is None:
        raise SchemaMismatch(f"{name} has none of the schemas of its search_path: create one of them")


def _read_applied(connection: Connection) -> list[AppliedMigration]:
    columns = connection.execute(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = 'migrations'"
    ).fetchall()
    if not columns:
        return []
    if ("checksum",) not in columns:
        raise SchemaMismatch("the schema has a table `migrations` of another program: use another schema")
    rows = connection.execute("SELECT name, checksum, applied_at FROM migrations ORDER BY name").fetchall()
    return [
        AppliedMigration(name=str(name), checksum=str(checksum), applied_at=from_milliseconds(int(str(at))))
        for name, checksum, at in rows
    ]
