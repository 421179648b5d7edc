"""Empties the tables of a PostgreSQL schema, in one transaction that either happens or does not."""

from __future__ import annotations

import psycopg
from psycopg.rows import tuple_row

from jobstore.clock import system_clock
from jobstore.databases import PostgresDatabase
from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_schema import SCHEMA_LOCK
from jobstore.engines.postgres_server import Server
from jobstore.errors import DatabaseBusy, DatabaseInUse, SchemaMismatch
from jobstore.migrate.postgres import BUSY_DEADLINE
from jobstore.operations.promotion import TABLES
from jobstore.promotion.pair import some

_EMPTIED = (*(table.name for table in TABLES), "lanes", "maintenance", "promotion", "workers")
_NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
_HOLDERS = f"""
    SELECT id FROM workers WHERE expires_at > {_NOW}
    UNION SELECT worker_id FROM job_attempts WHERE finished_at IS NULL AND lease_expires_at > {_NOW} ORDER BY 1
"""

Connection = psycopg.Connection[tuple[object, ...]]


def empty(database: PostgresDatabase) -> None:
    """Delete every row of the store, unless workers live or hold leases. No migration runs meanwhile.

    Raises:
        DatabaseInUse: They do.
        DatabaseBusy: Another program holds on to a table.
        SchemaMismatch: It is no store of ours.
    """
    server = Server(database.url, database.name, system_clock)
    try:
        with server.connect_blocking(tuple_row) as connection, connection.transaction():
            _empty(connection, database.name)
    except psycopg.errors.UndefinedTable:
        raise SchemaMismatch(f"{database.name} holds no store of this version: migrate it first") from None
    except psycopg.errors.LockNotAvailable:
        raise DatabaseBusy(BUSY_DEADLINE) from None
    except psycopg.Error as error:
        raise translate(error) from None


def _empty(connection: Connection, name: str) -> None:
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{BUSY_DEADLINE}s",))
    connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (SCHEMA_LOCK,))
    connection.execute(f"LOCK TABLE {', '.join(_EMPTIED)} IN ACCESS EXCLUSIVE MODE")  # nobody registers or claims now
    holders = [str(holder) for (holder,) in connection.execute(_HOLDERS).fetchall()]
    if holders:
        raise DatabaseInUse(name, None, (), 0.0, f"the workers {some(holders)}")
    connection.execute(f"TRUNCATE {', '.join(_EMPTIED)}")
