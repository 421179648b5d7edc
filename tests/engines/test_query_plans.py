"""The statements that run all day use their indexes: their plans are a contract."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobstore.calls import Settlement
from jobstore.engines import sqlite_driver
from jobstore.engines.sqlite import connect_writer
from jobstore.lifecycle import CallStatus
from jobstore.migrate import Migrator
from jobstore.operations import calls, jobs, leasing, listing, pruning
from jobstore.sql import Operation, Statement

NOW = 1_750_000_000_000


@pytest.fixture
def connection(database: Path) -> Iterator[sqlite3.Connection]:
    Migrator(database).run()
    with closing(connect_writer(database, "full")) as connection:
        yield connection


def plans(connection: sqlite3.Connection, operation: Operation[Any]) -> list[str]:
    """Drive an operation and return how SQLite searches for each of its statements."""
    found: list[str] = []
    connection.execute("BEGIN")
    result: object = None
    try:
        while True:
            statement: Statement = operation.send(result)
            if statement.fetch == "many":
                result = 0
                continue
            if statement.fetch != "dialect":
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
                found += [row[3] for row in rows]
            result = sqlite_driver.run(connection, statement)
    except StopIteration:
        return found
    finally:
        connection.execute("ROLLBACK")


def tables_scanned(plan: list[str]) -> list[str]:
    """Return what is read from one end to the other, apart from the few lanes and pauses and the made-up tables."""
    harmless = (
        "SCAN lane",
        "SCAN pause",
        "SCAN branch",
        "SCAN chosen",
        "SCAN due",
        "SCAN ended",
        "SCAN CONSTANT ROW",
        "SCAN 1 CONS",
        "SCAN 2 CONS",
    )
    return [step for step in plan if step.startswith("SCAN") and not step.startswith(harmless)]


CASES: dict[str, tuple[Operation[Any], list[str]]] = {
    "claim one of any lane": (
        leasing.claim(NOW, "w", 1, 1, None, None),
        ["background_jobs_claim (task_type=? AND api_type=?)"],
    ),
    "claim many of some lanes": (
        leasing.claim(NOW, "w", 50, 1, ["a", "b"], ["c"]),
        ["SEARCH lane", "background_jobs_claim (task_type=? AND api_type=?)"],
    ),
    "promote": (leasing.promote(NOW), ["background_jobs_due (run_at<?)"]),
    "rescue": (leasing.rescue(NOW), ["job_attempts_lease (lease_expires_at<?)"]),
    "heartbeat": (
        leasing.heartbeat(NOW, [("a", 1), ("b", 2)], 1),
        ["SEARCH job_attempts USING PRIMARY KEY (job_id=?)"],
    ),
    "the calls of a job": (calls.calls(NOW, "a"), ["api_calls_by_job (job_id=?)"]),
    "the key of the last call": (calls.key_to_reuse(NOW, "a"), ["api_calls_by_job (job_id=?)"]),
    "settle a call": (
        calls.settle(NOW, calls.Settled("a", Settlement(status=CallStatus.FAILED))),
        ["sqlite_autoindex_api_calls_1 (id=?)"],
    ),
    "what falls due next": (jobs.next_due(NOW), ["job_attempts_lease", "background_jobs_due"]),
    "list all": (
        listing.list_jobs(NOW, listing.JobFilter(), "newest", 50, None),
        ["COVERING INDEX background_jobs_list (task_type=? AND api_type=? AND status=? AND cleared=?"],
    ),
    "list the next part by activity": (
        listing.list_jobs(NOW, listing.JobFilter(cleared=False), "active", 50, listing.Cursor(1, NOW, "x")),
        ["COVERING INDEX background_jobs_list (task_type=? AND api_type=? AND status=? AND cleared=?"],
    ),
    "list a session": (
        listing.list_jobs(NOW, listing.JobFilter(session_id="s", task_type="a"), "newest", 50, None),
        ["background_jobs_by_session (session_id=? AND status=? AND cleared=?"],
    ),
    "count": (
        listing.count_jobs(NOW, listing.JobFilter()),
        ["COVERING INDEX background_jobs_list (task_type=? AND api_type=? AND status=? AND cleared=?"],
    ),
    "count a session": (
        listing.count_jobs(NOW, listing.JobFilter(session_id="s")),
        ["COVERING INDEX background_jobs_by_session (session_id=? AND status=? AND cleared=?"],
    ),
    "find what is old": (
        pruning.doomed(NOW, pruning.Rule(older_than=1), pruning.FIRST, pruning.Position(NOW, "")),
        ["background_jobs_finished ((finished_at,id)>(?,?) AND (finished_at,id)<(?,?))"],
    ),
    "find the newest": (pruning.newest(NOW, pruning.Rule(keep=5)), ["background_jobs_finished"]),
    "prune": (
        pruning.delete(NOW, ["a", "b"], pruning.Position(NOW, "")),
        ["sqlite_autoindex_background_jobs_1 (id=?)"],
    ),
    "prune texts": (
        pruning.remove_texts(NOW, ["a", "b"], pruning.Position(NOW, "")),
        ["sqlite_autoindex_background_jobs_1 (id=?)"],
    ),
    "clear what has finished": (
        jobs.clear_finished(NOW, 1, (0, "")),
        ["COVERING INDEX background_jobs_finished ((finished_at,id)>(?,?) AND finished_at<?)"],
    ),
    "files that rows name": (
        jobs.file_paths_named(NOW, ["a"]),
        ["background_jobs_prompt_file", "background_jobs_output_file", "job_attempts_output_file"],
    ),
}


@pytest.mark.parametrize(("operation", "expected"), CASES.values(), ids=CASES)
def test_the_plan_uses_its_index_and_reads_no_table_whole(
    connection: sqlite3.Connection, operation: Operation[Any], expected: list[str]
) -> None:
    plan = plans(connection, operation)
    for part in expected:
        assert any(part in step for step in plan), plan
    assert tables_scanned(plan) == []


def test_counting_by_status_and_lane_reads_an_index_alone(connection: sqlite3.Connection) -> None:
    assert tables_scanned(plans(connection, listing.stats(NOW))) == [
        "SCAN background_jobs USING COVERING INDEX background_jobs_list"
    ]


def test_what_ends_calls_with_their_attempt_looks_at_those_of_the_attempt_alone(connection: sqlite3.Connection) -> None:
    [(trigger,)] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'job_attempts_end_calls'").fetchall()
    statement = re.sub(r"NEW\.\w+", "?", trigger.partition("BEGIN")[2].partition(";")[0])
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", ("a", 1, 1)).fetchall()]
    assert plan == ["SEARCH api_calls USING INDEX api_calls_by_job (job_id=? AND attempt=?)"]
