"""What holds of every row, as rules: how to find those that break one, and how each is mended.

Most of it the schema enforces as well. Here it is asked again, for rows that came in while it could not: through a
damaged file, a lost constraint, or someone's own SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jobstore.lifecycle import TERMINAL, WORKER_LOST, AttemptOutcome, JobStatus
from jobstore.operations.jobs import MAX_ROWS
from jobstore.sql import Operation, execute, fetch_all, fetch_one

SHOWN = 5
"""How many of the rows that break a rule are named."""
LEASE_GRACE = 60_000
"""Milliseconds after the end of a lease before it is strange that nobody has rescued the job."""
EARLIEST = 946_684_800_000
"""2000-01-01, in milliseconds: no store has rows from before."""
FORESIGHT = 86_400_000
"""Milliseconds by which clocks of hosts may be ahead."""

_STATUSES = ", ".join(f"'{status}'" for status in JobStatus)
_TERMINAL = ", ".join(f"'{status}'" for status in TERMINAL)
_OUTCOMES = ", ".join(f"'{outcome}'" for outcome in AttemptOutcome)


class Rule(NamedTuple):
    """One thing that holds of all rows of a table."""

    name: str
    table: str
    key: tuple[str, ...]
    broken: str
    """The SQL condition of the rows that break it."""
    mend: str
    """What is set in them; empty if they are deleted."""
    meaning: str
    """What is wrong with those rows."""
    remedy: str
    """What mending does."""


def _job(name: str, broken: str, mend: str, meaning: str, remedy: str) -> Rule:
    return Rule(name, "background_jobs", ("id",), broken, mend, meaning, remedy)


def _attempt(name: str, broken: str, mend: str, meaning: str, remedy: str) -> Rule:
    return Rule(name, "job_attempts", ("job_id", "attempt"), broken, mend, meaning, remedy)


def _file(table: str) -> Rule:
    return Rule(
        f"{table}-session",
        table,
        ("session_id", "path"),
        f"NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id = {table}.session_id)",
        "",
        "paths of sessions that do not exist",
        "they are deleted",
    )


def _any(values: Mapping[str, tuple[str, str]]) -> str:
    return " OR ".join(f"({bad})" for bad, _ in values.values())


def _replaced(values: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name} = CASE WHEN {bad} THEN {good} ELSE {name} END" for name, (bad, good) in values.items())


_JOB_VALUES = {
    "task_type": ("task_type = ''", "'unknown'"),
    "api_type": ("api_type = ''", "'unknown'"),
    "priority": ("priority NOT BETWEEN -2147483648 AND 2147483647", "0"),
    "attempt": ("attempt < 0", "0"),
    "attempts_used": ("attempts_used < 0", "0"),
    "max_attempts": ("max_attempts < 1", "1"),
    "timeout": ("timeout <= 0", "NULL"),
    "idempotency_key": ("idempotency_key = ''", "NULL"),
    "cleared": ("cleared NOT IN (0, 1)", "0"),
} | {
    name: (f"{name} < 0", "NULL")
    for name in (
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "cost",
    )
}
_SESSION_VALUES = {name: (f"{name} NOT IN (0, 1)", "0") for name in ("is_regex_active", "search_selected_files_only")}
_ATTEMPT_VALUES = {
    "outcome": (f"outcome NOT IN ({_OUTCOMES})", f"'{AttemptOutcome.LOST}'"),
    "output_bytes": ("output_bytes < 0", "NULL"),
}


def _times(*names: str) -> dict[str, tuple[str, str]]:
    """Return which times are impossible; those that are seconds are made milliseconds, others the present."""
    first, last = EARLIEST // 1000, EARLIEST // 100
    return {
        name: (
            f"{name} < {EARLIEST} OR {name} > :now + {FORESIGHT}",
            f"CASE WHEN {name} BETWEEN {first} AND {last} AND {name} * 1000 <= :now THEN {name} * 1000 ELSE :now END",
        )
        for name in names
    }


_JOB_TIMES = _times("created_at", "updated_at", "started_at", "finished_at")
_ATTEMPT_TIMES = _times("started_at", "finished_at")

_OPEN_ATTEMPT = """EXISTS (SELECT 1 FROM job_attempts AS held WHERE held.job_id = background_jobs.id
    AND held.attempt = background_jobs.attempt AND held.finished_at IS NULL)"""
_LATEST_ATTEMPT = "(SELECT MAX(attempt) FROM job_attempts AS known WHERE known.job_id = background_jobs.id)"
_USED_UP = "cancel_requested_at IS NULL AND attempts_used >= max_attempts"

RULES: Sequence[Rule] = (
    Rule(
        "session-values",
        "sessions",
        ("id",),
        _any(_SESSION_VALUES),
        _replaced(_SESSION_VALUES),
        "sessions with values that are not allowed",
        "each such value becomes its default",
    ),
    _file("included_files"),
    _file("excluded_files"),
    _attempt(
        "attempt-number", "attempt < 1", "", "attempts with numbers that none can have", "these attempts are deleted"
    ),
    _attempt(
        "attempt-job",
        "NOT EXISTS (SELECT 1 FROM background_jobs WHERE background_jobs.id = job_attempts.job_id)",
        "",
        "attempts at jobs that do not exist",
        "they are deleted",
    ),
    _attempt(
        "attempt-values",
        _any(_ATTEMPT_VALUES),
        _replaced(_ATTEMPT_VALUES),
        "attempts with values that are not allowed",
        "an unknown outcome becomes `lost`, a negative size unknown",
    ),
    _attempt(
        "attempt-end",
        "(finished_at IS NULL) <> (outcome IS NULL)",
        f"finished_at = COALESCE(finished_at, lease_expires_at), outcome = COALESCE(outcome, '{AttemptOutcome.LOST}')",
        "attempts with an outcome but no end, or the other way round",
        "the end becomes that of the lease, the outcome `lost`",
    ),
    _attempt(
        "attempt-times",
        _any(_ATTEMPT_TIMES),
        _replaced(_ATTEMPT_TIMES),
        "attempts at impossible times (before 2000, or in the future)",
        "seconds become milliseconds, others the present time",
    ),
    _job(
        "job-status",
        f"status NOT IN ({_STATUSES})",
        "status = 'failed', finished_at = COALESCE(finished_at, updated_at),"
        " error_type = COALESCE(error_type, 'unknown_status')",
        "jobs with a status that there is not",
        "they become failed, with the error_type `unknown_status`",
    ),
    _job(
        "job-values",
        _any(_JOB_VALUES),
        _replaced(_JOB_VALUES),
        "jobs with values that are not allowed",
        "each such value becomes its default, a negative count unknown, an empty type `unknown`",
    ),
    _job(
        "job-times",
        _any(_JOB_TIMES),
        _replaced(_JOB_TIMES),
        "jobs with impossible times (before 2000, or in the future)",
        "seconds become milliseconds, others the present time",
    ),
    _job(
        "job-session",
        "session_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id = background_jobs.session_id)",
        "session_id = NULL",
        "jobs of sessions that do not exist",
        "they belong to no session",
    ),
    _job(
        "job-fence",
        f"attempt < {_LATEST_ATTEMPT}",
        f"attempt = {_LATEST_ATTEMPT}",
        "jobs with fewer attempts than were recorded",
        "they count those attempts",
    ),
    _job(
        "job-attempts",
        "attempts_used > attempt OR attempts_used > max_attempts",
        "attempts_used = CASE WHEN attempt < max_attempts THEN attempt ELSE max_attempts END",
        "jobs that used more attempts than they had",
        "the number is cut",
    ),
    _job(
        "job-end",
        f"status IN ({_TERMINAL}) AND finished_at IS NULL",
        "finished_at = updated_at",
        "jobs that ended, but have no `finished_at`",
        "they ended when they last changed",
    ),
    _job(
        "job-no-end",
        "status IN ('idle', 'scheduled', 'running') AND finished_at IS NOT NULL",
        "finished_at = NULL",
        "jobs that did not end, but have a `finished_at`",
        "they have none",
    ),
    _job(
        "job-running",
        f"status = 'running' AND NOT {_OPEN_ATTEMPT}",
        f"""status = CASE WHEN cancel_requested_at IS NOT NULL THEN 'canceled'
                          WHEN attempts_used >= max_attempts THEN 'failed' ELSE 'idle' END,
            finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR attempts_used >= max_attempts THEN :now END,
            error_type = CASE WHEN {_USED_UP} THEN '{WORKER_LOST}' ELSE error_type END, updated_at = :now""",
        "jobs that run, but without an attempt that does",
        "they wait again; they are failed where their attempts are used up, canceled where that was asked for",
    ),
    _job(
        "job-start",
        "status = 'running' AND started_at IS NULL",
        "started_at = updated_at",
        "jobs that run, but have no `started_at`",
        "they started when they last changed",
    ),
    _attempt(
        "attempt-open",
        "finished_at IS NULL AND NOT EXISTS (SELECT 1 FROM background_jobs AS job WHERE job.id = job_attempts.job_id"
        " AND job.attempt = job_attempts.attempt AND job.status = 'running')",
        f"finished_at = :now, outcome = '{AttemptOutcome.LOST}'",
        "attempts that run at jobs which do not",
        "they end as `lost`",
    ),
    _job(
        "job-lane",
        "NOT EXISTS (SELECT 1 FROM lanes WHERE lanes.task_type = background_jobs.task_type"
        " AND lanes.api_type = background_jobs.api_type)",
        "task_type = task_type",  # the trigger of such a change notes the lane
        "jobs that no claim would find: their lane is not noted",
        "their lanes are noted",
    ),
)
"""In the order in which they are mended: each may rely on those before it."""


def _json(table: str, key: tuple[str, ...], column: str, mended: str, remedy: str, *, is_object: bool) -> Rule:
    kind = f"json_type({column}) <> 'object'" if is_object else "0"
    return Rule(
        f"{table}-json",
        table,
        key,
        f"CASE WHEN json_valid({column}) THEN {kind} ELSE 1 END",
        f"{column} = {mended}",
        f"rows whose `{column}` is not the JSON that it should be",
        remedy,
    )


def _kept(column: str) -> str:
    return f"json_object('unreadable_{column}', {column})"


JSON_RULES: Sequence[Rule] = (
    _json("sessions", ("id",), "model_settings", _kept("model_settings"), "it is kept under a key", is_object=True),
    _json("background_jobs", ("id",), "metadata", _kept("metadata"), "it is kept under a key", is_object=True),
    _json(
        "cached_state", ("project_hash", "key"), "value", "json_quote(value)", "it becomes a JSON text", is_object=False
    ),
    _json("key_value_store", ("key",), "value", "json_quote(value)", "it becomes a JSON text", is_object=False),
    _json("workers", ("id",), "task_types", "'[]'", "it is emptied", is_object=False),
)
"""Where JSON is text, as in SQLite: elsewhere the columns' type holds nothing else."""


