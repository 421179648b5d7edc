"""Operations on `retention_policies`: by which rules jobs, or their texts alone, are removed as they grow old."""

from __future__ import annotations

from jobstore.encoding import dump_json
from jobstore.operations.pruning import Rule
from jobstore.overviews import RetentionPolicy
from jobstore.sql import Operation, execute, fetch_all, guarded

_COLUMNS = "name, removes, statuses, task_type, api_type, older_than, keep"


@guarded
def put(now: int, name: str, rule: Rule) -> Operation[None]:
    """Set a policy, in the place of one of the same name."""
    yield from execute(
        f"""
        INSERT INTO retention_policies ({_COLUMNS}, updated_at)
        VALUES (:name, :removes, :statuses, :task_type, :api_type, :older_than, :keep, :now)
        ON CONFLICT (name) DO UPDATE SET removes = excluded.removes, statuses = excluded.statuses,
            task_type = excluded.task_type, api_type = excluded.api_type, older_than = excluded.older_than,
            keep = excluded.keep, updated_at = excluded.updated_at
        """,
        name=name,
        removes="texts" if rule.texts_only else "jobs",
        statuses=dump_json("status", [status.value for status in rule.statuses]),
        task_type=rule.task_type or "",
        api_type=rule.api_type or "",
        older_than=rule.older_than,
        keep=rule.keep,
        now=now,
    )


@guarded
def remove(_now: int, name: str) -> Operation[bool]:
    """Remove a policy; return whether there was one."""
    return (yield from execute("DELETE FROM retention_policies WHERE name = :name", name=name)) > 0


def policies(_now: int) -> Operation[list[RetentionPolicy]]:
    """Return all policies, in the order of their names."""
    rows = yield from fetch_all(f"SELECT {_COLUMNS} FROM retention_policies ORDER BY name")
    return [RetentionPolicy.from_row(row) for row in rows]


def rule_of(policy: RetentionPolicy) -> Rule:
    """Return what a policy says as a rule."""
    return Rule(
        texts_only=policy.removes == "texts",
        statuses=policy.statuses,
        task_type=policy.task_type,
        api_type=policy.api_type,
        older_than=None if policy.older_than is None else round(policy.older_than * 1000),
        keep=policy.keep,
    )
