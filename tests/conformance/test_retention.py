"""Retention: what is removed by age, count and status, jobs wholly or their texts alone, by hand or by policy."""

from __future__ import annotations

from typing import Any

import pytest

from jobstore import (
    InvalidArgument,
    InvalidTransition,
    Job,
    JobNotFound,
    JobStatus,
    JobStore,
    NewJob,
    RetentionPolicy,
    TextsPruned,
)
from jobstore.operations import pruning
from jobstore.operations.pruning import FIRST, Position, Rule
from jobstore.testing import FakeClock

from .support import SPILLED, enqueue, eventually, everything, files, start, streamed


async def ended(store: JobStore, status: str = "completed", prompt: str = "p", **fields: Any) -> str:  # noqa: ANN401
    """Make a job that has ended now; return its id."""
    if status == "canceled":
        return (await store.jobs.cancel((await enqueue(store, prompt, **fields)).id)).id
    claim = await start(store, prompt, **fields)
    if status == "completed":
        await store.jobs.complete(claim, "an answer")
    else:
        await store.jobs.fail(claim, "no")
    return claim.job_id


async def left(store: JobStore) -> set[str]:
    return {job.id for job in (await store.jobs.list(limit=1000)).items}


async def test_jobs_go_by_age_count_and_status(store: JobStore, clock: FakeClock) -> None:
    old = [await ended(store, "failed"), await ended(store)]
    clock.advance(100)
    new = [await ended(store, "canceled"), await ended(store)]
    clock.advance(10)
    waiting = (await enqueue(store)).id
    assert await store.jobs.prune(older_than=110, status="failed") == 1
    assert await left(store) == {old[1], *new, waiting}
    assert await store.jobs.prune(keep=1, status=["completed", "failed"]) == 1
    assert await left(store) == {*new, waiting}
    assert await store.jobs.prune(older_than=11) == 0
    assert await store.jobs.prune(keep=0) == 2
    assert await left(store) == {waiting}


async def test_all_that_is_given_must_hold(store: JobStore, clock: FakeClock) -> None:
    jobs = []
    for lane in ("plan", "plan", "note", "plan"):
        jobs.append(await ended(store, task_type=lane))
        clock.advance(10)
    assert await store.jobs.prune(older_than=25, keep=2, task_type="plan") == 1
    assert await left(store) == set(jobs[1:])
    assert await store.jobs.prune(older_than=0, keep=2, task_type="plan") == 0
    assert await store.jobs.prune(older_than=0, task_type="plan", api_type="other") == 0
    assert await store.jobs.prune(older_than=1000, keep=0) == 0
    assert await store.jobs.prune(older_than=0, keep=0, api_type="claude") == 3


async def test_a_dry_run_tells_and_changes_nothing(store: JobStore, clock: FakeClock) -> None:
    for _ in range(3):
        await ended(store)
    await store.retention.set("all", older_than=0)
    await store.retention.set("texts", older_than=0, removes="texts")
    before = await everything(store)
    clock.advance(1)
    assert await store.jobs.prune(keep=1, dry_run=True) == 2
    assert await store.jobs.prune(keep=3, dry_run=True) == 0
    assert await store.jobs.prune(older_than=0, texts_only=True, dry_run=True) == 3
    assert await store.retention.apply(dry_run=True) == {"all": 3, "texts": 3}
    assert await everything(store) == before


