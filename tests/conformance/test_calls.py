"""The ledger of calls to models: noted before they are sent, settled once, and never left open by an ended attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobstore import (
    ApiCall,
    CallNotFound,
    CallStatus,
    Claim,
    ConstraintFailed,
    InvalidArgument,
    JobStatus,
    JobStore,
    LeaseLost,
    Settlement,
    UnknownPolicy,
    Usage,
    execute_many,
)
from jobstore.operations import pruning
from jobstore.operations.promotion import end_leases
from jobstore.operations.pruning import FIRST, Rule
from jobstore.testing import FakeClock
from tests.conformance.support import claim, enqueue, eventually, start

SUCCEEDED = Settlement(status=CallStatus.SUCCEEDED, http_status=200)
TOLD = Settlement(
    status=CallStatus.FAILED,
    model_answered="claude-opus-5-5-20261101",
    http_status=429,
    request_id="req_1",
    remote_id="msg_1",
    error_category="rate_limited",
    error_code="rate_limit_error",
    retry_after=2.5,
    finish_reason="stop",
    time_to_first_token=0.25,
    duration=1.5,
    usage=Usage(
        input_tokens=10,
        output_tokens=5,
        cache_read_tokens=4,
        cache_write_tokens=3,
        reasoning_tokens=2,
        cost=0.001,
    ),
    cost_is_estimated=True,
    price_version="2026-11-01",
    raw_usage={"input_tokens": 3, "nested": {"a": [1, None]}},
)

End = Callable[[JobStore, Claim], Awaitable[object]]
ENDS: dict[str, End] = {
    "complete": lambda store, held: store.jobs.complete(held, "Hello"),
    "fail": lambda store, held: store.jobs.fail(held, "no", retry_in=0),
    "snooze": lambda store, held: store.jobs.snooze(held, 1),
    "release": lambda store, held: store.jobs.release(held),
    "cancel": lambda store, held: store.jobs.cancel_claimed(held, "not wanted"),
    "pause": lambda store, held: store.jobs.fail(held, "no", retry_in=9, pause_lane=True),
    "end of leases": lambda store, _held: store.run(end_leases),
}


async def begin(store: JobStore, held: Claim, **fields: Any) -> ApiCall:  # noqa: ANN401 - what begin takes
    return await store.calls.begin(held, **{"provider": "anthropic", "model": "claude-opus-5-5", **fields})


async def calls_of(store: JobStore, held: Claim) -> list[tuple[int, str]]:
    return [(call.attempt, call.status.value) for call in await store.calls.list(held.job_id)]


async def lose(store: JobStore, clock: FakeClock) -> None:
    """Let all leases end, and someone notice."""
    clock.advance(31)
    await store.jobs.claim("another", task_types=["of no job"])


async def test_a_call_is_noted_before_it_is_sent_and_settled_after(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    call = await begin(store, held, idempotency_key="key")
    assert await store.calls.get(call.id) == call
    assert (call.job_id, call.attempt, call.status) == (held.job_id, 1, CallStatus.SENT)
    assert (call.provider, call.model_asked, call.idempotency_key) == ("anthropic", "claude-opus-5-5", "key")
    clock.advance(2)
    await store.calls.settle(call, TOLD)
    settled = await store.calls.get(call.id)
    assert settled.settled_at is not None
    assert (settled.settled_at - settled.sent_at).total_seconds() == 2
    told = {each.name: getattr(TOLD, each.name) for each in fields(TOLD) if each.name != "usage"}
    assert settled.model_dump(include=set(told)) == told
    assert settled.model_dump(include=set(Usage.model_fields)) == TOLD.usage.model_dump()


async def test_what_nobody_knows_is_none_and_never_0(store: JobStore) -> None:
    held = await start(store)
    call = await begin(store, held, model=None)
    await store.calls.settle(call, SUCCEEDED)
    settled = await store.calls.get(call.id)
    unknown = settled.model_dump(exclude={"id", "job_id", "attempt", "provider", "status", "on_unknown", "http_status"})
    assert {name for name, value in unknown.items() if value is not None} == {"sent_at", "settled_at"}


async def test_what_was_settled_stays(store: JobStore) -> None:
    held = await start(store)
    call = await begin(store, held)
    await store.calls.settle(call, TOLD)
    settled = await store.calls.get(call.id)
    await store.calls.settle(call, SUCCEEDED)
    assert await store.calls.get(call.id) == settled


async def test_each_attempt_has_calls_of_its_own(store: JobStore) -> None:
    held = await start(store)
    await store.calls.settle(await begin(store, held), TOLD)
    await store.jobs.fail(held, "too many requests", retry_in=0)
    again = await claim(store, held.job)
    first, second = await begin(store, again), await begin(store, again)
    assert [call.id for call in await store.calls.list(held.job_id)][1:] == [first.id, second.id]
    assert await calls_of(store, held) == [(1, "failed"), (2, "sent"), (2, "sent")]


@pytest.mark.parametrize("end", ENDS)
async def test_a_call_that_is_under_way_when_its_attempt_ends_is_unknown(store: JobStore, end: str) -> None:
    held = await start(store)
    settled, call = await begin(store, held), await begin(store, held)
    await store.calls.settle(settled, SUCCEEDED)
    await ENDS[end](store, held)
    assert await calls_of(store, held) == [(1, "succeeded"), (1, "unknown")]
    [attempt] = await store.jobs.attempts(held.job_id)
    assert (await store.calls.get(call.id)).settled_at == attempt.finished_at


async def test_a_call_of_a_process_that_died_is_unknown_once_the_job_is_rescued(
    store: JobStore, clock: FakeClock
) -> None:
    held = await start(store)
    await begin(store, held)
    clock.advance(29)
    await store.jobs.claim("another")
    assert await calls_of(store, held) == [(1, "sent")]
    clock.advance(2)
    [again] = await store.jobs.claim("another")
    assert (again.job_id, await calls_of(store, held)) == (held.job_id, [(1, "unknown")])


async def test_an_outcome_that_becomes_known_after_all_is_noted(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    call = await begin(store, held)
    await lose(store, clock)
    await store.calls.settle(call, SUCCEEDED)
    assert await calls_of(store, held) == [(1, "succeeded")]


async def test_no_call_is_noted_for_an_attempt_that_has_ended(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    await lose(store, clock)
    with pytest.raises(LeaseLost):
        await begin(store, held)
    assert await store.calls.list(held.job_id) == []


async def test_no_call_is_left_open_by_a_rescue_at_the_same_time(
    store: JobStore, database: Path | str, outputs: Path, clock: FakeClock
) -> None:
    async with JobStore(database, outputs=outputs, clock=clock) as other:
        for _ in range(20):
            held = await start(store, max_attempts=1)
            await asyncio.gather(begin(store, held), other.run(end_leases), return_exceptions=True)
        await other.run(end_leases)
    left = await store.execute("SELECT status FROM api_calls WHERE status <> 'unknown'")
    assert left == []


@pytest.mark.parametrize("end", list(ENDS)[:-1])
async def test_a_call_is_settled_with_the_end_of_its_attempt(store: JobStore, end: str) -> None:
    held = await start(store)
    call = await begin(store, held)
    store.calls.settle_with_end(held, call, TOLD)
    assert await calls_of(store, held) == [(1, "sent")]
    await ENDS[end](store, held)
    assert (await store.calls.get(call.id)).request_id == "req_1"
    assert await calls_of(store, held) == [(1, "failed")]


async def test_a_streamed_answer_and_its_call_are_recorded_together(store: JobStore) -> None:
    for size in (10, 100_000):
        held = await start(store)
        call = await begin(store, held)
        async with store.jobs.output(held) as output:
            await output.write("x" * size)
        store.calls.settle_with_end(held, call, SUCCEEDED)
        job = await store.jobs.complete(held)
        assert (job.output_bytes, await calls_of(store, held)) == (size, [(1, "succeeded")])


async def test_an_attempt_does_not_end_whose_calls_cannot_be_settled(store: JobStore) -> None:
    held = await start(store)
    call = await begin(store, held)
    store.calls.settle_with_end(held, call, Settlement(status=CallStatus.SENT))  # which the schema refuses
    with pytest.raises(ConstraintFailed):
        await store.jobs.complete(held, "Hello")
    assert (await store.jobs.get(held.job_id)).status is JobStatus.RUNNING
    assert await calls_of(store, held) == [(1, "sent")]


async def test_a_call_is_settled_even_if_the_lease_was_lost(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    call = await begin(store, held)
    store.calls.settle_with_end(held, call, TOLD)
    clock.advance(31)
    await store.jobs.claim("another")
    with pytest.raises(LeaseLost):
        await store.jobs.complete(held, "Hello")
    await eventually(lambda: _is(store, held, [(1, "failed")]))


async def test_a_call_is_settled_when_nobody_ends_the_attempt(store: JobStore) -> None:
    held = await start(store)
    with store.jobs.lease_kept(held):
        store.calls.settle_with_end(held, await begin(store, held), TOLD)
    await eventually(lambda: _is(store, held, [(1, "failed")]))


async def test_the_next_call_of_an_attempt_settles_the_one_before(store: JobStore) -> None:
    held = await start(store)
    store.calls.settle_with_end(held, await begin(store, held), TOLD)
    await begin(store, held)
    assert await calls_of(store, held) == [(1, "failed"), (1, "sent")]


async def test_a_call_whose_caller_was_cancelled_was_never_sent(store: JobStore) -> None:
    held = await start(store)
    for _ in range(20):
        beginning = asyncio.ensure_future(begin(store, held))
        await asyncio.sleep(0)
        beginning.cancel()
        await asyncio.wait([beginning])
        if not beginning.cancelled():
            await store.calls.settle(beginning.result(), SUCCEEDED)
    await eventually(lambda: _none_is_open(store, held))


async def test_a_job_can_be_held_for_a_person_when_its_call_is_unknown(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    await begin(store, held, on_unknown="hold")
    await lose(store, clock)
    job = await store.jobs.get(held.job_id)
    assert (job.status, job.error_type) == (JobStatus.FAILED, "call_unknown")
    told = await store.jobs.explain(job.id)
    assert (told.reason, "nobody knows whether" in told.text) == ("held", True)
    assert await store.jobs.claim("another") == []
    await store.jobs.retry(job.id)
    [again] = await store.jobs.claim("another")
    assert (again.job_id, again.attempt) == (job.id, 2)


async def test_the_late_answer_of_a_held_job_counts(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    call = await begin(store, held, on_unknown="hold")
    await lose(store, clock)
    store.calls.settle_with_end(held, call, SUCCEEDED)
    job = await store.jobs.complete(held, "Hello")
    assert (job.status, job.error_type, await calls_of(store, held)) == ("completed", None, [(1, "succeeded")])


@pytest.mark.parametrize("policy", ["retry", "idempotency_key"])
async def test_otherwise_the_job_is_tried_again(store: JobStore, clock: FakeClock, policy: UnknownPolicy) -> None:
    held = await start(store)
    await begin(store, held, on_unknown=policy)
    settled = await begin(store, held, on_unknown="hold")
    await store.calls.settle(settled, SUCCEEDED)  # so this one is no reason to hold
    await lose(store, clock)
    assert (await store.jobs.get(held.job_id)).status is JobStatus.IDLE


async def test_a_held_job_that_was_to_be_canceled_is_canceled(store: JobStore, clock: FakeClock) -> None:
    held = await start(store)
    await begin(store, held, on_unknown="hold")
    await store.jobs.cancel(held.job_id)
    await lose(store, clock)
    assert (await store.jobs.get(held.job_id)).status is JobStatus.CANCELED


async def test_a_held_job_whose_attempts_are_used_up_says_why_it_is_held(store: JobStore, clock: FakeClock) -> None:
    held = await start(store, max_attempts=1)
    await begin(store, held, on_unknown="hold")
    await lose(store, clock)
    assert (await store.jobs.get(held.job_id)).error_type == "call_unknown"


async def test_a_key_is_used_again_only_while_nobody_knows_what_became_of_its_call(
    store: JobStore, clock: FakeClock
) -> None:
    held = await start(store)
    assert await store.calls.key_to_reuse(held.job_id) is None
    call = await begin(store, held, idempotency_key="first")
    assert await store.calls.key_to_reuse(held.job_id) is None
    await lose(store, clock)
    assert await store.calls.key_to_reuse(held.job_id) == "first"
    await store.calls.settle(call, TOLD)
    assert await store.calls.key_to_reuse(held.job_id) is None


async def test_calls_go_with_their_job(store: JobStore) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    pruned, of_session = await start(store), await start(store, session_id=session.id)
    for held in (pruned, of_session):
        await begin(store, held)
        await store.jobs.complete(held, "Hello")
    await store.sessions.delete(session.id)
    assert [call.job_id for held in (pruned, of_session) for call in await store.calls.list(held.job_id)] == [
        pruned.job_id
    ]
    await store.jobs.prune(older_than=0)
    assert await store.execute("SELECT 1 AS found FROM api_calls") == []


async def test_jobs_with_many_calls_are_pruned_in_several_rounds(store: JobStore) -> None:
    columns = "id, job_id, attempt, provider, status, sent_at"
    sql = f"INSERT INTO api_calls ({columns}) VALUES (:id, :job_id, 1, 'anthropic', 'sent', 1)"
    for number in range(3):
        held = await start(store)
        rows = [{"id": f"{number} {call}", "job_id": held.job_id} for call in range(600)]
        await store.run(lambda _now, rows=rows: execute_many(sql, rows))
        await store.jobs.complete(held)
    last = await store.run(pruning.newest, Rule())
    assert last is not None
    assert len(await store.run(pruning.doomed, Rule(), FIRST, last)) == 1
    assert await store.jobs.prune(older_than=0) == 3
    assert await store.execute("SELECT 1 AS found FROM api_calls") == []


async def test_what_a_server_says_cannot_keep_a_call_from_being_settled(store: JobStore) -> None:
    held = await start(store)
    call = await begin(store, held)
    hostile = Settlement(
        status=CallStatus.SUCCEEDED,
        request_id="nul \0 and \ud800",
        model_answered="🌍",
        retry_after=float("nan"),
        duration=-1.0,
        usage=Usage(input_tokens=2**80, output_tokens=2**63 - 1),
        raw_usage={"text": "nul \0 and \ud800", "not a number": float("inf")},
    )
    await store.calls.settle(call, hostile)
    settled = await store.calls.get(call.id)
    assert (settled.status, settled.request_id) == (CallStatus.SUCCEEDED, "nul \\x00 and \\ud800")
    assert (settled.model_answered, settled.output_tokens) == ("🌍", 2**63 - 1)
    assert (settled.retry_after, settled.duration, settled.input_tokens, settled.raw_usage) == (None, None, None, None)


async def test_the_counts_of_a_provider_are_kept_as_it_said_them(store: JobStore) -> None:
    held = await start(store)
    call = await begin(store, held)
    raw = {"text": "nul \0 and \ud800", "count": 3}
    await store.calls.settle(call, Settlement(status=CallStatus.SUCCEEDED, raw_usage=raw))
    assert (await store.calls.get(call.id)).raw_usage == raw


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"provider": ""}, "provider"),
        ({"model": "nul \0"}, "model"),
        ({"idempotency_key": "\ud800"}, "idempotency_key"),
        ({"on_unknown": "guess"}, "on_unknown"),
    ],
)
async def test_arguments_are_checked(store: JobStore, wrong: dict[str, Any], field: str) -> None:
    held = await start(store)
    with pytest.raises(InvalidArgument) as refusal:
        await begin(store, held, **wrong)
    assert refusal.value.field == field
    assert await store.calls.list(held.job_id) == []


async def test_what_is_no_call_cannot_be_settled(store: JobStore) -> None:
    held = await start(store)
    call = await begin(store, held)
    for field, wrong in (("call", (call.id, SUCCEEDED)), ("settlement", (call, "succeeded"))):
        for settle in (store.calls.settle, partial(_settle_with_end, store, held)):
            with pytest.raises(InvalidArgument) as refusal:
                await settle(*wrong)  # type: ignore[operator]
            assert refusal.value.field == field


async def test_unknown_calls_and_jobs(store: JobStore) -> None:
    job = await enqueue(store)
    assert await store.calls.list(job.id) == await store.calls.list("no such job") == []
    with pytest.raises(CallNotFound) as failure:
        await store.calls.get("no such call")
    assert failure.value.call_id == "no such call"


async def _settle_with_end(store: JobStore, held: Claim, call: ApiCall, settlement: Settlement) -> None:
    store.calls.settle_with_end(held, call, settlement)


async def _is(store: JobStore, held: Claim, expected: list[tuple[int, str]]) -> bool:
    return await calls_of(store, held) == expected


async def _none_is_open(store: JobStore, held: Claim) -> bool:
    return all(status != "sent" for _, status in await calls_of(store, held))
