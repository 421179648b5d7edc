"""When a job is tried again: the policies, how they are chosen, and what is kept of where a handler failed."""

from __future__ import annotations

from typing import Any

import pytest

from jobstore import InvalidArgument, Job, JobStatus, JobStore
from jobstore.testing import FakeClock
from jobstore.workers import JobContext, Retry, Worker, constant, exponential, linear, never
from jobstore.workers.retries import policy_of
from jobstore.workers.tracebacks import MAX_ERRORS, MAX_FRAMES, describe


class Overloaded(ConnectionError):
    pass


async def run_once(store: JobStore, worker: Worker, **fields: Any) -> Job:  # noqa: ANN401
    job = await store.jobs.enqueue("a secret", task_type="task", api_type="api", **fields)
    await worker.run(drain=True)
    return await store.jobs.get(job.id)


def failing(worker: Worker, error: BaseException, **terms: Any) -> None:  # noqa: ANN401
    @worker.handles("task", **terms)
    async def handle(_job: JobContext) -> str:
        raise error


def waits(job: Job, clock: FakeClock) -> float:
    return (job.run_at.timestamp() * 1000 - clock.now) / 1000


def test_exponential_waits_grow_are_capped_and_are_spread() -> None:
    policy = exponential(base=2, cap=100)
    for attempt, ceiling in ((1, 4), (2, 8), (3, 16), (10, 100), (10_000, 100)):
        drawn = [policy(attempt, ValueError()) or 0.0 for _ in range(200)]
        assert 0 <= min(drawn) < ceiling / 4
        assert ceiling * 3 / 4 < max(drawn) <= ceiling


def test_linear_and_constant_waits_are_what_they_say() -> None:
    assert [linear(10, cap=25)(attempt, ValueError()) for attempt in (1, 2, 3)] == [10.0, 20.0, 25.0]
    assert [constant(5)(attempt, ValueError()) for attempt in (1, 9)] == [5.0, 5.0]
    assert never(1, ValueError()) is None


async def test_a_handler_s_policy_goes_before_the_worker_s(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store, retry=constant(10))
    failing(worker, ValueError("a secret"), retry=constant(20))
    assert waits(await run_once(store, worker), clock) == 20
    other = Worker(store, retry=constant(10))
    failing(other, ValueError("a secret"))
    assert waits(await run_once(store, other), clock) == 10


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (Overloaded(), 1.0),
        (ConnectionError(), 2.0),
        (ConnectionResetError(), 2.0),
        (TypeError(), 3.0),
        (OSError(), 7.0),
    ],
)
def test_the_policy_of_the_closest_type_counts(error: Exception, wait: float) -> None:
    chosen = {ConnectionError: constant(2), Overloaded: constant(1), TypeError: constant(3)}
    assert policy_of(chosen, constant(7))(1, error) == wait


async def test_an_error_that_is_never_retried_fails_its_job_at_once(store: JobStore) -> None:
    worker = Worker(store)
    failing(worker, ValueError("a secret"), retry={ValueError: never})
    job = await run_once(store, worker)
    assert (job.status, job.attempts_used, job.error_type) == (JobStatus.FAILED, 1, "ValueError")


async def test_a_function_of_one_s_own_is_a_policy(store: JobStore, clock: FakeClock) -> None:
    asked: list[tuple[int, str]] = []

    def policy(attempt: int, error: BaseException) -> float | None:
        asked.append((attempt, type(error).__name__))
        return 60.0 if attempt < 2 else None

    worker = Worker(store)
    failing(worker, Overloaded(), retry=policy)
    job = await run_once(store, worker)
    clock.advance(60)
    await worker.run(drain=True)
    assert (await store.jobs.get(job.id)).status is JobStatus.FAILED
    assert asked == [(1, "Overloaded"), (2, "Overloaded")]


async def test_a_retry_that_names_no_time_asks_the_policy(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store)
    failing(worker, Retry(reason="busy"), retry=constant(33))
    assert waits(await run_once(store, worker), clock) == 33


