"""Operations that copy a store's rows into another store, table by table, and note how far that has come."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from jobstore.errors import PromotionError
from jobstore.operations.leasing import MAX_DUE, rescue
from jobstore.sql import Operation, Row, Value, execute, execute_many, fetch_all, fetch_one, numbered

PAGE_ROWS = 500
PAGE_CHARACTERS = 4_000_000
"""Of the values of a page; a row that is longer is a page of its own."""
PAGE_FILES = 64


class Table(NamedTuple):
    """A table that is copied."""

    name: str
    key: tuple[str, ...]


TABLES = (
    Table("sessions", ("id",)),
    Table("included_files", ("session_id", "path")),
    Table("excluded_files", ("session_id", "path")),
    Table("background_jobs", ("id",)),
    Table("job_attempts", ("job_id", "attempt")),
    Table("api_calls", ("id",)),
    Table("cached_state", ("project_hash", "key")),
    Table("key_value_store", ("key",)),
    Table("pauses", ("task_type", "api_type")),
    Table("retention_policies", ("name",)),
)
"""What is copied, each behind what it refers to. The database itself notes the lanes of jobs that come in."""

NOT_COPIED = frozenset(
    {"lanes", "maintenance", "migrations", "promotion", "store_identity", "store_writers", "workers"}
)
"""What each store has of its own."""

Key = tuple[Value, ...]


class TextFile(NamedTuple):
    """A large text, as a row names it."""

    path: str
    size: int | None
    """None where the row does not say: of an attempt that was not completed."""
    sha256: str | None


class State(NamedTuple):
    """How far a store has been filled from another."""

    source_id: str
    finished: bool


def columns(_now: int, table: Table) -> Operation[list[str]]:
    """Return the names of a table's columns, in their order."""
    row = yield from fetch_one(f"SELECT copied.* FROM (SELECT 1) AS one LEFT JOIN {table.name} AS copied ON 1 = 0")
    return list(row or ())


def count(_now: int, table: Table) -> Operation[int]:
    """Return how many rows a table has."""
    row = yield from fetch_one(f"SELECT COUNT(*) AS rows FROM {table.name}")
    return 0 if row is None else row["rows"]


def page(_now: int, table: Table, names: Sequence[str], after: Key | None) -> Operation[list[Row]]:
    """Return some rows in the order of their key, those behind `after`; none at the end."""
    key = listed(table.key)
    length = " + ".join(f"COALESCE(LENGTH(CAST({quoted(name)} AS TEXT)), 0)" for name in names)
    lengths = yield from fetch_all(
        f"SELECT {key}, {length} AS length FROM {table.name}"
        f" WHERE {_behind(table, after)} ORDER BY {key} LIMIT {PAGE_ROWS}",
        **_parameters("after", after),
    )
    if not lengths:
        return []
    last = lengths[_fitting([row["length"] for row in lengths]) - 1]
    return (yield from between(_now, table, names, after, key_of(table, last)))


def between(_now: int, table: Table, names: Sequence[str], after: Key | None, last: Key) -> Operation[list[Row]]:
    """Return the rows behind `after`, up to `last`, in the order of their key."""
    key = listed(table.key)
    return (
        yield from fetch_all(
            f"SELECT {listed(names)} FROM {table.name} WHERE {_behind(table, after)}"
            f" AND ({key}) <= ({_placeholders('last', last)}) ORDER BY {key}",
            **_parameters("after", after),
            **_parameters("last", last),
        )
    )


def files(_now: int, number: int, after: str) -> Operation[list[TextFile]]:
    """Return some of the large texts that one of `FILES` names, behind the path `after`; none at the end."""
    rows = yield from fetch_all(f"{FILES[number]} ORDER BY path LIMIT {PAGE_FILES}", after=after)
    return [TextFile(row["path"], row["size"], row["sha256"]) for row in rows]


FILES = (
    """SELECT prompt_file_path AS path, prompt_bytes AS size, prompt_sha256 AS sha256
       FROM background_jobs WHERE prompt_file_path > :after""",
    """SELECT output_file_path AS path, output_bytes AS size, output_sha256 AS sha256
       FROM background_jobs WHERE output_file_path > :after""",
    """SELECT output_file_path AS path, NULL AS size, NULL AS sha256
       FROM job_attempts WHERE output_file_path > :after AND NOT EXISTS (
           SELECT 1 FROM background_jobs AS job WHERE job.output_file_path = job_attempts.output_file_path)""",
)
"""Which columns name large texts."""


def count_files(_now: int) -> Operation[int]:
    """Return how many large texts rows name."""
    parts = " UNION ALL ".join(f"SELECT COUNT(*) AS found FROM ({sql}) AS named" for sql in FILES)
    row = yield from fetch_one(f"SELECT SUM(found) AS files FROM ({parts}) AS parts", after="")
    return 0 if row is None else int(row["files"])


