"""Operations on `maintenance`: whose turn it is to look after the store, one at a time, and when again."""

from __future__ import annotations

from collections.abc import Sequence

from jobstore.sql import Operation, execute, fetch_all, fetch_one, guarded, placeholders


def due(now: int, tasks: Sequence[str]) -> Operation[list[str]]:
    """Return those of the tasks that nobody does, or has done of late, in their order."""
    names, parameters = placeholders("task", tasks)
    rows = yield from fetch_all(
        f"SELECT task FROM maintenance WHERE task IN ({names}) AND due_at > :now", now=now, **parameters
    )
    done = {row["task"] for row in rows}
    return [task for task in tasks if task not in done]


@guarded
def take(now: int, task: str, holder: str, period: int) -> Operation[bool]:
    """Take a task that is due, until it is due again; return False if someone else has it."""
    row = yield from fetch_one(
        """
        INSERT INTO maintenance (task, holder, due_at) VALUES (:task, :holder, :due_at)
        ON CONFLICT (task) DO UPDATE SET holder = excluded.holder, due_at = excluded.due_at
            WHERE maintenance.due_at <= :now
        RETURNING task
        """,
        task=task,
        holder=holder,
        due_at=now + period,
        now=now,
    )
    return row is not None


@guarded
def hold(now: int, task: str, holder: str, period: int) -> Operation[bool]:
    """Hold a task that was taken for longer; return False if someone else has it by now."""
    held = yield from execute(
        "UPDATE maintenance SET due_at = :due_at WHERE task = :task AND holder = :holder",
        task=task,
        holder=holder,
        due_at=now + period,
    )
    return held > 0
