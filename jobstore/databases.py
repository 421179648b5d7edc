"""The database that a path or a URL names: its engine, its migrator, and where its large texts lie by default."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import unquote, urlsplit

from jobstore.clock import Clock, system_clock
from jobstore.engines.base import Engine
from jobstore.engines.sqlite import SQLiteEngine
from jobstore.errors import InvalidArgument, MigrationRequired
from jobstore.migrate import (
    POSTGRES_STEPS,
    SQLITE_STEPS,
    Adoption,
    Migrator,
    Result,
    Status,
    Step,
    check_applied,
    load_steps,
    pending_steps,
)
from jobstore.operations import migrations
from jobstore.outputs import Place
from jobstore.sql import Operation

if TYPE_CHECKING:
    from jobstore.engines.postgres_server import Server

URL_VARIABLE = "JOBSTORE_URL"
POSTGRES_SCHEMES = ("postgresql", "postgres")
_SECRETS = {"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}
_HOST = r"(\[[^\[\]@/?\0]*\]|[^\[\]:,@/?\0]*)(:\d*)?"
_POSTGRES_URL = re.compile(
    r"(?P<scheme>\w+://)((?P<user>[^:@/\0]*)(:[^@/\0]*)?@)?"
    rf"(?P<place>{_HOST}(,{_HOST})*(/[^?@\0]*)?)(\?(?P<query>[^\0]*))?"
)
"""As libpq takes it apart: a password ends at the first @. What follows holds none, or it is a part of the password."""

Durability = Literal["full", "normal"]


class AnyMigrator(Protocol):
    """What every migrator does, whatever database it is for."""

    def status(self) -> Status:
        """Return what was applied and what is pending."""

    def run(self, announce: Callable[[Step], None] = ..., backed_up: Callable[[Path], None] = ...) -> Result:
        """Apply what is pending."""

    def rehearse(self) -> Adoption | None:
        """Return what adopting a database of the old system would find and do."""

    def adoption(self) -> Adoption | None:
        """Return the report of the adoption that made the store."""


class Database(Protocol):
    """A database that a store can be opened on."""

    @property
    def name(self) -> str:
        """What it is called in messages: without a password."""

    @property
    def path(self) -> Path | None:
        """Its file, if it is one."""

    @property
    def outputs(self) -> Path | None:
        """The folder of its large texts, if nobody says another."""

    def load(self) -> list[Step]:
        """Import what it needs, and return the steps of its schema. It reads files: call it in a thread.

        Raises:
            InvalidArgument: An extra is not installed.
        """

    def migrator(self, clock: Clock = system_clock, place: Place | None = None) -> AnyMigrator:
        """Return what brings its schema up to date; the place is where large texts lie."""

    def engine(self, clock: Clock, pool_size: int, durability: Durability) -> Engine:
        """Return what drives operations on it."""


class SQLiteDatabase:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.outputs = Path(f"{path}.outputs")

    def load(self) -> list[Step]:
        """Return the steps of its schema."""
        return load_steps(SQLITE_STEPS)

    def migrator(self, clock: Clock = system_clock, place: Place | None = None) -> AnyMigrator:
        """Return what brings its schema up to date; the place is where large texts lie, by default in `outputs`."""
        return Migrator(self.path, clock=clock, place=place)

    def engine(self, clock: Clock, pool_size: int, durability: Durability) -> Engine:
        """Return what drives operations on it."""
        return SQLiteEngine(self.path, clock, pool_size, durability)


class PostgresDatabase:
    """A schema of a PostgreSQL database: the first of the connection's search_path.

    Raises:
        InvalidArgument: The URL cannot be understood.
    """

    path = None
    outputs = None

    def __init__(self, url: str) -> None:
        self.name = without_secrets(url)
        self.url = url
        """With the password: it goes into no message."""

    def load(self) -> list[Step]:
        """Import what it needs, and return the steps of its schema.

        Raises:
            InvalidArgument: The extra is not installed.
        """
        if find_spec("psycopg") is None or find_spec("psycopg_pool") is None:
            raise InvalidArgument("url", 'PostgreSQL needs an extra: pip install "jobstore[postgres]"')
        import_module("jobstore.engines.postgres")
        return load_steps(POSTGRES_STEPS)

    def migrator(self, clock: Clock = system_clock, place: Place | None = None) -> AnyMigrator:  # noqa: ARG002
        """Return what brings its schema up to date. It writes no texts, wherever they lie."""
        self.load()
        from jobstore.migrate.postgres import PostgresMigrator  # noqa: PLC0415 - needs the extra

        return PostgresMigrator(self.url, self.name, clock=clock)

    def server(self) -> Server:
        """Return how to reach it."""
        from jobstore.engines.postgres_server import Server  # noqa: PLC0415 - needs the extra

        return Server(self.url, self.name, system_clock)

    def engine(self, clock: Clock, pool_size: int, durability: Durability) -> Engine:
        """Return what drives operations on it."""
        from jobstore.engines.postgres import PostgresEngine  # noqa: PLC0415 - needs the extra

        return PostgresEngine(self.url, self.name, clock, pool_size, durability)


def without_secrets(url: str) -> str:
    """Return a PostgreSQL URL without the password in it.

    Raises:
        InvalidArgument: It is no such URL, so nobody can tell where in it the password ends.

    Example:
        >>> without_secrets("postgresql://me:secret@host/jobs?sslpassword=secret&options=-csearch_path%3Djobs")
        'postgresql://me@host/jobs?options=-csearch_path%3Djobs'
    """
    parts = _POSTGRES_URL.fullmatch(url)
    options = [pair.partition("=") for pair in parts["query"].split("&")] if parts and parts["query"] else []
    if parts is None or not all(separator for _, separator, _ in options):
        raise InvalidArgument(
            "url",
            "is no PostgreSQL URL: write postgresql://user:password@host:port/database, and what is special in a "
            "password as %40 for @, %2F for /, %3F for ?, %26 for & and %25 for %",
        )
    user = f"{parts['user']}@" if parts["user"] else ""
    query = "&".join("".join(option) for option in options if unquote(option[0]) not in _SECRETS)
    return f"{parts['scheme']}{user}{parts['place']}{query and '?' + query}"


def find_database(url: str | os.PathLike[str] | None) -> Database:
    """Return the database that a URL or a path names; None reads `JOBSTORE_URL`.

    Raises:
        InvalidArgument: It names no file, or a database that this version does not know.
    """
    if url is None:
        url = os.environ.get(URL_VARIABLE)
        if not url:
            raise InvalidArgument("url", f"name the database file, or set {URL_VARIABLE}")
    if not isinstance(url, str | os.PathLike):
        raise InvalidArgument("url", f"must be a path or a URL, not {type(url).__name__}")
    text = os.fspath(url)
    if not isinstance(text, str):
        raise InvalidArgument("url", "must be a str, not bytes")
    if text.startswith(tuple(f"{scheme}://" for scheme in POSTGRES_SCHEMES)):
        return PostgresDatabase(text)
    if text.startswith(tuple(f"{scheme}:" for scheme in POSTGRES_SCHEMES)):
        raise InvalidArgument("url", "write two slashes: postgresql://user@host/database")
    if "://" in text:
        text = _path_of_url(text)
    if not text or text == ":memory:" or "\0" in text:
        raise InvalidArgument("url", "name a file: nothing that lives in memory alone is durable")
    return SQLiteDatabase(Path(text).absolute())


def migrate_command(database: Database) -> str:
    """Return the command that brings a database's schema up to date."""
    return f"python -m jobstore.migrate --db {shlex.quote(database.name)}"


def require_schema(now: int, database: Database, steps: Sequence[Step]) -> Operation[None]:
    """Refuse a database whose schema is not the one that the operations were written for.

    Args:
        now: The present time in milliseconds.
        database: What is checked.
        steps: Of its schema, from `Database.load`.

    Raises:
        MigrationRequired: Steps are pending.
        SchemaMismatch: It was migrated by a newer version, or an applied step was changed.
    """
    applied = yield from migrations.applied(now)
    check_applied(steps, applied)
    pending = pending_steps(steps, applied)
    if pending:
        raise MigrationRequired(tuple(step.name for step in pending), migrate_command(database))


def _path_of_url(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme != "sqlite":
        raise InvalidArgument("url", f"{scheme}:// is not supported: use a path, sqlite:/// or postgresql://")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidArgument("url", "write three slashes before an absolute path: sqlite:///abs/path.db") from None
    if parts.netloc:
        raise InvalidArgument("url", "write three slashes before an absolute path: sqlite:///abs/path.db")
    if parts.query or parts.fragment:
        raise InvalidArgument("url", "takes no ?options and no #fragment: write %3F and %23 for these in a file's name")
    return unquote(parts.path).replace("//", "/", 1)
