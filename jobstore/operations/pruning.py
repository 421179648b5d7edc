"""Operations that remove jobs that have ended, or their texts alone: what a rule finds, in small rounds.

A rule is looked up by reading, so that nobody waits for it; only what was found is then written, if it still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from jobstore.lifecycle import TERMINAL, JobStatus
from jobstore.operations.jobs import MAX_ROWS
from jobstore.sql import Operation, Row, Value, dialect, execute, fetch_all, fetch_one, placeholders

ROUND_ROWS = MAX_ROWS // 10
"""Jobs of one round: with their attempts and long prompts it still holds the writer for some milliseconds only."""


class Pruned(NamedTuple):
    """What one round removed."""

    jobs: int
    file_paths: list[str]
    """Files that no row names any more."""


class Position(NamedTuple):
    """A place in the order in which jobs have ended."""

    finished_at: int
    id: str


FIRST = Position(-(2**63), "")


@dataclass(frozen=True, slots=True)
class Rule:
    """Which jobs that have ended are to go, or their texts; None is any. All that is given must hold."""

    texts_only: bool = False
    statuses: Sequence[JobStatus] = TERMINAL
    task_type: str | None = None
    api_type: str | None = None
    older_than: int | None = None
    """Milliseconds since the job has ended."""
    keep: int | None = None
    """How many of those that the other conditions find, but for the age, stay: the ones that ended last."""


def newest(now: int, rule: Rule) -> Operation[Position | None]:
    """Return the last job that is to go, in the order in which they have ended; None if none is."""
    last = Position(2**63 - 1 if rule.older_than is None else now - rule.older_than, "\U0010ffff")
    if rule.keep is None:
        return last
    conditions, parameters = _matching(rule)
    row = yield from fetch_one(
        f"""
        SELECT finished_at, id FROM background_jobs WHERE finished_at IS NOT NULL AND {conditions}
        ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET :keep
        """,
        **parameters,
        keep=rule.keep,
    )
    return None if row is None else min(last, Position(row["finished_at"], row["id"]))


def doomed(_now: int, rule: Rule, after: Position, last: Position) -> Operation[list[Position]]:
    """Return some of the jobs that are to go, from `after` to `last`, in the order in which they have ended."""
    where, parameters = _between(rule, after, last)
    rows = yield from fetch_all(
        f"SELECT finished_at, id FROM background_jobs WHERE {where} ORDER BY finished_at, id LIMIT {ROUND_ROWS}",
        **parameters,
    )
    return [Position(row["finished_at"], row["id"]) for row in (yield from _without_too_many_calls(rows))]


def count(_now: int, rule: Rule, last: Position) -> Operation[int]:
    """Return how many jobs are to go, up to `last`."""
    where, parameters = _between(rule, FIRST, last)
    row = yield from fetch_one(f"SELECT COUNT(*) AS jobs FROM background_jobs WHERE {where}", **parameters)
    return 0 if row is None else row["jobs"]


def delete(_now: int, ids: Sequence[str], last: Position) -> Operation[Pruned]:
    """Delete those of the jobs that have ended, at the latest when `last` has, with their attempts."""
    return (yield from _delete((yield from _still_ended(ids, last))))


def remove_texts(now: int, ids: Sequence[str], last: Position) -> Operation[Pruned]:
    """Remove prompt and response of those of the jobs that have ended, at the latest when `last` has."""
    ended = yield from _still_ended(ids, last)
    if not ended:
        return Pruned(0, [])
    paths = yield from _file_paths(ended)
    names, parameters = placeholders("id", [row["id"] for row in ended])
    yield from execute(
        f"""
        UPDATE background_jobs SET prompt = '', response = NULL, prompt_file_path = NULL, prompt_sha256 = NULL,
            output_file_path = NULL, output_sha256 = NULL, texts_pruned_at = :now, updated_at = :now
        WHERE id IN ({names})
        """,
        now=now,
        **parameters,
    )
    yield from execute(f"UPDATE job_attempts SET output_file_path = NULL WHERE job_id IN ({names})", **parameters)
    return Pruned(len(ended), paths)


def delete_of_session(_now: int, session_id: str) -> Operation[Pruned]:
    """Delete some of a session's jobs, with their attempts."""
    rows = yield from fetch_all(
        f"""
        SELECT id, prompt_file_path, output_file_path FROM background_jobs
        WHERE session_id = :session_id LIMIT {MAX_ROWS // 4}
        """,
        session_id=session_id,
    )
    return (yield from _delete((yield from _without_too_many_calls(rows))))


