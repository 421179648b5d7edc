"""Lists, counts and statistics; hiding jobs from lists; deleting old ones."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobstore import InvalidArgument, Job, JobNotFound, JobStatus, JobStore, NewJob, Page
from jobstore.testing import FakeClock

from .support import SPILLED, claim, enqueue, eventually, files, start, streamed

START = datetime(2025, 1, 1, tzinfo=UTC)


async def pages(store: JobStore, **arguments: Any) -> list[Page[Job]]:  # noqa: ANN401 - what list takes
    found = [await store.jobs.list(**arguments)]
    while found[-1].next_cursor is not None:
        found.append(await store.jobs.list(**arguments, cursor=found[-1].next_cursor))
    return found


async def listed(store: JobStore, **arguments: Any) -> list[str]:  # noqa: ANN401
    return [job.id for page in await pages(store, **arguments) for job in page.items]


# lists


async def test_an_empty_store_lists_nothing(store: JobStore) -> None:
    assert await store.jobs.list() == Page[Job](items=[], next_cursor=None)
    assert await store.jobs.count() == 0


async def test_the_newest_job_comes_first(store: JobStore, clock: FakeClock) -> None:
    ids = []
    for number in range(10):
        ids.append((await enqueue(store, task_type=f"type {number % 3}", priority=number)).id)
        clock.advance(0.001 * (number % 2))
    assert await listed(store) == ids[::-1]


async def test_lists_carry_everything_but_the_large_texts(store: JobStore) -> None:
    claimed = await start(store, "a prompt", metadata={"a": 1})
    done = await store.jobs.complete(claimed, "an answer")
    [job] = (await store.jobs.list()).items
    assert (job.prompt, job.response) == (None, None)
    assert job == done.model_copy(update={"prompt": None, "response": None})


async def test_the_active_order_is_running_then_waiting_then_finished_each_newest_first(
    store: JobStore, clock: FakeClock
) -> None:
    done, running, failed, running_too = [await start(store) for _ in range(4)]
    await store.jobs.complete(done, "x")
    await store.jobs.fail(failed, "x")
    idle = await enqueue(store)
    later = await enqueue(store, run_at=datetime.fromtimestamp(clock() / 1000 + 60, UTC))
    canceled = await enqueue(store)
    await store.jobs.cancel(canceled.id)
    expected = [running_too.job_id, running.job_id, later.id, idle.id, canceled.id, failed.job_id, done.job_id]
    for limit in (1, 2, 3, 50):
        assert await listed(store, order="active", limit=limit) == expected


async def test_a_page_has_as_many_as_asked_for_and_the_last_has_no_cursor(store: JobStore) -> None:
    for _ in range(6):
        await enqueue(store)
    sizes = [len(page.items) for page in await pages(store, limit=4)]
    assert sizes == [4, 2]
    assert [len(page.items) for page in await pages(store, limit=3)] == [3, 3]
    assert [len(page.items) for page in await pages(store, limit=6)] == [6]


async def test_pages_have_each_job_once_while_others_are_enqueued(store: JobStore, clock: FakeClock) -> None:
    before = []
    for number in range(30):
        before.append((await enqueue(store, task_type=f"type {number % 4}")).id)
        clock.advance(0.001 * (number % 3 == 0))
    seen: list[str] = []
    cursor = None
    while True:
        page, *_ = await asyncio.gather(store.jobs.list(limit=4, cursor=cursor), enqueue(store), enqueue(store))
        seen += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert [job_id for job_id in seen if job_id in before] == before[::-1]


@pytest.mark.parametrize(
    "cursor", ["", "x", "bm9uZQ==", "WzFd", "W251bGwsMSwieCJd", "WzAsMWU5OTksIngiXQ==", 5, b"\xff"]
)
async def test_a_cursor_that_is_none_is_refused(store: JobStore, cursor: object) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await store.jobs.list(cursor=cursor)
    assert refusal.value.field == "cursor"


async def test_one_or_several_statuses_can_be_asked_for(store: JobStore) -> None:
    idle, running = await enqueue(store), None
    running = (await store.jobs.claim("worker-1"))[0]
    idle = await enqueue(store)
    assert await listed(store, status="idle") == [idle.id]
    assert await listed(store, status=JobStatus.RUNNING) == [running.job_id]
    assert await listed(store, status=["idle", JobStatus.RUNNING, "idle"]) == [idle.id, running.job_id]
    assert await listed(store, status=[]) == []
    assert await store.jobs.count(status=[]) == 0


class Spec(NamedTuple):
    """What a list can be filtered by."""

    task_type: str
    api_type: str
    session: int | None
    status: JobStatus
    cleared: bool
    minute: int


specs = st.builds(
    Spec,
    task_type=st.sampled_from(["plan", "title"]),
    api_type=st.sampled_from(["claude", "gemini"]),
    session=st.sampled_from([None, 0, 1]),
    status=st.sampled_from(JobStatus),
    cleared=st.booleans(),
    minute=st.integers(0, 3),
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "task_type": st.sampled_from(["plan", "title", "unheard of"]),
        "api_type": st.sampled_from(["claude", "gemini"]),
        "session": st.integers(0, 1),
        "status": st.lists(st.sampled_from(JobStatus), unique=True),
        "cleared": st.sampled_from([None, True, False]),
        "before": st.integers(0, 4),
        "after": st.integers(0, 4),
    },
)
RANKS = {JobStatus.RUNNING: 0, JobStatus.IDLE: 1, JobStatus.SCHEDULED: 1}


def matches(spec: Spec, wanted: dict[str, Any], *, cleared: bool | None) -> bool:
    return (
        all(getattr(spec, name) == wanted[name] for name in ("task_type", "api_type", "session") if name in wanted)
        and spec.status in wanted.get("status", JobStatus)
        and cleared in {None, spec.cleared}
        and spec.minute < wanted.get("before", 9)
        and spec.minute >= wanted.get("after", 0)
    )


async def insert(store: JobStore, sessions: list[str], spec: Spec) -> str:
    job = await enqueue(
        store,
        task_type=spec.task_type,
        api_type=spec.api_type,
        session_id=None if spec.session is None else sessions[spec.session],
    )
    await store.execute(
        """
        UPDATE background_jobs SET status = :status, attempt = 1, started_at = 0, finished_at = :finished_at,
            cleared = :cleared, created_at = :created_at WHERE id = :id
        """,
        {
            "status": spec.status.value,
            "finished_at": 0 if spec.status.is_terminal else None,
            "cleared": int(spec.cleared),
            "created_at": round((START + timedelta(minutes=spec.minute)).timestamp() * 1000),
            "id": job.id,
        },
    )
    return job.id


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    specs=st.lists(specs, max_size=14),
    wanted=filters,
    order=st.sampled_from(["newest", "active"]),
    limit=st.integers(1, 5),
)
async def test_filters_orders_and_pages_agree_with_a_plain_list(
    store: JobStore, specs: list[Spec], wanted: dict[str, Any], order: str, limit: int
) -> None:
    await store.execute("DELETE FROM background_jobs")
    sessions = [(await store.sessions.create(name="s", project_directory="/a")).id for _ in range(2)]
    jobs = [(await insert(store, sessions, spec), spec) for spec in specs]
    arguments: dict[str, Any] = {name: wanted[name] for name in wanted if name in {"task_type", "api_type", "status"}}
    if "session" in wanted:
        arguments["session_id"] = sessions[wanted["session"]]
    if "before" in wanted:
        arguments["created_before"] = START + timedelta(minutes=wanted["before"])
    if "after" in wanted:
        arguments["created_after"] = START + timedelta(minutes=wanted["after"])
    cleared = {"cleared": wanted["cleared"]} if "cleared" in wanted else {}

    shown = [(job_id, spec) for job_id, spec in jobs if matches(spec, wanted, cleared=wanted.get("cleared", False))]
    shown.sort(key=lambda job: (job[1].minute, job[0]), reverse=True)
    if order == "active":
        shown.sort(key=lambda job: RANKS.get(job[1].status, 2))
    assert await listed(store, **arguments, **cleared, order=order, limit=limit) == [job_id for job_id, _ in shown]

    counted = [spec for _, spec in jobs if matches(spec, wanted, cleared=wanted.get("cleared"))]
    assert await store.jobs.count(**arguments, **cleared) == len(counted)


async def test_created_before_excludes_its_moment_and_created_after_includes_it(
    store: JobStore, clock: FakeClock
) -> None:
    first = await enqueue(store)
    clock.advance(1)
    second = await enqueue(store)
    assert await listed(store, created_before=second.created_at) == [first.id]
    assert await listed(store, created_after=second.created_at) == [second.id]
    assert await store.jobs.count(created_before=second.created_at) == 1


# statistics


async def test_statistics_count_every_status_in_all_and_those_of_each_lane(store: JobStore) -> None:
    assert (await store.jobs.stats()).counts == dict.fromkeys(JobStatus, 0)
    await store.jobs.complete(await start(store, task_type="plan"), "x")
    await enqueue(store, task_type="plan")
    hidden = await enqueue(store, task_type="title", api_type="gemini")
    await store.jobs.clear([hidden.id])
    stats = await store.jobs.stats()
    assert stats.counts == {**dict.fromkeys(JobStatus, 0), JobStatus.COMPLETED: 1, JobStatus.IDLE: 2}
    lanes = {(lane.task_type, lane.api_type): lane.counts for lane in stats.lanes}
    assert lanes == {
        ("plan", "claude"): {JobStatus.COMPLETED: 1, JobStatus.IDLE: 1},
        ("title", "gemini"): {JobStatus.IDLE: 1},
    }


async def test_statistics_name_the_lanes_in_order(store: JobStore) -> None:
    for task_type, api_type in [("b", "x"), ("a b", "x"), ("B", "x"), ("a", "z"), ("a", "y")]:
        await enqueue(store, task_type=task_type, api_type=api_type)
    lanes = [(lane.task_type, lane.api_type) for lane in (await store.jobs.stats()).lanes]
    assert lanes == [("B", "x"), ("a", "y"), ("a", "z"), ("a b", "x"), ("b", "x")]


# hiding


async def test_cleared_jobs_are_hidden_from_lists_but_counted(store: JobStore) -> None:
    hidden, shown = await enqueue(store), await enqueue(store)
    assert await store.jobs.clear([hidden.id, "no such job", hidden.id]) == 1
    assert await store.jobs.clear(hidden.id) == 0
    assert await listed(store) == [shown.id]
    assert await listed(store, cleared=True) == [hidden.id]
    assert await listed(store, cleared=None) == [shown.id, hidden.id]
    assert [await store.jobs.count(cleared=cleared) for cleared in (None, True, False)] == [2, 1, 1]
    assert (await store.jobs.get(hidden.id)).cleared


async def test_clearing_nothing_hides_nothing(store: JobStore) -> None:
    await enqueue(store)
    assert await store.jobs.clear([]) == 0
    assert await store.jobs.count(cleared=True) == 0


async def test_clear_by_age_hides_what_ended_long_enough_ago(store: JobStore, clock: FakeClock) -> None:
    old, young, running = [await start(store) for _ in range(3)]
    await store.jobs.complete(old, "x")
    clock.advance(10)
    await store.jobs.fail(young, "x")
    assert await store.jobs.clear(older_than=10) == 1
    assert await listed(store) == [running.job_id, young.job_id]
    assert await store.jobs.clear(older_than=0) == 1
    assert await store.jobs.clear(older_than=0) == 0
    assert await listed(store) == [running.job_id]


async def test_clear_wants_either_jobs_or_an_age(store: JobStore) -> None:
    for arguments in ({}, {"job_ids": [], "older_than": 0}):
        with pytest.raises(InvalidArgument):
            await store.jobs.clear(**arguments)


async def test_thousands_are_cleared_and_pruned(store: JobStore, clock: FakeClock) -> None:
    jobs = await store.jobs.enqueue_many(NewJob(prompt="x", task_type="t", api_type="a") for _ in range(2100))
    session = await store.sessions.create(name="s", project_directory="/a")
    await store.execute("UPDATE background_jobs SET session_id = :id", {"id": session.id})
    await store.jobs.cancel_session(session.id)
    clock.advance(1)
    assert await store.jobs.clear(job.id for job in jobs[:1050]) == 1050
    assert await store.jobs.clear(older_than=1) == 1050
    assert await store.jobs.prune(older_than=1) == 2100
    assert await store.jobs.count() == 0


# pruning


async def test_prune_deletes_what_ended_long_enough_ago_and_nothing_else(store: JobStore, clock: FakeClock) -> None:
    old, canceled, young, running = [await start(store) for _ in range(4)]
    idle = await enqueue(store)
    await store.jobs.complete(old, "x")
    await store.jobs.cancel_claimed(canceled, "x")
    clock.advance(10)
    await store.jobs.fail(young, "x")
    assert await store.jobs.prune(older_than=10) == 2
    assert await listed(store) == [idle.id, running.job_id, young.job_id]
    with pytest.raises(JobNotFound):
        await store.jobs.get(old.job_id)
    assert await store.jobs.attempts(old.job_id) == []
    assert await store.jobs.prune(older_than=0) == 1


async def test_prune_takes_the_files_of_prompts_answers_and_partials_with_it(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, SPILLED)
    await streamed(store, claimed, "a partial")
    again = await store.jobs.fail(claimed, "no", retry_in=0)
    await store.jobs.complete(await claim(store, again), SPILLED)
    kept = await start(store, SPILLED)
    assert len(files(store)) == 4
    clock.advance(1)
    assert await store.jobs.prune(older_than=0) == 1
    await eventually(lambda: files(store) == {kept.job.prompt_file_path})
    assert await store.jobs.read_prompt(kept.job_id) == SPILLED


async def test_a_retried_job_is_not_pruned(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    await store.jobs.complete(claimed, "x")
    await store.jobs.retry(claimed.job_id)
    clock.advance(100)
    assert await store.jobs.prune(older_than=0) == 0
