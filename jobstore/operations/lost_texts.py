"""Operations that note in the rows that a large text is lost."""

from __future__ import annotations

import json
from typing import Any

from jobstore.lifecycle import AttemptOutcome
from jobstore.sql import Operation, Row, execute, fetch_all

PROMPT_LOST = "prompt_lost"
"""The `error_type` of a job that cannot be done any more, because its prompt is lost."""


def note_lost(now: int, path: str, problem: str) -> Operation[int]:
    """Take a text's path out of the rows that name it, and note in the jobs' metadata what is lost.

    A job that waits for its prompt, or runs, has failed. Returns how many jobs there are.

    Args:
        now: The present time in milliseconds.
        path: The text's.
        problem: What is wrong with it.
    """
    yield from execute(
        "UPDATE job_attempts SET output_file_path = NULL, output_bytes = NULL WHERE output_file_path = :path", path=path
    )
    rows = yield from fetch_all(
        "SELECT id, metadata, prompt_file_path, output_file_path FROM background_jobs"
        " WHERE prompt_file_path = :path OR output_file_path = :path",
        path=path,
    )
    for row in rows:
        lost = {"path": path, "problem": problem}
        if row["prompt_file_path"] == path:
            yield from _lose_prompt(now, row, lost)
        else:
            yield from _lose_response(row, lost)
    return len(rows)


def _lose_prompt(now: int, row: Row, lost: dict[str, str]) -> Operation[None]:
    yield from execute(
        """
        UPDATE background_jobs SET prompt_file_path = NULL, prompt_bytes = NULL, prompt_sha256 = NULL,
            metadata = :metadata, updated_at = :now
        WHERE id = :id
        """,
        id=row["id"],
        now=now,
        metadata=_with(row, "lost_prompt", lost),
    )
    failed = yield from execute(
        f"""
        UPDATE background_jobs SET status = 'failed', finished_at = :now, error_type = '{PROMPT_LOST}',
            error_message = 'its prompt is lost'
        WHERE id = :id AND status IN ('idle', 'scheduled', 'running')
        """,
        id=row["id"],
        now=now,
    )
    if failed:
        yield from execute(
            f"UPDATE job_attempts SET finished_at = :now, outcome = '{AttemptOutcome.LOST}'"
            " WHERE job_id = :id AND finished_at IS NULL",
            id=row["id"],
            now=now,
        )


def _lose_response(row: Row, lost: dict[str, str]) -> Operation[int]:
    return (
        yield from execute(
            "UPDATE background_jobs SET output_file_path = NULL, output_bytes = NULL, output_sha256 = NULL,"
            " metadata = :metadata WHERE id = :id",
            id=row["id"],
            metadata=_with(row, "lost_response", lost),
        )
    )


def _with(row: Row, key: str, value: dict[str, str]) -> str:
    metadata: dict[str, Any] = json.loads(row["metadata"])
    return json.dumps(metadata | {key: value}, ensure_ascii=False)
