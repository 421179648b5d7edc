"""The schema refuses rows that no operation would write: whoever uses SQL of their own meets the same rules."""

from __future__ import annotations

import pytest

from jobstore import ConstraintFailed, JobStore

JOBS = [
    "status = 'lost'",
    "status = 'failed'",
    "finished_at = 1",
    "status = 'running', attempt = 1, attempts_used = 1",
    "status = 'running', started_at = 1",
    "task_type = ''",
    "api_type = ''",
    "priority = 2147483648",
    "priority = -2147483649",
    "attempt = -1",
    "attempts_used = -1",
    "attempts_used = 1",
    "max_attempts = 0",
    "timeout = 0",
    "idempotency_key = ''",
    "input_tokens = -1",
    "output_tokens = -1",
    "cache_read_tokens = -1",
    "cache_write_tokens = -1",
    "reasoning_tokens = -1",
    "cost = -0.5",
    "cleared = 2",
]
ATTEMPTS = [
    "attempt = 0",
    "outcome = 'completed'",
    "finished_at = 1",
    "finished_at = 1, outcome = 'won'",
    "output_bytes = -1",
]


@pytest.mark.parametrize("change", JOBS)
async def test_a_job_that_breaks_a_rule_is_refused(store: JobStore, change: str) -> None:
    job = await store.jobs.enqueue("p", task_type="t", api_type="a")
    with pytest.raises(ConstraintFailed) as refusal:
        await store.execute(f"UPDATE background_jobs SET {change}")
    assert refusal.value.kind == "check"
    assert await store.jobs.get(job.id) == job


@pytest.mark.parametrize("change", ATTEMPTS)
async def test_an_attempt_that_breaks_a_rule_is_refused(store: JobStore, change: str) -> None:
    await store.jobs.enqueue("p", task_type="t", api_type="a")
    [claim] = await store.jobs.claim("worker")
    [attempt] = await store.jobs.attempts(claim.job_id)
    with pytest.raises(ConstraintFailed) as refusal:
        await store.execute(f"UPDATE job_attempts SET {change}")
    assert refusal.value.kind == "check"
    assert await store.jobs.attempts(claim.job_id) == [attempt]


async def test_a_new_job_that_breaks_a_rule_is_refused(store: JobStore) -> None:
    with pytest.raises(ConstraintFailed) as refusal:
        await store.execute(
            "INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)"
            " VALUES ('x', 't', 'a', 'unheard of', 1, 1, 1, 'p')"
        )
    assert refusal.value.kind == "check"
    assert await store.jobs.count() == 0
