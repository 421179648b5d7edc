"""Checks of what SQLite keeps: its pages, its log, its references."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

from jobstore.health.report import Finding, bad, good, some
from jobstore.health.subject import DAMAGE, SQLiteSubject

MOST_PROBLEMS = 1_000
"""So many does integrity_check tell before it stops."""
MOST_PAGES = 10_000
"""From more than these, it takes too long to find out how full they are."""
LARGE_LOG = 2**30
"""Bytes. It is moved into the database from 16 MiB on, as soon as nobody reads an older state: after minutes of work
by several workers beside checks that never ended it had 269 MB (measured)."""

SALVAGE = "run `jobstore check --repair`, or restore a backup"


def storage(subject: SQLiteSubject) -> Finding:
    """Check how the file is kept: its journal, its size, and what of it is empty."""
    [(size,)], [(count,)], [(free,)] = map(subject.pragma, ("page_size", "page_count", "freelist_count"))
    log_size = _size(Path(f"{subject.path}-wal"))
    details = [f"log of {log_size / 1e6:.1f} MB", *_unused(subject.connection)]
    summary = f"{count:,} pages of {size:,} bytes, {free:,} of them free"
    if log_size > LARGE_LOG:
        return bad(
            "storage",
            f"the log has grown to {log_size / 1e6:.0f} MB",
            "find the program that keeps a reading transaction open, and end it",
            *details,
        )
    return good("storage", summary, *details)


def log(subject: SQLiteSubject) -> Finding:
    """Check whether the log holds commits that cannot be read, or was cut."""
    found = subject.log
    if found is None:
        return good("log", "programs write to it: its end means nothing")
    if found.lost_commits:
        return bad(
            "log",
            f"damaged: commits behind the damage that cannot be read: at least {found.lost_commits:,}",
            "restore a backup if they are needed; `jobstore check --repair` goes on without them",
        )
    if found.is_cut:
        return bad(
            "log",
            "it ends in the middle of a page: it was cut, and what was behind is lost",
            "restore a backup if it is needed; `jobstore check --repair` goes on without it",
        )
    if found.uncommitted:
        return good("log", "it ends in a transaction that was never committed: a program was killed, or it was cut")
    return good("log", f"{len(found.pages):,} pages wait in it, all whole")


def integrity(subject: SQLiteSubject) -> Finding:
    """Check every page, row and index of the file."""
    try:
        problems = integrity_problems(subject.connection)
    except DAMAGE as error:
        return bad("integrity", f"the file is so damaged that it cannot be checked: {error}", SALVAGE)
    if problems:
        return bad(
            "integrity", f"the file is damaged; problems that were found: {len(problems):,}", SALVAGE, *some(problems)
        )
    return good("integrity", "every page, row and index is whole")


def integrity_problems(connection: sqlite3.Connection) -> list[str]:
    """Return what integrity_check finds wrong, line by line.

    Raises:
        sqlite3.Error: The damage is such that it cannot go on.
    """
    rows = connection.execute(f"PRAGMA integrity_check({MOST_PROBLEMS})").fetchall()
    lines = [line for (text,) in rows for line in str(text).splitlines()]
    return [line for line in lines if line not in {"ok", "*** in database main ***"}]


def foreign_keys(subject: SQLiteSubject) -> Finding:
    """Check that every row has the row that it refers to."""
    found = Counter((child, parent) for child, _, parent, _ in subject.connection.execute("PRAGMA foreign_key_check"))
    if found:
        lines = [f"{child} without their {parent}: {count:,}" for (child, parent), count in found.items()]
        return bad(
            "foreign-keys",
            f"rows that refer to rows which do not exist: {found.total():,}",
            "run `jobstore check --repair`; in tables of your own, mend them yourself",
            *lines,
        )
    return good("foreign-keys", "every row has the rows that it refers to")


def _unused(connection: sqlite3.Connection) -> list[str]:
    """Return how much of the pages in use is empty, if this SQLite can tell and the file is not too large."""
    [(count,)] = connection.execute("PRAGMA page_count").fetchall()
    if count > MOST_PAGES:
        return []
    with contextlib.suppress(sqlite3.Error):  # not compiled in, or a damaged page
        [(unused, size)] = connection.execute("SELECT SUM(unused), SUM(pgsize) FROM dbstat").fetchall()
        if size:
            return [f"{unused / size:.0%} of the pages in use is empty"]
    return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