async def test_texts_go_and_their_job_stays_and_says_so(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, SPILLED, metadata={"kept": True})
    await store.jobs.complete(claim, SPILLED[::-1])
    inline = await ended(store, prompt="a secret")
    before = {job_id: await store.jobs.get(job_id) for job_id in (claim.job_id, inline)}
    assert len(files(store)) == 2
    clock.advance(5)
    assert await store.jobs.prune(older_than=0, texts_only=True) == 2
    await eventually(lambda: not files(store))
    for job_id, job in before.items():
        found = await store.jobs.get(job_id)
        assert found.texts_pruned_at is not None
        assert (found.texts_pruned_at - job.updated_at).total_seconds() == 5
        gone = dict.fromkeys(("prompt", "response", "prompt_file_path", "prompt_sha256"))
        gone |= dict.fromkeys(("output_file_path", "output_sha256"))
        times = {"texts_pruned_at": found.texts_pruned_at, "updated_at": found.updated_at}
        assert found == job.model_copy(update=gone | times)
        await refused(store, found)
    assert await store.jobs.prune(older_than=0, texts_only=True) == 0
    assert await store.jobs.prune(older_than=0) == 2


async def refused(store: JobStore, job: Job) -> None:
    """Check that whatever needs the texts of a job says where they are."""

    async def all_of(texts: Any) -> list[str]:  # noqa: ANN401
        return [text async for text in texts]

    for read in (
        store.jobs.read_prompt(job.id),
        store.jobs.read_response(job.id),
        all_of(store.jobs.open_response(job.id)),
        all_of(store.jobs.tail(job.id)),
        store.jobs.retry(job.id),
    ):
        with pytest.raises(TextsPruned, match="were pruned at") as refusal:
            await read
        assert (refusal.value.job_id, refusal.value.pruned_at) == (job.id, job.texts_pruned_at)


async def test_a_job_without_texts_is_not_retried_with_others(store: JobStore) -> None:
    await ended(store, "failed")
    assert await store.jobs.prune(older_than=0, texts_only=True) == 1
    whole = await ended(store, "failed")
    assert await store.jobs.retry_all(everything=True) == 1
    assert (await store.jobs.get(whole)).status is JobStatus.IDLE


async def test_partial_answers_go_with_the_texts(store: JobStore) -> None:
    claim = await start(store)
    await streamed(store, claim, "a partial answer")
    await store.jobs.fail(claim, "no")
    assert len(files(store)) == 1
    assert await store.jobs.read_response(claim.job_id) == "a partial answer"
    assert await store.jobs.prune(older_than=0, texts_only=True) == 1
    await eventually(lambda: not files(store))
    [attempt] = await store.jobs.attempts(claim.job_id)
    assert attempt.output_file_path is None
    with pytest.raises(TextsPruned):
        await store.jobs.read_response(claim.job_id)


async def test_an_answer_that_comes_after_its_texts_went_is_kept(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, max_attempts=1, lease=1)
    clock.advance(2)
    assert await store.jobs.claim("another") == []
    assert (await store.jobs.get(claim.job_id)).error_type == "worker_lost"
    assert await store.jobs.prune(older_than=0, texts_only=True) == 1
    await store.jobs.complete(claim, "paid for")
    assert await store.jobs.read_response(claim.job_id) == "paid for"
    with pytest.raises(TextsPruned):
        await store.jobs.read_prompt(claim.job_id)


async def test_a_job_that_was_retried_since_it_was_found_stays(store: JobStore) -> None:
    job_id = await ended(store)
    last = await store.run(pruning.newest, Rule(older_than=0))
    assert last is not None
    assert [found.id for found in await store.run(pruning.doomed, Rule(), FIRST, last)] == [job_id]
    await store.jobs.retry(job_id)
    for operation in (pruning.delete, pruning.remove_texts):
        assert await store.run(operation, [job_id], last) == (0, [])
    assert await store.jobs.read_prompt(job_id) == "p"


async def test_rounds_are_small_and_meet_every_job(store: JobStore) -> None:
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(250))
    assert await store.jobs.cancel_all(everything=True) == 250  # all at the same moment
    last = Position(2**63 - 1, "")
    assert len(await store.run(pruning.doomed, Rule(), FIRST, last)) == pruning.ROUND_ROWS == 100
    assert await store.jobs.prune(older_than=0, texts_only=True) == 250
    assert await store.jobs.prune(keep=3) == 247
    assert await store.jobs.count() == 3