def count_broken(now: int, table: str, rules: Sequence[Rule]) -> Operation[dict[str, int]]:
    """Return how many rows of a table break each rule, of those that any breaks; one pass over the table."""
    counts = ", ".join(f"COUNT(CASE WHEN {rule.broken} THEN 1 END) AS n{n}" for n, rule in enumerate(rules))
    row = yield from fetch_one(f"SELECT {counts} FROM {table}", **_now_if_named(counts, now))
    found = {rule.name: (row or {}).get(f"n{n}", 0) for n, rule in enumerate(rules)}
    return {name: count for name, count in found.items() if count}


def keys_broken(now: int, rule: Rule) -> Operation[list[str]]:
    """Return the keys of some rows that break a rule."""
    rows = yield from fetch_all(
        f"SELECT {', '.join(rule.key)} FROM {rule.table} WHERE {rule.broken} LIMIT {SHOWN}",
        **_now_if_named(rule.broken, now),
    )
    return ["/".join(str(row[name]) for name in rule.key) for row in rows]


def mend(now: int, rule: Rule) -> Operation[int]:
    """Mend up to `MAX_ROWS` rows that break a rule; return how many."""
    key = ", ".join(rule.key)
    rows = f"({key}) IN (SELECT {key} FROM {rule.table} WHERE {rule.broken} LIMIT {MAX_ROWS})"
    change = f"UPDATE {rule.table} SET {rule.mend}" if rule.mend else f"DELETE FROM {rule.table}"
    sql = f"{change} WHERE {rows}"
    return (yield from execute(sql, **_now_if_named(sql, now)))


def _now_if_named(sql: str, now: int) -> dict[str, int]:
    return {"now": now} if ":now" in sql else {}


def count_overdue(now: int) -> Operation[int]:
    """Return how many leases ended a while ago without anyone rescuing the job."""
    row = yield from fetch_one(
        "SELECT COUNT(*) AS leases FROM job_attempts WHERE finished_at IS NULL AND lease_expires_at <= :due",
        due=now - LEASE_GRACE,
    )
    return 0 if row is None else int(row["leases"])
