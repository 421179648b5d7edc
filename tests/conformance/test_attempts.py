"""What the holder of a claim reports, what becomes of the job, and what is refused once the attempt has ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobstore import (
    AttemptOutcome,
    Claim,
    InvalidTransition,
    JobNotFound,
    JobStatus,
    JobStore,
    LeaseLost,
    NewJob,
    SessionNotFound,
    Usage,
)
from jobstore.testing import FakeClock

from .support import SPILLED, claim, enqueue, eventually, everything, facts, files, start, streamed


def moment(clock: FakeClock, seconds: float = 0) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=seconds)


async def outcomes(store: JobStore, job_id: str) -> list[AttemptOutcome | None]:
    return [attempt.outcome for attempt in await store.jobs.attempts(job_id)]


# complete


async def test_complete_records_the_answer_and_says_what_get_says(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, metadata={"a": 1, "b": {"x": 1}})
    clock.advance(2)
    usage = Usage(input_tokens=10, output_tokens=20, cache_read_tokens=3, cost=0.25)
    done = await store.jobs.complete(claimed, "the answer", usage=usage, metadata={"b": None, "c": [1]})
    assert done.status is JobStatus.COMPLETED
    assert done.response == "the answer"
    assert done.finished_at == moment(clock)
    assert (done.input_tokens, done.output_tokens, done.cache_read_tokens, done.cost) == (10, 20, 3, 0.25)
    assert (done.reasoning_tokens, done.cache_write_tokens) == (None, None)
    assert done.metadata == {"a": 1, "b": None, "c": [1]}
    stored = await store.jobs.get(claimed.job_id)
    assert facts(stored) == facts(done)
    assert stored.response == "the answer"
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert (attempt.outcome, attempt.finished_at) == (AttemptOutcome.COMPLETED, moment(clock))


@pytest.mark.parametrize("response", ["", SPILLED])
async def test_complete_says_what_get_says_whatever_happened_since_the_claim(
    store: JobStore, clock: FakeClock, response: str
) -> None:
    claimed = await start(store, max_attempts=1)
    await store.jobs.progress(claimed, status_message="half", usage=Usage(input_tokens=1), metadata={"seen": True})
    await store.jobs.clear([claimed.job_id])
    clock.advance(30)
    await store.jobs.claim("worker-2")  # rescues it: failed
    clock.advance(1)
    await store.jobs.retry(claimed.job_id)
    done = await store.jobs.complete(claimed, response, usage=Usage(output_tokens=2))
    assert facts(done) == facts(await store.jobs.get(claimed.job_id))
    assert (done.input_tokens, done.output_tokens) == (1, 2)


async def test_an_empty_answer_is_an_answer_and_none_is_none(store: JobStore) -> None:
    empty, nothing = await start(store), await start(store)
    await store.jobs.complete(empty, "")
    await store.jobs.complete(nothing)
    assert await store.jobs.read_response(empty.job_id) == ""
    assert await store.jobs.read_response(nothing.job_id) is None


async def test_a_large_answer_goes_to_a_file_that_the_row_and_the_attempt_name(store: JobStore) -> None:
    claimed = await start(store)
    done = await store.jobs.complete(claimed, SPILLED)
    assert done.response is None
    assert done.output_bytes == len(SPILLED.encode())
    assert {done.output_file_path} == files(store)
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert (attempt.output_file_path, attempt.output_bytes) == (done.output_file_path, done.output_bytes)
    assert await store.jobs.read_response(claimed.job_id) == SPILLED


@pytest.mark.parametrize("response", ["answer", SPILLED, None])
async def test_repeating_ones_own_complete_returns_the_job_unchanged(
    store: JobStore, clock: FakeClock, response: str | None
) -> None:
    claimed = await start(store)
    first = await store.jobs.complete(claimed, response, metadata={"n": 1})
    before, names = await everything(store), files(store)
    clock.advance(1)
    again = await store.jobs.complete(claimed, SPILLED + "another", metadata={"n": 2}, usage=Usage(cost=1.0))
    assert facts(again) == facts(first)
    assert await everything(store) == before
    await eventually(lambda: files(store) == names)


async def test_usage_that_is_none_changes_nothing(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.progress(claimed, usage=Usage(input_tokens=5, cost=0.5))
    await store.jobs.progress(claimed, usage=Usage(output_tokens=6))
    done = await store.jobs.complete(claimed, "x", usage=Usage(cost=0.75))
    assert (done.input_tokens, done.output_tokens, done.cost) == (5, 6, 0.75)


async def test_an_error_of_an_earlier_attempt_is_gone_once_the_job_is_completed(store: JobStore) -> None:
    claimed = await start(store)
    failed = await store.jobs.fail(claimed, ValueError("no"), retry_in=0)
    assert failed.error_type == "ValueError"
    done = await store.jobs.complete(await claim(store, failed), "yes")
    assert (done.error_type, done.error_message) == (None, None)
    first, _ = await store.jobs.attempts(claimed.job_id)
    assert (first.error_type, first.error_message) == ("ValueError", "no")


# the late answer


async def test_an_answer_after_the_lease_ended_counts_while_nobody_noticed(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    clock.advance(3600)
    assert (await store.jobs.complete(claimed, "late")).response == "late"
    assert await outcomes(store, claimed.job_id) == [AttemptOutcome.COMPLETED]


@pytest.mark.parametrize(("max_attempts", "rescued"), [(3, JobStatus.IDLE), (1, JobStatus.FAILED)])
async def test_a_late_answer_counts_while_no_later_attempt_has_begun(
    store: JobStore, clock: FakeClock, max_attempts: int, rescued: JobStatus
) -> None:
    claimed = await start(store, max_attempts=max_attempts)
    clock.advance(30)
    assert await store.jobs.claim("worker-2", task_types=["another"]) == []
    assert (await store.jobs.get(claimed.job_id)).status is rescued
    done = await store.jobs.complete(claimed, SPILLED)
    assert (done.status, done.error_type) == (JobStatus.COMPLETED, None)
    assert await store.jobs.read_response(claimed.job_id) == SPILLED
    assert await outcomes(store, claimed.job_id) == [AttemptOutcome.COMPLETED]
    assert await store.jobs.claim("worker-2") == []


async def test_a_late_answer_is_refused_once_another_attempt_has_begun(store: JobStore, clock: FakeClock) -> None:
    zombie = await start(store)
    clock.advance(30)
    successor = await claim(store, zombie.job)
    before, names = await everything(store), files(store)
    with pytest.raises(LeaseLost) as refusal:
        await store.jobs.complete(zombie, SPILLED)
    assert (refusal.value.job_id, refusal.value.attempt) == (zombie.job_id, 1)
    assert await everything(store) == before
    await eventually(lambda: files(store) == names)
    assert (await store.jobs.complete(successor, "mine")).response == "mine"
    with pytest.raises(LeaseLost):
        await store.jobs.complete(zombie, "still late")
    assert await store.jobs.read_response(zombie.job_id) == "mine"


async def test_a_late_answer_is_refused_once_the_job_was_canceled(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    clock.advance(30)
    await store.jobs.claim("worker-2", task_types=["another"])
    await store.jobs.cancel(claimed.job_id)
    with pytest.raises(LeaseLost):
        await store.jobs.complete(claimed, "late")
    assert (await store.jobs.get(claimed.job_id)).status is JobStatus.CANCELED


async def test_an_answer_after_ones_own_failure_is_refused(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.fail(claimed, "no")
    with pytest.raises(LeaseLost):
        await store.jobs.complete(claimed, "yes")
    assert (await store.jobs.get(claimed.job_id)).status is JobStatus.FAILED


async def test_a_clock_that_steps_back_never_refuses_an_answer(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, SPILLED)
    clock.advance(-7200)
    [beat] = await store.jobs.heartbeat([claimed])
    assert beat.extended
    await store.jobs.progress(claimed, status_message="half")
    await streamed(store, claimed, "paid ", "for")
    done = await store.jobs.complete(claimed)
    assert (done.status, done.response) == (JobStatus.COMPLETED, "paid for")
    assert done.finished_at == moment(clock) < done.started_at
    assert (await store.jobs.retry(done.id)).status is JobStatus.IDLE


async def test_every_verb_works_while_the_clock_steps_back(store: JobStore, clock: FakeClock) -> None:
    for report in (
        lambda claimed: store.jobs.fail(claimed, "no", retry_in=5),
        lambda claimed: store.jobs.snooze(claimed, 5),
        store.jobs.release,
        lambda claimed: store.jobs.fail(claimed, "no"),
        lambda claimed: store.jobs.cancel_claimed(claimed, "enough"),
    ):
        claimed = await start(store)
        clock.advance(-3600)
        job = await report(claimed)
        assert job.updated_at == moment(clock)
        if not job.status.is_terminal:
            await store.jobs.cancel(job.id)


# fail


async def test_a_failure_without_retry_is_final(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    clock.advance(1)
    failed = await store.jobs.fail(claimed, "no", error_type="refused")
    assert (failed.status, failed.error_type, failed.error_message) == (JobStatus.FAILED, "refused", "no")
    assert failed.finished_at == moment(clock)
    assert facts(failed) == facts(await store.jobs.get(claimed.job_id))
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert (attempt.outcome, attempt.error_type, attempt.error_message) == (AttemptOutcome.FAILED, "refused", "no")


async def test_an_exception_tells_its_class_and_its_text(store: JobStore) -> None:
    failed = await store.jobs.fail(await start(store), TimeoutError("too slow"))
    assert (failed.error_type, failed.error_message) == ("TimeoutError", "too slow")
    named = await store.jobs.fail(await start(store), TimeoutError("too slow"), error_type="slow")
    assert named.error_type == "slow"


async def test_an_error_text_that_cannot_be_stored_is_written_out(store: JobStore) -> None:
    failed = await store.jobs.fail(await start(store), "a\ud800b\0c", error_type="odd\0")
    assert failed.error_message == "a\\ud800b\\x00c"
    assert failed.error_type == "odd\\x00"

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert (await store.jobs.fail(await start(store), Broken())).error_type == "Broken"


async def test_retry_in_schedules_the_job_until_its_attempts_are_used_up(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, max_attempts=3)
    for attempt in (1, 2):
        claimed = await claim(store, job)
        assert (claimed.attempt, claimed.job.attempts_used) == (attempt, attempt)
        again = await store.jobs.fail(claimed, "no", retry_in=10)
        assert (again.status, again.run_at) == (JobStatus.SCHEDULED, moment(clock, 10))
        assert (again.error_message, again.finished_at) == ("no", None)
        assert await store.jobs.claim("worker-1") == []
        clock.advance(10)
    last = await store.jobs.fail(await claim(store, job), "no", retry_in=10)
    assert (last.status, last.attempt, last.attempts_used) == (JobStatus.FAILED, 3, 3)
    assert await outcomes(store, job.id) == [AttemptOutcome.FAILED] * 3


# release and snooze


async def test_release_gives_the_job_and_the_attempt_back(store: JobStore) -> None:
    job = await enqueue(store, max_attempts=1)
    for attempt in range(1, 6):
        claimed = await claim(store, job)
        assert (claimed.attempt, claimed.job.attempts_used) == (attempt, 1)
        released = await store.jobs.release(claimed)
        assert (released.status, released.attempt, released.attempts_used) == (JobStatus.IDLE, attempt, 0)
        assert facts(released) == facts(await store.jobs.get(job.id))
    assert await outcomes(store, job.id) == [AttemptOutcome.RELEASED] * 5


async def test_snooze_gives_the_attempt_back_and_the_job_later(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, max_attempts=1)
    for attempt in range(1, 4):
        claimed = await claim(store, job)
        snoozed = await store.jobs.snooze(claimed, 2.5)
        assert (snoozed.status, snoozed.run_at) == (JobStatus.SCHEDULED, moment(clock, 2.5))
        assert (snoozed.attempt, snoozed.attempts_used) == (attempt, 0)
        clock.advance(2.5)
    assert await outcomes(store, job.id) == [AttemptOutcome.SNOOZED] * 3


async def test_snoozing_for_no_time_leaves_the_job_claimable(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.snooze(claimed, 0)
    assert (await claim(store, claimed.job)).attempt == 2


# rescue


async def test_a_lease_holds_until_its_very_end(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=30)
    clock.advance(29.999)
    assert await store.jobs.claim("worker-2") == []
    clock.advance(0.001)
    assert (await claim(store, claimed.job)).attempt == 2
    assert await outcomes(store, claimed.job_id) == [AttemptOutcome.LOST, None]


async def test_a_rescued_job_keeps_its_place_in_the_queue(store: JobStore, clock: FakeClock) -> None:
    first = await start(store, "first")
    clock.advance(1)
    await enqueue(store, "second")
    clock.advance(30)
    claims = await store.jobs.claim("worker-2", limit=2)
    assert [one.prompt for one in claims] == ["first", "second"]
    assert claims[0].job_id == first.job_id


async def test_lost_attempts_count_until_the_job_fails_for_lost_workers(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, max_attempts=2)
    for _ in range(2):
        await claim(store, job)
        clock.advance(30)
    assert await store.jobs.claim("worker-1") == []
    lost = await store.jobs.get(job.id)
    assert (lost.status, lost.error_type) == (JobStatus.FAILED, "worker_lost")
    assert lost.finished_at == moment(clock)
    assert await outcomes(store, job.id) == [AttemptOutcome.LOST, AttemptOutcome.LOST]


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_a_lost_job_that_was_to_be_canceled_is_canceled(
    store: JobStore, clock: FakeClock, max_attempts: int
) -> None:
    claimed = await start(store, max_attempts=max_attempts)
    await store.jobs.cancel(claimed.job_id)
    clock.advance(30)
    assert await store.jobs.claim("worker-2") == []
    job = await store.jobs.get(claimed.job_id)
    assert (job.status, job.error_type) == (JobStatus.CANCELED, None)


async def test_opening_a_store_rescues_nothing(store: JobStore, database: Path | str, clock: FakeClock) -> None:
    claimed = await start(store)
    clock.advance(3600)
    async with JobStore(database, clock=clock) as another:
        assert (await another.jobs.get(claimed.job_id)).status is JobStatus.RUNNING


# heartbeat


async def test_a_heartbeat_renews_the_lease_from_now(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=30)
    clock.advance(29)
    [beat] = await store.jobs.heartbeat([claimed], lease=10)
    assert (beat.job_id, beat.attempt) == (claimed.job_id, 1)
    assert (beat.extended, beat.cancel_requested) == (True, False)
    [attempt] = await store.jobs.attempts(claimed.job_id)
    assert attempt.lease_expires_at == moment(clock, 10)
    clock.advance(9.999)
    assert await store.jobs.claim("worker-2") == []
    clock.advance(0.001)
    assert len(await store.jobs.claim("worker-2")) == 1


async def test_heartbeats_answer_one_by_one_in_the_order_given(store: JobStore, clock: FakeClock) -> None:
    lost = await start(store)
    clock.advance(30)
    successor = await claim(store, lost.job)
    wanted, done = await start(store), await start(store)
    await store.jobs.cancel(wanted.job_id)
    await store.jobs.complete(done, "x")
    given = [done, wanted, lost, successor, wanted]
    beats = await store.jobs.heartbeat(given)
    assert [(beat.job_id, beat.attempt) for beat in beats] == [(one.job_id, one.attempt) for one in given]
    assert [beat.extended for beat in beats] == [False, True, False, True, True]
    assert [beat.cancel_requested for beat in beats] == [False, True, False, False, True]


async def test_a_heartbeat_of_nothing_is_nothing(store: JobStore) -> None:
    assert await store.jobs.heartbeat([]) == []


async def test_thousands_of_leases_are_renewed_at_once(store: JobStore, clock: FakeClock) -> None:
    await store.jobs.enqueue_many(NewJob(prompt="x", task_type="t", api_type="a") for _ in range(1300))
    claims = await store.jobs.claim("worker-1", limit=10_000)
    clock.advance(29)
    beats = await store.jobs.heartbeat(claims)
    assert len(beats) == 1300
    assert all(beat.extended for beat in beats)
    clock.advance(29)
    assert await store.jobs.claim("worker-2") == []


async def test_a_heartbeat_after_the_lease_ended_still_saves_it_while_nobody_noticed(
    store: JobStore, clock: FakeClock
) -> None:
    claimed = await start(store)
    clock.advance(60)
    [beat] = await store.jobs.heartbeat([claimed])
    assert beat.extended
    assert await store.jobs.claim("worker-2") == []


# progress


async def test_progress_changes_what_it_names_and_nothing_else(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, metadata={"kept": 1})
    clock.advance(1)
    job = await store.jobs.progress(claimed, status_message="half", metadata={"new": [2]})
    assert (job.status_message, job.metadata) == ("half", {"kept": 1, "new": [2]})
    assert job.updated_at == moment(clock)
    job = await store.jobs.progress(claimed, usage=Usage(input_tokens=3))
    assert (job.status_message, job.metadata, job.input_tokens) == ("half", {"kept": 1, "new": [2]}, 3)
    assert facts(job) == facts(await store.jobs.get(claimed.job_id))
    assert job.status is JobStatus.RUNNING


async def test_a_new_attempt_begins_without_the_message_of_the_old_one(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.progress(claimed, status_message="half")
    await store.jobs.release(claimed)
    assert (await claim(store, claimed.job)).job.status_message is None


# what an ended attempt may do: nothing


async def end_completed(store: JobStore, claimed: Claim, _clock: FakeClock) -> None:
    await store.jobs.complete(claimed, "done")


async def end_released(store: JobStore, claimed: Claim, _clock: FakeClock) -> None:
    await store.jobs.release(claimed)


async def end_superseded(store: JobStore, _claimed: Claim, clock: FakeClock) -> None:
    clock.advance(30)
    await store.jobs.claim("worker-2")


async def end_pruned(store: JobStore, claimed: Claim, clock: FakeClock) -> None:
    await store.jobs.fail(claimed, "no")
    clock.advance(1)
    await store.jobs.prune(older_than=0)


REPORTS = {
    "fail": lambda store, claimed: store.jobs.fail(claimed, "no", retry_in=1),
    "snooze": lambda store, claimed: store.jobs.snooze(claimed, 1),
    "release": lambda store, claimed: store.jobs.release(claimed),
    "progress": lambda store, claimed: store.jobs.progress(claimed, status_message="x", metadata={"a": 1}),
    "cancel_claimed": lambda store, claimed: store.jobs.cancel_claimed(claimed, "x"),
    "output": lambda store, claimed: streamed(store, claimed, "x"),
}


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("end", [end_completed, end_released, end_superseded, end_pruned])
async def test_an_ended_attempt_is_refused_and_changes_nothing(
    store: JobStore, clock: FakeClock, end: object, report: str
) -> None:
    claimed = await start(store)
    await end(store, claimed, clock)
    before, names = await everything(store), files(store)
    with pytest.raises(LeaseLost) as refusal:
        await REPORTS[report](store, claimed)
    assert (refusal.value.job_id, refusal.value.attempt) == (claimed.job_id, claimed.attempt)
    assert await everything(store) == before
    await eventually(lambda: files(store) == names)


# cancel


@pytest.mark.parametrize("delay", [None, 60])
async def test_a_waiting_job_is_canceled_at_once(store: JobStore, clock: FakeClock, delay: float | None) -> None:
    job = await enqueue(store, run_at=None if delay is None else moment(clock, delay))
    clock.advance(1)
    canceled = await store.jobs.cancel(job.id)
    assert (canceled.status, canceled.finished_at) == (JobStatus.CANCELED, moment(clock))
    assert facts(canceled) == facts(await store.jobs.get(job.id))
    clock.advance(60)
    assert await store.jobs.claim("worker-1") == []


async def test_a_running_job_is_asked_to_end_and_its_heartbeat_tells(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    asked = await store.jobs.cancel(claimed.job_id)
    assert (asked.status, asked.cancel_requested_at) == (JobStatus.RUNNING, moment(clock))
    clock.advance(1)
    assert (await store.jobs.cancel(claimed.job_id)).cancel_requested_at == asked.cancel_requested_at
    [beat] = await store.jobs.heartbeat([claimed])
    assert (beat.extended, beat.cancel_requested) == (True, True)


async def test_a_completion_wins_over_a_requested_cancel(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.cancel(claimed.job_id)
    done = await store.jobs.complete(claimed, "answer")
    assert (done.status, done.response) == (JobStatus.COMPLETED, "answer")
    assert done.cancel_requested_at is not None


@pytest.mark.parametrize("report", ["fail", "snooze", "release", "cancel_claimed"])
async def test_any_other_report_of_a_job_that_was_to_end_makes_it_canceled(
    store: JobStore, clock: FakeClock, report: str
) -> None:
    claimed = await start(store)
    await store.jobs.cancel(claimed.job_id)
    clock.advance(1)
    job = await REPORTS[report](store, claimed)
    assert (job.status, job.finished_at) == (JobStatus.CANCELED, moment(clock))
    assert facts(job) == facts(await store.jobs.get(claimed.job_id))
    assert await outcomes(store, claimed.job_id) == [AttemptOutcome.CANCELED]
    clock.advance(60)
    assert await store.jobs.claim("worker-1") == []


async def test_a_holder_may_cancel_its_own_job(store: JobStore) -> None:
    claimed = await start(store)
    job = await store.jobs.cancel_claimed(claimed, "nobody needs it")
    assert (job.status, job.status_message) == (JobStatus.CANCELED, "nobody needs it")


async def ended(store: JobStore, status: JobStatus) -> str:
    claimed = await start(store)
    if status is JobStatus.COMPLETED:
        await store.jobs.complete(claimed, "answer")
    elif status is JobStatus.FAILED:
        await store.jobs.fail(claimed, "no")
    else:
        await store.jobs.cancel_claimed(claimed, "enough")
    return claimed.job_id


TERMINAL = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED]


@pytest.mark.parametrize("status", TERMINAL)
async def test_a_job_that_has_ended_cannot_be_canceled(store: JobStore, status: JobStatus) -> None:
    job_id = await ended(store, status)
    before = await everything(store)
    with pytest.raises(InvalidTransition) as refusal:
        await store.jobs.cancel(job_id)
    assert (refusal.value.job_id, refusal.value.from_status, refusal.value.to_status) == (job_id, status, "canceled")
    assert await everything(store) == before


async def test_cancel_session_ends_what_has_not_ended(store: JobStore, clock: FakeClock) -> None:
    mine = await store.sessions.create(name="mine", project_directory="/a")
    other = await store.sessions.create(name="other", project_directory="/a")
    running = await start(store, session_id=mine.id)
    done = await start(store, session_id=mine.id)
    await store.jobs.complete(done, "x")
    idle = await enqueue(store, session_id=mine.id)
    later = await enqueue(store, session_id=mine.id, run_at=moment(clock, 60))
    foreign = await enqueue(store, session_id=other.id)
    assert await store.jobs.cancel_session(mine.id) == 3
    assert await store.jobs.cancel_session(mine.id) == 0
    statuses = {job_id: (await store.jobs.get(job_id)).status for job_id in (idle.id, later.id, foreign.id)}
    assert statuses == {idle.id: JobStatus.CANCELED, later.id: JobStatus.CANCELED, foreign.id: JobStatus.IDLE}
    assert (await store.jobs.heartbeat([running]))[0].cancel_requested
    with pytest.raises(SessionNotFound):
        await store.jobs.cancel_session("nobody")


async def test_a_session_of_thousands_is_canceled_whole(store: JobStore) -> None:
    session = await store.sessions.create(name="mine", project_directory="/a")
    await store.jobs.enqueue_many(
        NewJob(prompt="x", task_type="t", api_type="a", session_id=session.id) for _ in range(1100)
    )
    assert await store.jobs.cancel_session(session.id) == 1100
    assert await store.jobs.count(status=JobStatus.CANCELED) == 1100


# retry


@pytest.mark.parametrize("status", TERMINAL)
async def test_a_job_that_has_ended_can_be_tried_again_with_all_its_attempts(
    store: JobStore, clock: FakeClock, status: JobStatus
) -> None:
    job_id = await ended(store, status)
    await store.jobs.clear([job_id])
    clock.advance(5)
    job = await store.jobs.retry(job_id)
    assert (job.status, job.attempts_used, job.attempt) == (JobStatus.IDLE, 0, 1)
    assert (job.run_at, job.finished_at, job.cancel_requested_at) == (moment(clock), None, None)
    assert (job.error_type, job.error_message, job.status_message, job.cleared) == (None, None, None, False)
    assert facts(job) == facts(await store.jobs.get(job_id))
    claimed = await claim(store, job)
    assert (claimed.attempt, claimed.job.attempts_used) == (2, 1)
    assert (await store.jobs.complete(claimed, "again")).response == "again"


async def test_the_former_answer_stays_readable_until_there_is_a_new_one(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "a partial")
    again = await store.jobs.fail(claimed, "no", retry_in=0)
    await store.jobs.complete(await claim(store, again), "the answer")
    await store.jobs.retry(claimed.job_id)
    assert await store.jobs.read_response(claimed.job_id) == "the answer"
    running = await claim(store, again)
    assert await store.jobs.read_response(claimed.job_id) == "the answer"
    await streamed(store, running, "a better")
    assert await store.jobs.read_response(claimed.job_id) == "a better"
    await store.jobs.fail(running, "no")
    assert await store.jobs.read_response(claimed.job_id) == "a better"


async def test_the_former_large_answer_stays_readable_too(store: JobStore) -> None:
    claimed = await start(store)
    await store.jobs.complete(claimed, SPILLED)
    await store.jobs.retry(claimed.job_id)
    assert await store.jobs.read_response(claimed.job_id) == SPILLED
    assert "".join([part async for part in store.jobs.open_response(claimed.job_id)]) == SPILLED
    running = await claim(store, claimed.job)
    await store.jobs.complete(running, "small")
    assert await store.jobs.read_response(claimed.job_id) == "small"


async def test_only_a_job_that_has_ended_can_be_tried_again(store: JobStore, clock: FakeClock) -> None:
    running = (await start(store)).job_id
    idle = (await enqueue(store)).id
    later = (await enqueue(store, run_at=moment(clock, 60))).id
    before = await everything(store)
    for job_id, status in ((running, "running"), (idle, "idle"), (later, "scheduled")):
        with pytest.raises(InvalidTransition) as refusal:
            await store.jobs.retry(job_id)
        assert (refusal.value.from_status, refusal.value.to_status) == (status, "idle")
    assert await everything(store) == before


async def test_an_unknown_job_is_not_found_by_any_verb(store: JobStore) -> None:
    for verb in (
        store.jobs.get,
        store.jobs.cancel,
        store.jobs.retry,
        store.jobs.read_prompt,
        store.jobs.read_response,
        store.jobs.wait,
        lambda job_id: anext(store.jobs.tail(job_id)),
        lambda job_id: anext(store.jobs.open_response(job_id)),
    ):
        with pytest.raises(JobNotFound) as refusal:
            await verb("no such job")
        assert refusal.value.job_id == "no such job"
    assert await store.jobs.attempts("no such job") == []
