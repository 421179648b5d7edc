"""Reaching a PostgreSQL server: connections, what is asked of them, and errors that name no password."""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Any, NamedTuple, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import RowFactory, dict_row

from jobstore.clock import Clock
from jobstore.engines.postgres_driver import configure
from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_pipeline import Connection
from jobstore.engines.postgres_schema import TAKE_SHARE
from jobstore.errors import ConnectionLost, DatabaseError, DatabaseNotFound, InvalidArgument, SchemaMismatch

R = TypeVar("R")

MINIMUM_SERVER = 150000
"""PostgreSQL 15, the oldest that the tests were run on, in the server's own way of counting."""
CONNECT_TIMEOUT = 10
"""Seconds for one try; libpq counts in whole ones."""
RETRY_SECONDS = 0.05
RETRY_SLOWEST = 1.0
STATEMENT_TIMEOUT = 60.0
"""Seconds after which the server gives up a statement of ours; none of them takes long."""
SILENCE = 30
"""Seconds after which a network that says nothing counts as lost; systems would wait for hours."""
IDLE_TIMEOUT = 60.0
"""Seconds after which the server ends a session that says nothing in mid-transaction: its host has vanished, and
others wait for the rows that it has locked."""
TRUSTED_SKEW = 250
"""Milliseconds. A smaller difference is what networks and schedulers make of a clock that is right."""

_DEFAULTS: dict[str, str | int | None] = {
    "application_name": "jobstore",
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": SILENCE // 2,
    "keepalives_interval": SILENCE // 6,
    "keepalives_count": 3,
    "tcp_user_timeout": SILENCE * 1000,
}


# Nothing but `run_together` prepares statements: behind a pooler, the next transaction's session knows nothing of them.
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}

_SETTINGS = "current_setting('search_path') AS search_path, current_setting('server_encoding') AS encoding"

_SEARCH_PATH = re.compile(r"(?:-c\s*|--)search[_-]path=((?:\\.|[^\s\\])*)", re.IGNORECASE)
"""In `options`, which the server takes as if from a command line."""


class Facts(NamedTuple):
    """What one connection found out about its server."""

    pooled: bool
    """Whether a pooler stands in between, which gives each transaction another session."""
    offset: int
    """How far the server's clock is ahead of this host's, in milliseconds; 0 if it is about right."""


