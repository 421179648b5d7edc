"""What goes wrong around handlers: blocked loops, hooks that hang, handlers that exit, stores that are closed."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from jobstore import Claim, InvalidArgument, Job, JobStatus, JobStore, LeaseLost, StatementFailed, StoreClosed
from jobstore.testing import FakeClock
from jobstore.workers import AttemptEvent, Fail, JobContext, Outcome, SyncJobContext, Worker, constant, hooks, never
from tests.conformance.support import eventually

LEASE = 0.2


async def enqueue(store: JobStore, count: int = 1, **fields: Any) -> list[Job]:  # noqa: ANN401 - what enqueue takes
    return [await store.jobs.enqueue("p", task_type="task", api_type="api", **fields) for _ in range(count)]


async def standing(store: JobStore, job: Job) -> tuple[JobStatus, int]:
    found = await store.jobs.get(job.id)
    return found.status, found.attempts_used


# Leases


class Rival(threading.Thread):
    """Another store in another thread, which claims whenever it is told to."""

    def __init__(self, database: Path | str, clock: FakeClock) -> None:
        super().__init__()
        self._database = database
        self._clock = clock
        self._turn, self._done = threading.Event(), threading.Event()
        self._over = False
        self.claimed: list[Claim] = []

    def run(self) -> None:
        asyncio.run(self._claim_when_told())

    async def _claim_when_told(self) -> None:
        async with JobStore(self._database, clock=self._clock) as store:
            self._done.set()
            while await asyncio.to_thread(self._turn.wait) and not self._over:
                self._turn.clear()
                self.claimed += await store.jobs.claim("rival", limit=10)
                self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def claim(self) -> None:
        self._done.clear()
        self._turn.set()

    def end(self) -> None:
        self._over = True
        self._turn.set()
        self.join()


async def test_while_a_handler_blocks_the_event_loop_for_three_leases_nobody_loses_any(
    store: JobStore,
    database: Path | str,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither its own, nor those of jobs that were claimed with it and have not even begun."""
    monkeypatch.setattr("jobstore.leases.BLOCKED_SECONDS", 0.0)
    worker = Worker(store, lease=LEASE)
    leases = store._open.backend.leases  # type: ignore[union-attr]
    rival = Rival(database, clock)
    rival.start()
    await eventually(lambda: rival.is_done)
    runs = 0

    @worker.handles("task")
    async def handle(_: JobContext) -> str:
        nonlocal runs
        runs += 1
        for _ in range(5 if runs == 1 else 0):
            clock.advance(LEASE * 0.7)
            rival.claim()
            last = leases.beats + 2  # the second of them began after the clock had gone on
            while leases.beats < last or not rival.is_done:
                """The loop stands still."""
        return "done"

    jobs = await enqueue(store, 3)
    await worker.run(drain=True)
    rival.end()
    assert rival.claimed == []
    assert runs == 3
    assert "the event loop is blocked" in caplog.text
    for job in jobs:
        assert await standing(store, job) == (JobStatus.COMPLETED, 1)


