"""Keeps transactions from writing by the rules of a schema that is no longer there, at no extra round trip."""

from __future__ import annotations

import contextlib

from psycopg import errors

from jobstore.engines import postgres_driver as driver
from jobstore.engines.postgres_pipeline import Bound, Connection, to_query
from jobstore.sql import MakeOperation, Row

SCHEMA_LOCK = 0x6A6F6273  # "jobs"
"""The advisory lock of a schema, beside a number made of its name: whoever changes it holds it alone, whoever writes
in it shared."""
TAKE_SHARE = f"pg_try_advisory_xact_lock_shared({SCHEMA_LOCK}, hashtext(current_schema())) AS is_at_rest"
COUNT_STEPS = Bound(to_query("SELECT count(*) AS steps FROM migrations"), [])


class SchemaInMotion(Exception):
    """The schema is being changed just now: begin again later."""


class SchemaMoved(Exception):
    """The schema was changed since it was checked: check it, and begin again."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        super().__init__(steps)


class SchemaGuard:
    """What the schema was when it was last checked; one for all writers of a store."""

    def __init__(self) -> None:
        self._check: MakeOperation[[], None] | None = None
        self._steps = -1

    async def open(self, connection: Connection, check: MakeOperation[[], None], now: int) -> None:
        """Let `check` read the schema, and refuse one that is not what the operations were written for.

        Raises:
            DatabaseError: It does.
            TransactionFailed: The connection is lost.
        """
        self._check = check
        steps = -1
        with contextlib.suppress(errors.UndefinedTable):
            [row] = await (await connection.execute(COUNT_STEPS.query.text)).fetchall()
            steps = row["steps"]
        await self.accept(connection, SchemaMoved(steps), now)

    def look(self, share: Row, count: Row) -> None:
        """Look at what a transaction has read at its beginning.

        Raises:
            SchemaInMotion: Somebody is changing the schema.
            SchemaMoved: Somebody has.
        """
        if not share["is_at_rest"]:
            raise SchemaInMotion
        if count["steps"] != self._steps:
            raise SchemaMoved(count["steps"])

    async def accept(self, connection: Connection, moved: SchemaMoved, now: int) -> None:
        """Check the schema anew, in no transaction.

        Raises:
            MigrationRequired: It was changed since, and not by this version.
            SchemaMismatch: It was changed by a newer version.
            TransactionFailed: The connection is lost.
        """
        if self._check is not None:
            await driver.read(connection, self._check(now))
        self._steps = moved.steps
