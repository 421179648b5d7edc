"""Why a job is not running: one sentence for each reason, told from what a claim would see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobstore import Claim, Explanation, ExplanationReason, Job, JobNotFound, JobStatus, JobStore, NewJob, Pause
from jobstore.operations import registering
from jobstore.operations.registering import Registration
from jobstore.testing import FakeClock

from .support import claim, enqueue, everything, start

NOW = "2025-06-15 15:06:40 UTC"
IN_A_MINUTE = "2025-06-15 15:07:40 UTC"


def soon(clock: FakeClock, seconds: float = 60) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=seconds)


async def list_worker(store: JobStore, *task_types: str, name: str = "w", running: int = 0) -> None:
    worker = Registration(name, "host", 1, "1.0", list(task_types), 4)
    await store.run(registering.register, worker, running, 15_000)


async def told(store: JobStore, job: Job | Claim) -> tuple[str, str]:
    explanation = await store.jobs.explain(job.id if isinstance(job, Job) else job.job_id)
    return explanation.reason.value, explanation.text


# What has ended


async def test_a_completed_job_says_when(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    await store.jobs.complete(claimed, "done")
    assert await store.jobs.explain(claimed.job_id) == Explanation(
        job_id=claimed.job_id,
        status=JobStatus.COMPLETED,
        reason=ExplanationReason.COMPLETED,
        text=f"It was completed at {NOW}.",
        until=soon(clock, 0),
        worker_id="worker-1",
    )


async def test_a_failed_job_says_after_how_many_attempts(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.fail(claimed, "the secret reason", error_type="refusal")
    text = f"It failed for good at {NOW} (refusal), after 1 of 3 attempts. Retry it by hand."
    assert await told(store, claimed) == ("failed", text)


async def test_attempts_that_are_used_up_are_told(store: JobStore) -> None:
    claimed = await start(store, max_attempts=1)
    await store.jobs.fail(claimed, "the secret reason", error_type="timeout", retry_in=1)
    text = f"It failed at {NOW} (timeout): its attempts are used up (1 of 1). Retry it by hand."
    assert await told(store, claimed) == ("attempts_used_up", text)


async def test_a_canceled_job_says_when(store: JobStore) -> None:
    job = await enqueue(store)
    await store.jobs.cancel(job.id)
    assert await told(store, job) == ("canceled", f"It was canceled at {NOW}.")


async def test_an_expired_job_says_so_before_and_after_a_claim_cancels_it(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, expires_at=soon(clock, 60))
    clock.advance(61)
    text = f"It expired at {IN_A_MINUTE} while it waited: the next claim cancels it."
    assert await told(store, job) == ("expired", text)
    assert await store.jobs.claim("w") == []
    text = "It was canceled at 2025-06-15 15:07:41 UTC: it still waited when it expired."
    assert await told(store, job) == ("expired", text)


# What runs


async def test_a_running_job_says_who_has_it_until_when(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=60)
    found = await store.jobs.explain(claimed.job_id)
    assert found.reason is ExplanationReason.RUNNING
    assert found.text == f"It is running: worker worker-1 has leased it until {IN_A_MINUTE}."
    assert (found.until, found.worker_id) == (soon(clock, 60), "worker-1")


async def test_a_running_job_that_is_to_end_says_since_when(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=70)
    clock.advance(10)
    await store.jobs.cancel(claimed.job_id)
    asked = "2025-06-15 15:06:50 UTC"
    text = f"It was asked to end at {asked}; worker worker-1 has leased it until 2025-06-15 15:07:50 UTC."
    assert await told(store, claimed) == ("cancel_requested", text)


async def test_a_job_whose_worker_is_lost_says_that_the_next_claim_helps(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=60)
    clock.advance(61)
    text = f"Worker worker-1 was lost, its lease ended at {IN_A_MINUTE}: the next claim gives the job back."
    assert await told(store, claimed) == ("lease_ended", text)


async def test_a_lost_job_that_is_to_end_or_has_no_attempt_left_says_what_becomes_of_it(
    store: JobStore, clock: FakeClock
) -> None:
    last = await start(store, max_attempts=1, lease=60)
    canceled = await start(store, lease=60)
    await store.jobs.cancel(canceled.job_id)
    clock.advance(61)
    lost = f"Worker worker-1 was lost, its lease ended at {IN_A_MINUTE}:"
    fails = f"{lost} the next claim lets the job fail, as its attempts are used up (1 of 1)."
    assert await told(store, last) == ("lease_ended", fails)
    assert await told(store, canceled) == ("lease_ended", f"{lost} the next claim cancels the job, as was asked.")


# What waits


async def test_a_scheduled_job_says_until_when(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, run_at=soon(clock, 60))
    assert await told(store, job) == ("scheduled", f"It waits for its time: it is scheduled for {IN_A_MINUTE}.")


async def test_a_job_that_is_retried_later_says_after_what(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.fail(claimed, "the secret reason", retry_in=60, error_type="rate_limit")
    text = f"It waits for its time: it is scheduled for {IN_A_MINUTE}, after 1 of 3 attempts (rate_limit)."
    assert await told(store, claimed) == ("scheduled", text)


@pytest.mark.parametrize(
    ("scope", "named"),
    [
        ({}, "everything"),
        ({"task_type": "greeting"}, "task type greeting"),
        ({"api_type": "claude"}, "API claude"),
        ({"task_type": "greeting", "api_type": "claude"}, "lane greeting/claude"),
    ],
)
async def test_a_paused_lane_is_told(store: JobStore, scope: dict[str, str], named: str) -> None:
    job = await enqueue(store)
    await list_worker(store, "greeting")
    held = await store.lanes.pause(**scope, seconds=60)
    assert await told(store, job) == ("paused", f"It waits: {named} is paused until {IN_A_MINUTE}.")
    assert (await store.jobs.explain(job.id)).pause == held
    await store.lanes.pause(**scope, reason="new key")
    assert await told(store, job) == ("paused", f"It waits: {named} is paused until someone resumes it (new key).")
    await store.lanes.resume()
    await store.lanes.pause(task_type="other")
    assert (await told(store, job))[0] == "next"


async def test_a_pause_is_told_beside_another_reason_too(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, run_at=soon(clock, 60))
    held = await store.lanes.pause()
    found = await store.jobs.explain(job.id)
    assert (found.reason, found.pause) == (ExplanationReason.SCHEDULED, held)
    assert isinstance(found.pause, Pause)


async def test_a_task_type_that_no_worker_handles_is_told(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store)
    text = "It waits: no live worker is registered for task type greeting or API claude, and none for anything else."
    assert await told(store, job) == ("no_worker", text)
    await list_worker(store, "plan", "title")
    text = "It waits: no live worker is registered for task type greeting or API claude, only 1 live worker for others."
    assert await told(store, job) == ("no_worker", text)
    await list_worker(store, "greeting", name="gone")
    assert (await told(store, job))[0] == "next"
    clock.advance(15)
    assert (await told(store, job))[0] == "no_worker"


async def test_the_next_in_line_says_so(store: JobStore) -> None:
    job = await enqueue(store)
    await list_worker(store, "greeting", running=1)
    text = "It is the next in line for 1 live worker, with 3 free places when last heard of."
    assert await told(store, job) == ("next", text)
    found = await store.jobs.explain(job.id)
    assert (found.workers, found.ahead, found.worker_id, found.until) == (1, 0, None, None)


async def test_the_jobs_ahead_are_those_that_its_workers_would_claim_before_it(
    store: JobStore, clock: FakeClock
) -> None:
    await list_worker(store, "greeting", "plan", name="one")
    await list_worker(store, "greeting", name="two", running=4)
    await enqueue(store)
    job = await enqueue(store, priority=1)
    clock.advance(1)
    for fields in (
        {"priority": 2},
        {"task_type": "plan", "priority": 9},
        {"task_type": "title", "priority": 9},  # none of its workers handles that
        {"priority": 9, "run_at": soon(clock, 60)},  # not yet
        {"priority": 1},  # later
        {"priority": 0},
        {"priority": 9, "api_type": "paused"},
    ):
        await enqueue(store, **fields)
    await store.lanes.pause(api_type="paused")
    found = await store.jobs.explain(job.id)
    assert (found.reason, found.ahead, found.workers) == (ExplanationReason.BEHIND, 2, 2)
    places = "for 2 live workers, with 4 free places when last heard of."
    assert found.text == f"It waits for its turn: 2 jobs ahead of it {places}"
    claims = await store.jobs.claim("w", limit=9, task_types=["greeting", "plan"])
    assert [one.job_id for one in claims].index(job.id) == found.ahead


async def test_many_ahead_are_counted_to_a_thousand(store: JobStore) -> None:
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="greeting", api_type="claude") for _ in range(1005))
    job = await enqueue(store)
    await list_worker(store, "greeting")
    found = await store.jobs.explain(job.id)
    assert (found.ahead, found.text[:58]) == (1000, "It waits for its turn: at least 1,000 jobs ahead of it for")


async def test_to_ask_changes_nothing(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=5)
    job = await enqueue(store, expires_at=soon(clock, 5))
    clock.advance(60)
    before = await everything(store)
    for asked in (job.id, claimed.job_id):
        await store.jobs.explain(asked)
    assert await everything(store) == before


async def test_a_job_that_is_not_there_is_told(store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        await store.jobs.explain("none")


async def test_no_text_of_the_users_is_in_what_is_told(store: JobStore) -> None:
    secret = "a secret in the prompt"  # noqa: S105
    job = await enqueue(store, secret)
    claimed = await claim(store, job)
    await store.jobs.fail(claimed, ValueError(secret), retry_in=10)
    assert secret not in (await store.jobs.explain(job.id)).model_dump_json()
