"""What is checked: an SQLite file that is looked at without a trace, or a PostgreSQL schema, and its large texts."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from jobstore.clock import Clock
from jobstore.engines import sqlite_driver
from jobstore.health.salvage.log import Log
from jobstore.migrate import Step
from jobstore.outputs import Outputs
from jobstore.progress import Progress, Tell
from jobstore.sql import MakeOperation

T = TypeVar("T")

DAMAGE = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises of a damaged file; the latter where its own message quotes bytes of it that are no text."""
BUSY_MILLISECONDS = 5_000
"""Readers wait only while a log is recovered or the last other connection closes."""


class Subject(Protocol):
    """What shared checks ask for."""

    clock: Clock
    tell: Tell
    remedy: str
    """What mends the rows."""
    unreadable: str
    """What to do about what cannot be looked at."""

    @property
    def texts(self) -> Outputs | None:
        """Where the large texts lie; None if nobody has said."""

    def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads, on a snapshot of its own."""


class SQLiteSubject:
    """An SQLite file.

    Args:
        path: The file.
        connection: From `looked_into`.
        steps: Of this version's schema.
        clock: The present time in milliseconds.
        tell: Called as it goes on.
        log: What its log held while nobody used it; None if somebody did.
    """

    remedy = "run `jobstore check --repair`"
    unreadable = f"{remedy}, or restore a backup"
    texts: Outputs | None = None

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        steps: list[Step],
        clock: Clock,
        tell: Tell,
        log: Log | None = None,
    ) -> None:
        self.path = path
        self.connection = connection
        self.steps = steps
        self.clock = clock
        self.tell = tell
        self.log = log

    def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads, on a snapshot of its own."""
        return sqlite_driver.read(self.connection, make_operation(self.clock(), *args))

    def pragma(self, text: str) -> list[tuple[Any, ...]]:
        """Return what a PRAGMA answers."""
        return self.connection.execute(f"PRAGMA {text}").fetchall()


@contextlib.contextmanager
def looked_into_alone(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database to read it that nobody else has open."""
    with looked_into(path, immutable=not has_log(path)) as connection:
        yield connection


def silent(_progress: Progress) -> None:
    """Tell nobody how far it has come."""


def has_log(path: Path) -> bool:
    """Whether a log lies beside a database, so that the file alone is not all of it."""
    return any(Path(f"{path}{end}").exists() for end in ("-wal", "-journal"))


@contextlib.contextmanager
def looked_into(path: Path, *, immutable: bool) -> Iterator[sqlite3.Connection]:
    """Open a database to read it; a text in it that is none does not stop that.

    Args:
        path: The file.
        immutable: Take no locks and leave no log behind. For a file that nobody writes.

    Raises:
        DatabaseError: It cannot be opened.
    """
    options = "mode=ro&immutable=1" if immutable else "mode=ro"
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise sqlite_driver.translate(error) from error
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")  # functions of a damaged schema are none that we asked for
        yield connection
    finally:
        connection.close()
