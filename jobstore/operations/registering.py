"""Operations on `workers`: those that live, which say so again and again, and are forgotten when they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jobstore.encoding import dump_json
from jobstore.overviews import WorkerInfo
from jobstore.sql import Operation, execute, fetch_all, guarded

MAX_WORKERS = 1000
"""How many are read: a list that nobody reads to its end."""
_COLUMNS = "id, host, pid, version, task_types, api_types, concurrency, running, started_at, seen_at"


class Registration(NamedTuple):
    """What a worker tells of itself."""

    id: str
    host: str
    pid: int
    version: str
    task_types: list[str]
    concurrency: int
    api_types: Sequence[str] = ()


@guarded
def register(now: int, worker: Registration, running: int, lifetime: int) -> Operation[None]:
    """Note a worker that has just started, for `lifetime` milliseconds, and forget those that are gone."""
    yield from execute("DELETE FROM workers WHERE expires_at <= :now", now=now)
    yield from _put(now, worker, running, lifetime, "started_at = excluded.started_at,")


@guarded
def renew(now: int, worker: Registration, running: int, lifetime: int) -> Operation[None]:
    """Note that a worker still lives, for another `lifetime` milliseconds."""
    yield from _put(now, worker, running, lifetime)


@guarded
def unregister(_now: int, worker: Registration) -> Operation[None]:
    """Forget a worker that has ended; one of the same id in another process stays."""
    yield from execute(
        "DELETE FROM workers WHERE id = :id AND host = :host AND pid = :pid",
        id=worker.id,
        host=worker.host,
        pid=worker.pid,
    )


def live_workers(now: int) -> Operation[list[WorkerInfo]]:
    """Return the workers that live, in the order of their ids."""
    rows = yield from fetch_all(
        f"SELECT {_COLUMNS} FROM workers WHERE expires_at > :now ORDER BY id LIMIT {MAX_WORKERS}", now=now
    )
    return [WorkerInfo.from_row(row) for row in rows]


def _put(now: int, worker: Registration, running: int, lifetime: int, begins: str = "") -> Operation[int]:
    return (
        yield from execute(
            f"""
            INSERT INTO workers ({_COLUMNS}, expires_at)
            VALUES (:id, :host, :pid, :version, :task_types, :api_types, :concurrency, :running, :now, :now,
                :expires_at)
            ON CONFLICT (id) DO UPDATE SET {begins} host = excluded.host, pid = excluded.pid,
                version = excluded.version, task_types = excluded.task_types, api_types = excluded.api_types,
                concurrency = excluded.concurrency, running = excluded.running, seen_at = excluded.seen_at,
                expires_at = excluded.expires_at
            """,
            **worker._asdict() | {name: dump_json(name, getattr(worker, name)) for name in ("task_types", "api_types")},
            running=running,
            now=now,
            expires_at=now + lifetime,
        )
    )