class Server:
    """A PostgreSQL database, and how to reach it.

    Args:
        url: As libpq takes it, `postgresql://user:password@host/database?options=…`.
        name: What it is called in messages: without a password.
        host_clock: This host's own time in milliseconds, whatever clock the store was given.

    Raises:
        InvalidArgument: It is no such URL.
    """

    def __init__(self, url: str, name: str, host_clock: Clock) -> None:
        self.name = name
        self.host_clock = host_clock
        self._conninfo = _read(url, name)

    async def connect(self) -> tuple[Connection, Facts]:
        """Connect once.

        Raises:
            DatabaseNotFound: There is no such server, database or user, or the password is wrong.
            SchemaMismatch: The server is too old, or the database's encoding is not UTF-8.
        """
        connection = await self._reach()
        if isinstance(connection, DatabaseNotFound):  # raised out here: psycopg's error holds the password
            raise connection
        try:
            configure(connection)
            facts = await self._look(connection)
            connection.prepares = not facts.pooled
        except psycopg.Error as error:
            await connection.close()
            raise translate(error) from error.__cause__
        except BaseException:
            await connection.close()
            raise
        return connection, facts

    def connect_blocking(self, row_factory: RowFactory[R]) -> psycopg.Connection[R]:
        """Connect once, for a program that may block: the migrations.

        Raises:
            DatabaseNotFound: There is no such server, database or user, or the password is wrong.
            SchemaMismatch: The server is too old, or the database's encoding is not UTF-8.
        """
        connection = self._reach_blocking(row_factory)
        if isinstance(connection, DatabaseNotFound):
            raise connection
        try:
            self._refuse_if_old(connection.info.server_version)
            [row] = connection.cursor(row_factory=dict_row).execute(f"SELECT {_SETTINGS}").fetchall()
            self._refuse_if_other(connection.info.options, **row)
        except BaseException:
            connection.close()
            raise
        return connection

    async def connect_patiently(self, until: float) -> tuple[Connection, Facts]:
        """Connect, however often the server has to be asked: it may be starting again. It is asked once at least.

        Args:
            until: When to give up, as `time.monotonic` has it.

        Raises:
            ConnectionLost: It could not be reached.
        """
        started, pause = time.monotonic(), RETRY_SECONDS
        while True:
            try:
                return await self.connect()
            except DatabaseError as error:
                now = time.monotonic()
                if now + pause > until:
                    raise ConnectionLost(f"{self.name} could not be reached: {error}", now - started) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            pause = min(2 * pause, RETRY_SLOWEST)

    def pool(self, size: int, timeout: float, *, pooled: bool) -> psycopg_pool.AsyncConnectionPool[Connection]:
        """Return a pool of up to `size` connections, still closed; a caller waits for one `timeout` seconds at most."""

        async def prepare(connection: Connection) -> None:
            configure(connection)
            connection.prepares = not pooled
            if pooled:  # which would give the session, and what is set in it, to others
                connection.reading = f"; SET LOCAL statement_timeout = {round(STATEMENT_TIMEOUT * 1000)}"
            else:
                await connection.execute(f"SET statement_timeout = {round(STATEMENT_TIMEOUT * 1000)}")

        return psycopg_pool.AsyncConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs={**_OPTIONS, "row_factory": dict_row},
            min_size=0,
            max_size=size,
            timeout=timeout,
            reconnect_timeout=timeout,  # its pauses double: minutes after a long absence, if it did not begin anew
            configure=prepare,
            open=False,
            name="jobstore",
        )

    async def _reach(self) -> Connection | DatabaseNotFound:
        try:
            return await Connection.connect(self._conninfo, **_OPTIONS, row_factory=dict_row)
        except psycopg.Error as error:
            return self._unreachable(error)

    def _reach_blocking(self, row_factory: RowFactory[R]) -> psycopg.Connection[R] | DatabaseNotFound:
        try:
            return psycopg.Connection.connect(self._conninfo, **_OPTIONS, row_factory=row_factory)
        except psycopg.Error as error:
            return self._unreachable(error)

    async def _look(self, connection: Connection) -> Facts:
        self._refuse_if_old(connection.info.server_version)
        before = self.host_clock()
        cursor = await connection.execute(
            "SELECT pg_backend_pid() AS pid, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now,"
            f" {_SETTINGS}"
        )
        [row] = await cursor.fetchall()
        offset = self.offset(before, row["now"])
        self._refuse_if_other(connection.info.options, row["search_path"], row["encoding"])
        # A pooler tells its own number for the session, not the server's.
        return Facts(pooled=row["pid"] != connection.info.backend_pid, offset=offset)

    def offset(self, before: int, server_time: int, known: int = 0) -> int:
        """Return how far the server's clock is ahead that has told its time since `before` of this host's.

        What is known already stands unless it is clearly wrong: time had better not go back and forth.
        """
        after = self.host_clock()
        offset = server_time - (before + after) // 2
        return known if abs(offset - known) <= max(TRUSTED_SKEW, after - before) else offset

    def _refuse_if_old(self, version: int) -> None:
        if version < MINIMUM_SERVER:
            raise SchemaMismatch(f"{self.name} runs PostgreSQL {version // 10000}: {MINIMUM_SERVER // 10000} is needed")

    def _refuse_if_other(self, options: str, search_path: str, encoding: str) -> None:
        """Refuse a database that cannot hold every text, and a search_path that was not asked for: of another store."""
        if encoding != "UTF8":
            raise SchemaMismatch(
                f"the database of {self.name} has the encoding {encoding}, which cannot hold every text: make one with "
                "CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'"
            )
        asked = _SEARCH_PATH.findall(options)
        if asked and re.sub(r"\\(.)", r"\1", asked[-1]) != search_path:
            raise SchemaMismatch(
                f"{self.name} has the search_path {search_path}, not the one of its options: a pooler in between keeps "
                "them to itself; leave them out, and set it for the user with ALTER ROLE … SET search_path"
            )

    def _unreachable(self, error: psycopg.Error) -> DatabaseNotFound:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]  # advice
        reason = "; ".join(dict.fromkeys(line.removeprefix("connection failed: ") for line in lines))
        return DatabaseNotFound(
            self.name,
            f"{reason or type(error).__name__} (check the address, the database, the user, and the password: it is "
            "taken from the URL, PGPASSWORD or ~/.pgpass)",
        )


def settings(*, durability: str, lock_timeout: float, lock: int) -> str:
    """Return the statement that sets what holds for the present transaction alone: so it serves behind a pooler.

    It takes the advisory lock `lock` as well, and tries for a share of the schema's.
    """
    commit = "on" if durability == "full" else "off"
    return (
        f"SELECT set_config('lock_timeout', '{round(lock_timeout * 1000)}', true), "
        f"set_config('statement_timeout', '{round(STATEMENT_TIMEOUT * 1000)}', true), "
        f"set_config('idle_in_transaction_session_timeout', '{round(IDLE_TIMEOUT * 1000)}', true), "
        f"set_config('synchronous_commit', '{commit}', true), pg_advisory_xact_lock({lock}), {TAKE_SHARE}"
    )


def _read(url: str, name: str) -> str:
    """Return the connection's parameters, with defaults."""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error:  # whose text may quote the password
        parameters = None
    if parameters is None:
        raise InvalidArgument("url", f"is no PostgreSQL URL: {_complaint(name)}")
    # Of several hosts, the one that takes writes: whichever of them is the primary by then.
    several = {"target_session_attrs": "read-write"} if "," in str(parameters.get("host", "")) else {}
    # Whatever PGCLIENTENCODING says, or the database's own encoding: only so can every text be sent.
    return make_conninfo("", **{**_DEFAULTS, **several, **parameters, "client_encoding": "UTF8"})


def _complaint(name: str) -> str:
    """Return what libpq says of a URL without its password."""
    try:
        conninfo_to_dict(name)
    except psycopg.Error as error:
        return str(error).strip()
    return "write % in a password as %25"
