"""What psycopg's errors mean: which of them pass, and which error of this package says what happened."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from psycopg import errors

from jobstore.errors import (
    ConnectionLost,
    ConstraintFailed,
    ConstraintKind,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseError,
    DiskFailed,
    DiskFull,
    ReadOnlyDatabase,
    StatementFailed,
)


def is_passing(error: psycopg.Error) -> bool:
    """Whether a transaction that failed so succeeds when it is tried again."""
    return isinstance(error, errors.SerializationFailure | errors.DeadlockDetected)


def is_locked(error: psycopg.Error) -> bool:
    """Whether a row was locked by someone else for too long."""
    return isinstance(error, errors.LockNotAvailable)


def translate(error: psycopg.Error) -> DatabaseError:
    """Return the error of this package that says what one of psycopg means.

    Its cause is psycopg's, without the details, in which the server quotes rows.
    """
    meaning = _meaning(error)
    meaning.__cause__ = None if _quotes_text(error) else type(error)(error.diag.message_primary or "")
    return meaning


_CONSTRAINTS: dict[str, ConstraintKind] = {
    "23502": "not_null",
    "23503": "foreign_key",
    "23505": "unique",
    "23514": "check",
}
_MEANINGS: dict[str, Callable[[str], DatabaseError]] = {
    "25006": lambda _: ReadOnlyDatabase("the database takes no writes: connect to the primary server"),
    "40001": lambda _: DatabaseBusy(0.0),
    "40P01": lambda _: DatabaseBusy(0.0),
    "55P03": lambda _: DatabaseBusy(0.0),
    "53100": lambda _: DiskFull("the server's disk is full: nothing was written; free some space and try again"),
    "58030": lambda text: DiskFailed(f"the server's disk failed ({text}): nothing of this was acknowledged"),
    "XX001": lambda text: DatabaseCorrupt(f"the database is damaged ({text}): restore a backup"),
    "XX002": lambda text: DatabaseCorrupt(f"an index is damaged ({text}): rebuild it with REINDEX"),
}


_LOST = ("08", "57P", "25P03", "25P04", "53300")
"""What the server says as it ends or refuses a session; on its own side, psycopg says no state at all."""


def _meaning(error: psycopg.Error) -> DatabaseError:
    state, text = error.sqlstate or "", error.diag.message_primary or ""
    if state.startswith("23"):
        return ConstraintFailed(text, _CONSTRAINTS.get(state, "other"))
    if state in _MEANINGS:
        return _MEANINGS[state](text)
    if state == "57014":
        return StatementFailed(
            "the statement took longer than the statement_timeout of its transaction allows: an operation may begin "
            "with SELECT set_config('statement_timeout', '10min', true)"
        )
    if state.startswith(_LOST) or (not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)):
        return ConnectionLost(f"the connection to the server was lost ({type(error).__name__}): it is made anew")
    if _quotes_text(error):
        return StatementFailed(f"a value cannot be stored or compared here: {type(error).__name__}")
    return StatementFailed(text or str(error))


def _quotes_text(error: psycopg.Error) -> bool:
    """Whether an error quotes a value that is nobody else's to read: data exceptions do, the server's and psycopg's."""
    return (error.sqlstate or "").startswith("22") or (error.sqlstate is None and isinstance(error, psycopg.DataError))