def holders(now: int) -> Operation[dict[str, int]]:
    """Return who holds leases that have not ended, and how many."""
    rows = yield from fetch_all(
        "SELECT worker_id, COUNT(*) AS leases FROM job_attempts"
        " WHERE finished_at IS NULL AND lease_expires_at > :now GROUP BY worker_id ORDER BY worker_id",
        now=now,
    )
    return {row["worker_id"]: row["leases"] for row in rows}


def end_leases(now: int) -> Operation[int]:
    """End up to `MAX_DUE` leases although they have not expired, and rescue their jobs; return how many."""
    yield from execute(
        f"""
        UPDATE job_attempts SET lease_expires_at = :now
        WHERE finished_at IS NULL AND (job_id, attempt) IN (
            SELECT job_id, attempt FROM job_attempts WHERE finished_at IS NULL AND lease_expires_at > :now
            ORDER BY lease_expires_at LIMIT {MAX_DUE})
        """,
        now=now,
    )
    return (yield from rescue(now))


def state(_now: int) -> Operation[State | None]:
    """Return from which store this one is, or was, filled; None if it is a store of its own."""
    row = yield from fetch_one("SELECT source_id, finished_at FROM promotion")
    return None if row is None else State(row["source_id"], row["finished_at"] is not None)


def refuse_unfinished(now: int) -> Operation[None]:
    """Refuse a store that is being filled.

    Raises:
        PromotionError: It is.
    """
    found = yield from state(now)
    if found is not None and not found.finished:
        raise PromotionError(
            "this store is being filled from another, and that was not finished: run the same `jobstore promote` again"
        )


def begin(now: int, source_id: str, run_id: str) -> Operation[None]:
    """Note that a store is being filled; whoever was filling it before from the same source writes no more.

    Raises:
        PromotionError: It holds something of its own, or is filled from another store.
    """
    found = yield from state(now)
    if found is None:
        yield from _require_empty()
        yield from execute(
            "INSERT INTO promotion (singleton, source_id, run_id, started_at) VALUES (1, :source_id, :run_id, :now)",
            source_id=source_id,
            run_id=run_id,
            now=now,
        )
    elif found.source_id != source_id:
        raise PromotionError("the target is filled from another store than this source: choose an empty target")
    else:
        yield from execute("UPDATE promotion SET run_id = :run_id, started_at = :now", run_id=run_id, now=now)


def put(now: int, run_id: str, table: Table, names: Sequence[str], rows: Sequence[Row]) -> Operation[None]:
    """Insert rows, or make those that are there already the same.

    Raises:
        PromotionError: Someone else is filling the store by now.
    """
    yield from _require_run(now, run_id)
    values = ", ".join(f":column{index}" for index in range(len(names)))
    changes = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in names if name not in table.key)
    yield from execute_many(
        f"INSERT INTO {table.name} ({listed(names)}) VALUES ({values})"
        f" ON CONFLICT ({listed(table.key)}) DO UPDATE SET {changes}",
        [numbered("column", [row[name] for name in names]) for row in rows],
    )


def finish(now: int, run_id: str) -> Operation[None]:
    """Note that the store is whole: from here on it may be used.

    Raises:
        PromotionError: Someone else is filling it by now.
    """
    yield from _require_run(now, run_id)
    yield from execute("UPDATE promotion SET finished_at = :now", now=now)


def key_of(table: Table, row: Row) -> Key:
    """Return the key of a row."""
    return tuple(row[name] for name in table.key)


def _require_empty() -> Operation[None]:
    for table in TABLES:
        if (yield from fetch_one(f"SELECT 1 AS found FROM {table.name} LIMIT 1")) is not None:
            raise PromotionError(f"the target is not empty, it has {table.name}: choose an empty one")


def _require_run(_now: int, run_id: str) -> Operation[None]:
    row = yield from fetch_one("SELECT run_id, finished_at FROM promotion")
    if row is None or row["run_id"] != run_id or row["finished_at"] is not None:
        raise PromotionError("another process is filling, or has filled, the same target: wait for it")


def _fitting(lengths: Sequence[int]) -> int:
    """Return how many rows of these lengths make a page: at least one."""
    return max(1, sum(total <= PAGE_CHARACTERS for total in accumulate(lengths)))


def _behind(table: Table, after: Key | None) -> str:
    return "1 = 1" if after is None else f"({listed(table.key)}) > ({_placeholders('after', after)})"


def _placeholders(name: str, key: Key) -> str:
    return ", ".join(f":{name}{index}" for index in range(len(key)))


def _parameters(name: str, key: Key | None) -> dict[str, Value]:
    return numbered(name, key or ())


def listed(names: Sequence[str]) -> str:
    """Return the names of columns as SQL has them in a list."""
    return ", ".join(map(quoted, names))


def quoted(name: str) -> str:
    """Return the name of a column, which may be a user's own, as SQL has it."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