@pytest.mark.parametrize(
    "broken", [lambda *_: 1 / 0, lambda *_: -1.0, lambda *_: float("nan"), lambda *_: float("inf")]
)
async def test_a_policy_that_fails_loses_no_job(
    store: JobStore,
    clock: FakeClock,
    broken: Any,  # noqa: ANN401
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(store)
    failing(worker, ValueError("a secret"), retry=broken)
    job = await run_once(store, worker)
    assert job.status is JobStatus.SCHEDULED or job.attempt > 1
    assert 0 <= waits(job, clock) <= 300
    assert "retry policy of task failed" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("wrong", [5, "exponential", {"ValueError": constant(1)}, {ValueError: 5}])
def test_what_is_no_policy_is_refused(store: JobStore, wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidArgument, match="retry: must be a policy"):
        Worker(store).handles("task", retry=wrong)
    with pytest.raises(InvalidArgument, match="retry: must be a policy"):
        Worker(store, retry=wrong)


# tracebacks


def look_up(key: str) -> str:
    return {}[key]  # type: ignore[no-any-return]


def parse(text: str) -> None:
    try:
        look_up(text)
    except KeyError as error:
        raise ValueError(f"cannot parse {text}") from error


async def test_where_a_handler_failed_is_kept_without_what_was_said(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> None:
        parse(job.prompt)

    job = await run_once(store, worker, max_attempts=1)
    [attempt] = await store.jobs.attempts(job.id)
    assert attempt.error_traceback is not None
    lines = [line.rpartition(" in ")[2] for line in attempt.error_traceback.splitlines()]
    assert lines == ["ValueError", "handle", "parse", "which came of KeyError", "parse", "look_up"]
    assert __file__ in attempt.error_traceback
    assert "secret" not in attempt.error_traceback


def test_groups_and_long_chains_are_told_and_bounded() -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise RuntimeError

    told = describe(ExceptionGroup("secret", [ValueError("secret"), TypeError("secret")]))
    assert [line for line in told.splitlines() if not line.startswith("  ")] == [
        "ExceptionGroup",
        "which groups ValueError",
        "which groups TypeError",
    ]
    with pytest.raises(RuntimeError) as raised:
        deep(200)
    assert len(describe(raised.value).splitlines()) == MAX_FRAMES + 2
    many = describe(ExceptionGroup("secret", [ValueError() for _ in range(100)]))
    assert len(many.splitlines()) == MAX_ERRORS + 1
    assert "secret" not in told + many


def test_an_error_that_came_of_itself_is_told_once() -> None:
    error = ValueError()
    error.__cause__ = KeyError()
    error.__cause__.__cause__ = error
    assert describe(error).splitlines() == ["ValueError", "which came of KeyError"]


async def test_a_retry_can_pause_its_lane_for_everyone(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store)
    failing(worker, Retry(after=30, reason="too many requests", pause_lane=True))
    await run_once(store, worker)
    other = await store.jobs.enqueue("p", task_type="task", api_type="api")
    elsewhere = await store.jobs.enqueue("p", task_type="task", api_type="another api")
    assert [claim.job_id for claim in await store.jobs.claim("anyone", limit=10)] == [elsewhere.id]
    clock.advance(31)
    assert other.id in {claim.job_id for claim in await store.jobs.claim("anyone", limit=10)}


def test_no_source_is_read_to_tell_where_it_failed() -> None:
    """It is told in the event loop, and reading thousands of lines would block it."""
    read: list[str] = []

    class Loader:
        def get_source(self, name: str) -> str:
            read.append(name)
            return "raise ValueError"

    with pytest.raises(ValueError) as raised:
        exec(compile("raise ValueError", "made.py", "exec"), {"__name__": "made", "__loader__": Loader()})  # noqa: S102
    assert describe(raised.value).splitlines()[-1] == "  made.py:1 in <module>"
    assert read == []
