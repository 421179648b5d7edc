"""The room that a schema of PostgreSQL takes, and vacuuming its tables."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import psycopg

from jobstore.aio import finish
from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_server import Server
from jobstore.errors import InvalidArgument
from jobstore.overviews import Space
from jobstore.sql import Operation, fetch_one


def space(_now: int) -> Operation[Space]:
    """Return what the tables of the schema take, with their indexes."""
    row = yield from fetch_one(
        "SELECT COALESCE(SUM(pg_total_relation_size(oid)), 0)::bigint AS total FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    return Space(total=0 if row is None else row["total"], free=0, can_shrink=False)


async def vacuum(server: Server, tables: Sequence[str]) -> AsyncGenerator[None, None]:
    """Let the server vacuum and analyze each table, on a connection of its own: it cannot be in a transaction.

    Raises:
        DatabaseError: It failed.
    """
    connection, _ = await server.connect()
    try:
        for table in tables:
            await connection.execute(f"VACUUM (ANALYZE) {table}".encode())
            yield
    except psycopg.Error as error:
        raise translate(error) from error.__cause__
    finally:
        await finish(connection.close())


def cannot_overwrite() -> InvalidArgument:
    """Return why what is deleted is not overwritten: the server keeps it until it vacuums, and only forgets it then."""
    return InvalidArgument("secure", "PostgreSQL cannot overwrite what is deleted: encrypt the server's disk instead")
