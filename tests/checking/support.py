"""What the tests of damage need: where rows lie in a file, ways to damage it, and what the rows were."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

PAGE = 4096
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def rows_of(path: Path, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql, parameters).fetchall()


def execute(path: Path, script: str) -> None:
    """Change a database as no store would: without CHECKs and foreign keys."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.executescript(script)


def table(path: Path, name: str) -> dict[Any, dict[str, Any]]:
    """Return the rows of a table by their first column, or the first two of attempts and cached state."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        key = 2 if name in {"job_attempts", "cached_state"} else 1
        return {tuple(row)[:key]: dict(row) for row in connection.execute(f"SELECT * FROM {name}")}


def pages_of(path: Path, name: str, kind: str | None = None) -> list[int]:
    """Return the pages of a table or an index: `leaf`, `internal`, `overflow`, or all."""
    sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = coalesce(?, pagetype) ORDER BY pageno"
    return [number for (number,) in rows_of(path, sql, (name, kind))]


def jobs_on(path: Path, damaged: Iterable[int]) -> set[str]:
    """Return the ids of the jobs that lie, in whole or in part, on some pages of an undamaged file."""
    order = dict(rows_of(path, "SELECT id, rowid FROM background_jobs"))
    pages = rows_of(path, "SELECT pageno, path, pagetype FROM dbstat WHERE name = 'background_jobs'")
    numbers = set(damaged)
    found: set[str] = set()
    overflowing = [place for number, place, kind in pages if kind == "overflow" and number in numbers]
    for number, place, kind in pages:
        if kind != "leaf":
            continue
        ids = sorted(
            {found.decode() for found in _ID.findall(page(path, number))} & order.keys(), key=order.__getitem__
        )
        if number in numbers:
            found.update(ids)
        for chain in overflowing:
            if chain.startswith(place) and "+" in chain:
                found.add(ids[int(chain[len(place) :].split("+")[0], 16)])
    return found


def page(path: Path, number: int) -> bytes:
    with path.open("rb") as file:
        file.seek((number - 1) * PAGE)
        return file.read(PAGE)


def overwrite(path: Path, numbers: Iterable[int], content: bytes | None = None) -> None:
    """Overwrite pages, with noise unless it is said with what."""
    with path.open("r+b") as file:
        for number in numbers:
            file.seek((number - 1) * PAGE)
            file.write(os.urandom(PAGE) if content is None else content)


def zero(path: Path, numbers: Iterable[int]) -> None:
    overwrite(path, numbers, b"\0" * PAGE)