async def test_policies_are_kept_listed_replaced_and_removed(store: JobStore) -> None:
    assert await store.retention.list() == []
    await store.retention.set("b", older_than=1.5, status="failed", task_type="plan", api_type="claude")
    await store.retention.set("a", removes="texts", keep=7)
    ends = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED]
    a = RetentionPolicy(
        name="a", removes="texts", statuses=ends, task_type=None, api_type=None, older_than=None, keep=7
    )
    b = RetentionPolicy(
        name="b",
        removes="jobs",
        statuses=[JobStatus.FAILED],
        task_type="plan",
        api_type="claude",
        older_than=1.5,
        keep=None,
    )
    assert await store.retention.list() == [a, b]
    await store.retention.set("b", keep=0)
    assert [policy.keep for policy in await store.retention.list()] == [7, 0]
    assert await store.retention.remove("b")
    assert not await store.retention.remove("b")
    assert await store.retention.list() == [a]


async def test_policies_are_applied_jobs_before_texts(store: JobStore, clock: FakeClock) -> None:
    old = await ended(store)
    clock.advance(50)
    middle = await ended(store)
    clock.advance(50)
    new = await ended(store)
    await store.retention.set("a texts", removes="texts", older_than=50)
    await store.retention.set("old jobs", older_than=100)
    assert await store.retention.apply() == {"old jobs": 1, "a texts": 1}
    with pytest.raises(JobNotFound):
        await store.jobs.get(old)
    assert (await store.jobs.get(middle)).texts_pruned_at is not None
    assert (await store.jobs.get(new)).prompt == "p"
    assert await store.retention.apply() == {"old jobs": 0, "a texts": 0}


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("older_than", {}),
    "a negative age": ("older_than", {"older_than": -1}),
    "no age": ("older_than", {"older_than": "1d"}),
    "a negative count": ("keep", {"keep": -1}),
    "half a job": ("keep", {"keep": 1.5}),
    "running jobs": ("status", {"keep": 1, "status": "running"}),
    "no status": ("status", {"keep": 1, "status": "done"}),
    "no task type": ("task_type", {"keep": 1, "task_type": ""}),
    "a NUL": ("api_type", {"keep": 1, "api_type": "a\0"}),
}


async def test_what_cannot_be_meant_is_refused(store: JobStore) -> None:
    await ended(store)
    before = await everything(store)
    for case, (field, given) in BAD.items():
        for call in (store.jobs.prune(**given), store.retention.set("x", **given)):
            with pytest.raises(InvalidArgument) as refusal:
                await call
            assert refusal.value.field == field, case
    assert await everything(store) == before
    assert await store.retention.list() == []


@pytest.mark.parametrize("removes", ["texts", "jobs"])
async def test_jobs_that_have_not_ended_are_never_touched(store: JobStore, clock: FakeClock, removes: Any) -> None:  # noqa: ANN401
    claim = await start(store)
    await enqueue(store)
    clock.advance(1000)
    await store.retention.set("all", removes=removes, older_than=0, keep=0)
    assert await store.retention.apply() == {"all": 0}
    assert await store.jobs.count() == 2
    with pytest.raises(InvalidTransition):
        await store.jobs.retry(claim.job_id)


async def test_the_maintenance_is_done_once_while_it_is_not_due_again(store: JobStore, clock: FakeClock) -> None:
    await ended(store)
    await store.retention.set("all", older_than=0)
    assert await store.maintain() == ["retention", "sweep", "space"]
    assert await store.jobs.count() == 0
    await ended(store)
    clock.advance(3599)
    assert await store.maintain() == []
    assert await store.jobs.count() == 1
    clock.advance(1)
    assert await store.maintain() == ["retention", "space"]
    assert await store.jobs.count() == 0
    clock.advance(24 * 3600)
    assert await store.maintain() == ["retention", "sweep", "space"]