async def test_a_handler_that_was_given_up_does_not_hold_its_lease_for_ever(
    store: JobStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(store, lease=LEASE, concurrency=1, cancel_grace=0.0)
    leases = store._open.backend.leases  # type: ignore[union-attr]
    may_end = asyncio.Event()

    @worker.handles("task", timeout=0.001)
    async def deaf(_job: JobContext) -> str:
        with anyio.CancelScope(shield=True):
            await may_end.wait()
        return "too late"

    async def refuse(*_: object, **__: object) -> Job:
        worker.stop()
        raise StatementFailed("the outcome cannot be recorded")

    monkeypatch.setattr(store.jobs, "fail", refuse)
    await enqueue(store)
    await worker.run()
    assert "its lease will end" in caplog.text
    await store.jobs.enqueue("p", task_type="kept", api_type="api")
    [kept] = await store.jobs.claim("w")
    with store.jobs.lease_kept(kept, lease=LEASE):  # so that the thread beats
        clock.advance(LEASE)
        last = leases.beats + 3
        await eventually(lambda: leases.beats >= last)
        [claim] = await store.jobs.claim("another")
    assert claim.attempt == 2
    may_end.set()


# Handlers


async def test_a_handler_that_exits_has_failed_and_its_worker_goes_on(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("async")
    async def leave(_job: JobContext) -> None:
        raise SystemExit(0)

    @worker.handles("sync")
    def leave_in_thread(_job: SyncJobContext) -> None:
        raise SystemExit(0)

    worker.handles("task")(lambda job: job.prompt)
    exits = [await store.jobs.enqueue("p", task_type=kind, api_type="a", max_attempts=1) for kind in ("async", "sync")]
    [good] = await enqueue(store)
    await worker.run(drain=True)
    for job in exits:
        found = await store.jobs.get(job.id)
        assert (found.status, found.error_type, found.attempts_used) == (JobStatus.FAILED, "SystemExit", 1)
    assert (await store.jobs.get(good.id)).response == "p"


class Panic(BaseException):
    """As extensions in Rust raise."""


class OwnFail(Fail):
    """Without what the class above wants to be told."""

    def __init__(self) -> None:
        pass


class Unspeakable(StopIteration):
    def __repr__(self) -> str:
        raise ValueError


async def cancel_itself(_job: JobContext) -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()
    return "never"


def raising(error: BaseException, *, is_async: bool) -> Callable[[Any], Any]:
    async def handle(_job: JobContext) -> None:
        raise error

    def handle_in_thread(_job: SyncJobContext) -> None:
        raise error

    return handle if is_async else handle_in_thread


RAISED = {
    "Panic": Panic(),
    "GeneratorExit": GeneratorExit(),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "BaseExceptionGroup": BaseExceptionGroup("of", [Panic(), Panic()]),
    "CancelledError": asyncio.CancelledError(),
    "AttributeError": OwnFail(),
    "NotImplementedError": Outcome(),
}


async def test_whatever_a_handler_raises_fails_its_job_alone(store: JobStore) -> None:
    """Else it would end its worker, then the next one that claims it, and so on."""
    worker = Worker(store)
    jobs: dict[str, list[Job]] = {}

    async def enqueue_for(expected: str, handler: Callable[[Any], Any]) -> None:
        task_type = f"{expected} {len(jobs.get(expected, ()))}"
        worker.handles(task_type, retry=constant(0))(handler)
        job = await store.jobs.enqueue("p", task_type=task_type, api_type="api", max_attempts=2)
        jobs.setdefault(expected, []).append(job)

    for expected, error in RAISED.items():
        await enqueue_for(expected, raising(error, is_async=True))
        await enqueue_for("RuntimeError" if expected == "GeneratorExit" else expected, raising(error, is_async=False))
    await enqueue_for("RuntimeError", raising(Unspeakable(), is_async=False))
    await enqueue_for("CancelledError", cancel_itself)
    worker.handles("task")(lambda job: job.prompt)
    [good] = await enqueue(store)
    async with asyncio.timeout(60):
        await worker.run(drain=True)
    assert (await store.jobs.get(good.id)).response == "p"
    for expected, failed in jobs.items():
        for job in failed:
            found = await store.jobs.get(job.id)
            told = (found.status, found.error_type, found.attempt, found.attempts_used)
            assert told == (JobStatus.FAILED, expected, 2, 2)


async def test_what_comes_alone_in_a_group_counts_as_itself(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("outcome")
    async def give_up(_job: JobContext) -> None:
        async with asyncio.TaskGroup() as tasks, anyio.create_task_group():
            tasks.create_task(_raise(Fail("it is wrong", error_type="wrong")))

    @worker.handles("error", retry={ConnectionError: never, Exception: constant(0)})
    async def lose_connection(_job: JobContext) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_raise(ConnectionError("gone")))

    outcome = await store.jobs.enqueue("p", task_type="outcome", api_type="api")
    error = await store.jobs.enqueue("p", task_type="error", api_type="api")
    await worker.run(drain=True)
    ended = [await store.jobs.get(job.id) for job in (outcome, error)]
    told = [(job.status, job.error_type, job.error_message, job.attempt) for job in ended]
    assert told == [
        (JobStatus.FAILED, "wrong", "it is wrong", 1),
        (JobStatus.FAILED, "ConnectionError", "gone", 1),
    ]
    [attempt] = await store.jobs.attempts(error.id)
    assert attempt.error_traceback is not None
    assert "in _raise" in attempt.error_traceback


async def _raise(error: Exception) -> None:
    raise error


async def test_a_handler_that_answers_though_someone_cancelled_its_task_has_answered(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return job.prompt

    [job] = await enqueue(store)
    await worker.run(drain=True)
    assert (await store.jobs.get(job.id)).response == "p"


async def test_when_the_event_loop_ends_what_runs_is_given_back(store: JobStore) -> None:
    """That is how `asyncio.run` ends the tasks that are left: all are cancelled at once."""
    worker = Worker(store)
    began = asyncio.Event()

    @worker.handles("task")
    async def handle(_job: JobContext) -> None:
        began.set()
        await asyncio.Event().wait()

    [job] = await enqueue(store)
    running = asyncio.ensure_future(worker.run())
    await began.wait()
    for task in [running, *worker._tasks]:
        task.cancel()
    await asyncio.wait([running])
    assert await standing(store, job) == (JobStatus.IDLE, 0)


async def test_a_partial_of_an_async_function_is_an_async_handler(store: JobStore) -> None:
    async def answer(text: str, job: JobContext) -> str:
        return f"{text} {job.prompt}"

    worker = Worker(store)
    worker.handles("task")(functools.partial(answer, "answer to"))
    [job] = await enqueue(store)
    await worker.run(drain=True)
    assert (await store.jobs.get(job.id)).response == "answer to p"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_whose_worker_stopped_meanwhile_is_not_begun(store: JobStore, kind: str) -> None:
    worker = Worker(store)
    began: list[str] = []

    @worker.on_claim
    async def stop(_event: AttemptEvent) -> None:
        worker.stop(at_once=True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            """Swallowed."""

    async def handle(job: JobContext) -> None:
        began.append(job.prompt)

    def handle_in_thread(job: SyncJobContext) -> None:
        began.append(job.prompt)

    worker.handles("task")(handle if kind == "async" else handle_in_thread)
    [job] = await enqueue(store)
    await worker.run()
    assert began == []
    assert await standing(store, job) == (JobStatus.IDLE, 0)


async def test_a_first_piece_that_is_on_its_way_while_the_attempt_ends_is_not_left_open(store: JobStore) -> None:
    await enqueue(store)
    [claim] = await store.jobs.claim("w")
    context = JobContext(store, claim)
    writing = asyncio.ensure_future(context.write("a piece"))
    while context.answer._opening is None:
        await asyncio.sleep(0)  # and no longer, or it might be open
    opening = context.answer.open_soon()
    assert not opening.done()
    await context.close()
    await asyncio.wait([writing])
    assert opening.result()._flusher.done()
    with pytest.raises(LeaseLost):
        await context.write("more")


# Hooks


@pytest.mark.parametrize("moment", ["claim", "complete"])
@pytest.mark.parametrize("how", ["hangs", "awaits what was cancelled"])
async def test_a_hook_that_does_not_return_holds_up_neither_job_nor_worker(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, moment: str, how: str
) -> None:
    monkeypatch.setattr(hooks, "PATIENCE", 0.01)
    worker = Worker(store, concurrency=1)

    async def hang(_event: AttemptEvent) -> None:
        waiter = asyncio.get_running_loop().create_future()
        if how != "hangs":
            waiter.cancel()
        await waiter

    (worker.on_claim if moment == "claim" else worker.on_complete)(hang)
    worker.handles("task")(lambda job: job.prompt)
    jobs = await enqueue(store, 2)
    await worker.run(drain=True)
    for job in jobs:
        assert await standing(store, job) == (JobStatus.COMPLETED, 1)
    assert caplog.text.count("the hook hang failed: ") == 2


# Stopping and closing


@pytest.mark.parametrize("ending", ["stopped", "cancelled"])
async def test_what_was_claimed_while_the_order_to_stop_came_is_given_back_at_once(
    store: JobStore, ending: str
) -> None:
    class Stopped(Worker):
        async def _ask(self, limit: int) -> list[Claim]:
            claims = await super()._ask(limit)
            self.stop()
            if ending == "cancelled":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            return claims

    worker = Stopped(store)
    worker.handles("task")(lambda job: job.prompt)
    jobs = await enqueue(store, 5)
    running = asyncio.ensure_future(worker.run())
    await asyncio.wait([running])
    assert running.cancelled() == (ending == "cancelled")
    for job in jobs:
        assert await standing(store, job) == (JobStatus.IDLE, 0)


@contextmanager
def locked(database: Path | str) -> Iterator[None]:
    """Let nobody else write meanwhile; the store would try for half a minute, each time."""
    if isinstance(database, Path):
        with closing(sqlite3.connect(database, isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            yield
    else:
        with psycopg.connect(database) as stranger:
            stranger.execute("LOCK TABLE background_jobs, job_attempts, workers IN EXCLUSIVE MODE")
            yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobstore.workers.worker.STOP_SECONDS", 0.05)
    monkeypatch.setattr("jobstore.repositories.workers.PATIENCE", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_cannot_record_what_it_ran_stops_all_the_same(
    store: JobStore, database: Path | str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(store, concurrency=1, cancel_grace=0.0)
    began = asyncio.Event()

    @worker.handles("task")
    async def handle(_job: JobContext) -> None:
        began.set()
        await asyncio.Event().wait()

    [job] = await enqueue(store)
    running = asyncio.ensure_future(worker.run(grace=0))
    await began.wait()
    with locked(database):
        worker.stop()
        async with asyncio.timeout(20):
            await running
    assert "ends before 1 jobs are recorded" in caplog.text

    async def is_given_back() -> bool:
        return await standing(store, job) == (JobStatus.IDLE, 0)

    await eventually(is_given_back)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_stops_in_the_middle_of_a_claim_that_is_not_answered(
    store: JobStore, database: Path | str
) -> None:
    asking = asyncio.Event()

    class Asking(Worker):
        async def _ask(self, limit: int) -> list[Claim]:
            asking.set()
            return await super()._ask(limit)

    worker = Asking(store)
    worker.handles("task")(lambda job: job.prompt)
    [job] = await enqueue(store)
    with locked(database):
        running = asyncio.ensure_future(worker.run())
        await asking.wait()
        worker.stop()
        async with asyncio.timeout(20):
            await running
    running = asyncio.ensure_future(worker.run())
    assert (await store.jobs.wait(job.id, 60)).response == "p"  # once what was claimed is given back
    worker.stop()
    await running


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_worker_whose_store_is_closed_ends_and_says_so(store: JobStore, busy: bool) -> None:  # noqa: FBT001
    worker = Worker(store, concurrency=2)
    began, ended = asyncio.Event(), asyncio.Event()

    @worker.handles("task")
    async def handle(_job: JobContext) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.ensure_future(worker.run(grace=3600))
    if busy:
        await enqueue(store)
        await began.wait()
    await eventually(lambda: store.stats().wake.waiting > 0)
    await store.close()
    with pytest.raises(StoreClosed):
        await asyncio.wait_for(running, 60)
    assert ended.is_set() == busy
    await store.open()
    await worker.run(drain=True)  # what has failed before is over


async def test_stopping_is_fine_at_any_moment_of_the_start(store: JobStore) -> None:
    for turns in range(30):
        worker = Worker(store)
        worker.handles("task")(lambda job: job.prompt)
        [job] = await enqueue(store)
        running = asyncio.ensure_future(worker.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        worker.stop()
        worker.stop(at_once=turns % 2 == 1)
        async with asyncio.timeout(60):
            await running
        assert await standing(store, job) in {(JobStatus.IDLE, 0), (JobStatus.COMPLETED, 1)}
    assert await store.workers.list() == []


async def test_a_worker_that_runs_already_is_not_run_twice(store: JobStore) -> None:
    worker = Worker(store)
    worker.handles("task")(lambda job: job.prompt)
    running = asyncio.ensure_future(worker.run())
    await eventually(lambda: worker.event_loop is not None)
    with pytest.raises(InvalidArgument, match="runs already"):
        await worker.run()
    worker.stop()
    await running
    await worker.run(drain=True)  # one after the other is fine