def _still_ended(ids: Sequence[str], last: Position) -> Operation[list[Row]]:
    """Return the jobs of those found before that were not retried since, and let nobody retry them now."""
    names, parameters = placeholders("id", ids)
    facts = yield from dialect()
    return (
        yield from fetch_all(
            f"""
            SELECT id, prompt_file_path, output_file_path FROM background_jobs
            WHERE id IN ({names}) AND finished_at <= :last {facts.lock_rows}
            """,
            last=last.finished_at,
            **parameters,
        )
    )


def _delete(rows: Sequence[Row]) -> Operation[Pruned]:
    if not rows:
        return Pruned(0, [])
    paths = yield from _file_paths(rows)
    names, parameters = placeholders("id", [row["id"] for row in rows])
    yield from execute(f"DELETE FROM background_jobs WHERE id IN ({names})", **parameters)
    return Pruned(len(rows), paths)


def _without_too_many_calls(found: Sequence[Row]) -> Operation[Sequence[Row]]:
    """Return the first of some jobs, as many as have `MAX_ROWS` calls to models, which are deleted with them."""
    if not found:
        return found
    names, parameters = placeholders("id", [row["id"] for row in found])
    counted = yield from fetch_all(
        f"SELECT job_id, COUNT(*) AS calls FROM api_calls WHERE job_id IN ({names}) GROUP BY job_id", **parameters
    )
    calls = {row["job_id"]: row["calls"] for row in counted}
    totals = accumulate(calls.get(row["id"], 0) for row in found)
    return found[: max(1, sum(total <= MAX_ROWS for total in totals))]


def _file_paths(rows: Sequence[Row]) -> Operation[list[str]]:
    """Return the paths of all large texts of some jobs, those of their attempts as well."""
    names, parameters = placeholders("id", [row["id"] for row in rows])
    attempts = yield from fetch_all(
        f"SELECT output_file_path FROM job_attempts WHERE job_id IN ({names}) AND output_file_path IS NOT NULL",
        **parameters,
    )
    columns = ("prompt_file_path", "output_file_path")
    paths = {row[column] for row in rows for column in columns} | {row["output_file_path"] for row in attempts}
    return sorted(paths - {None})


def _between(rule: Rule, after: Position, last: Position) -> tuple[str, dict[str, Value]]:
    conditions, parameters = _matching(rule)
    stretch = "(finished_at, id) > (:after_at, :after_id) AND (finished_at, id) <= (:last_at, :last_id)"
    where = f"finished_at IS NOT NULL AND {stretch} AND {conditions}"
    bounds: dict[str, Value] = {
        "after_at": after.finished_at,
        "after_id": after.id,
        "last_at": last.finished_at,
        "last_id": last.id,
    }
    return where, parameters | bounds


def _matching(rule: Rule) -> tuple[str, dict[str, Value]]:
    """Return the conditions of a rule that do not tell how old a job is."""
    names, parameters = placeholders("status", [status.value for status in rule.statuses])
    conditions = [f"status IN ({names})"]
    for name, value in (("task_type", rule.task_type), ("api_type", rule.api_type)):
        if value is not None:
            conditions.append(f"{name} = :{name}")
            parameters[name] = value
    if rule.texts_only:
        conditions.append("texts_pruned_at IS NULL")
    return " AND ".join(conditions), parameters
