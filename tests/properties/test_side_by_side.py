"""The engines against each other: the same commands to SQLite and to PostgreSQL have the same answers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pydantic import BaseModel

from jobstore import Claim, Job, JobStatus, JobStore, JobStoreError, Usage
from jobstore.clock import from_milliseconds
from jobstore.testing import FakeClock
from tests import postgres

T = TypeVar("T")
Claims = Sequence[tuple[Claim, Claim]]
"""Each as SQLite and as PostgreSQL gave it."""

PLACES = {"prompt", "prompt_file_path", "prompt_sha256", "response", "output_file_path", "output_sha256"}
"""Where texts lie differs: only SQLite's rows can hold NUL characters. The texts themselves are compared."""
TEXTS = st.sampled_from(["", "a", "é\u2028😀'\"\\%:x", "a\0b", "long " * 20_000])
NOTES = st.sampled_from(["no", "é\u2028😀'\"\\%:x", "a\0b", ""])
TASKS = st.sampled_from(["task", "Task", "täsk", "a-b", "a b"])


class Side:
    """A store, and its ids in the order of enqueueing."""

    def __init__(self, database: Path | str, outputs: Path, clock: FakeClock) -> None:
        self.database = database
        self.outputs = outputs
        self.clock = clock
        self.ids: list[str] = []
        self.store = self.new_store()

    def new_store(self) -> JobStore:
        return JobStore(self.database, migrate=True, outputs=self.outputs, clock=self.clock)

    async def reopen(self) -> None:
        await self.store.close()
        self.store = await self.new_store().open()

    def know(self, job: Job) -> None:
        if job.id not in self.ids:
            self.ids.append(job.id)

    async def answer(self, call: Awaitable[Any]) -> tuple[Any, Any]:
        """Return what a call returned, and the same, or its error, in a form that is equal for equal answers."""
        try:
            value = await call
        except JobStoreError as error:
            return None, (type(error).__name__, self.without_ids(str(error)))
        for job in value if isinstance(value, list) else [value]:
            if isinstance(job, Job):
                self.know(job)
        return value, self.plain(value)

    def plain(self, value: object) -> object:
        if isinstance(value, BaseModel):
            return {name: self.plain(getattr(value, name)) for name in type(value).model_fields if name not in PLACES}
        if isinstance(value, list):
            return [self.plain(item) for item in value]
        return self.without_ids(value) if isinstance(value, str) else value

    def without_ids(self, text: str) -> str:
        for number, job_id in enumerate(self.ids):
            text = text.replace(job_id, f"<job {number}>")
        return text

    async def everything(self) -> object:
        """Return all that can be read."""
        jobs = self.store.jobs
        return {
            "jobs": [self.plain(await jobs.get(job_id)) for job_id in self.ids],
            "attempts": [self.plain(await jobs.attempts(job_id)) for job_id in self.ids],
            "prompts": [await jobs.read_prompt(job_id) for job_id in self.ids],
            "responses": [await jobs.read_response(job_id) for job_id in self.ids],
            "newest": await self.listed("newest", None),
            "active": await self.listed("active", None),
            "shown": await self.listed("active", False),  # noqa: FBT003 - as the argument of `list`
            "counts": [await jobs.count(status=status) for status in JobStatus],
            "stats": self.plain(await jobs.stats()),
        }

    async def listed(self, order: Literal["newest", "active"], cleared: bool | None) -> object:  # noqa: FBT001
        jobs: list[Job] = []
        cursor = None
        while True:
            page = await self.store.jobs.list(order=order, cleared=cleared, limit=3, cursor=cursor)
            jobs += page.items
            cursor = page.next_cursor
            if cursor is None:
                return self.plain(jobs)


class SideBySide(RuleBasedStateMachine):
    claims = Bundle("claims")

    def __init__(self, database: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.sides = [
            Side(self.folder / "jobs.db", self.folder / "jobs.db.outputs", self.clock),
            Side(database, self.folder / "other.outputs", self.clock),
        ]
        for side in self.sides:
            self.run(side.store.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        for side in self.sides:
            self.run(side.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def same(self, call: Callable[[Side], Awaitable[Any]]) -> tuple[Any, Any]:
        """Call on both sides, check that the answers are the same, and return them."""
        (left, left_answer), (right, right_answer) = [self.run(side.answer(call(side))) for side in self.sides]
        assert left_answer == right_answer
        return left, right

    def same_for_each(self, claims: Claims, call: Callable[[JobStore, Claim], Awaitable[Any]]) -> None:
        for pair in claims:
            self.same(lambda side, pair=pair: call(side.store, pair[self.sides.index(side)]))  # type: ignore[misc]

    # What is done

    @rule(
        prompt=TEXTS,
        task=TASKS,
        priority=st.sampled_from([-1, 0, 0, 2**31 - 1]),
        delay=st.sampled_from([None, None, -1, 0, 5]),
        max_attempts=st.integers(1, 3),
        key=st.sampled_from([None, None, "key", "Key", "k\0"]),
        metadata=st.sampled_from([{}, {"é": [1.5, None, True, "a\0b"]}, {"n": 2**70}]),
    )
    def enqueue(
        self,
        prompt: str,
        task: str,
        priority: int,
        delay: int | None,
        max_attempts: int,
        key: str | None,
        metadata: dict[str, Any],
    ) -> None:
        now = from_milliseconds(self.clock.now)
        self.same(
            lambda side: side.store.jobs.enqueue(
                prompt,
                task_type=task,
                api_type="api",
                priority=priority,
                run_at=None if delay is None else now + timedelta(seconds=delay),
                max_attempts=max_attempts,
                idempotency_key=key,
                metadata=metadata,
            )
        )

    @rule(
        target=claims,
        limit=st.integers(1, 3),
        lease=st.sampled_from([3, 30]),
        tasks=st.sampled_from([None, None, ["task"], ["täsk", "Task"]]),
    )
    def claim(self, limit: int, lease: int, tasks: list[str] | None) -> Any:  # noqa: ANN401 - Hypothesis' own
        left, right = self.same(
            lambda side: side.store.jobs.claim("worker", limit=limit, lease=lease, task_types=tasks)
        )
        return list(zip(left, right, strict=True)) if left else multiple()

    @rule(claims=claims, lease=st.sampled_from([3, 30]))
    def heartbeat(self, claims: Claims, lease: int) -> None:
        self.same(
            lambda side: side.store.jobs.heartbeat([pair[self.sides.index(side)] for pair in claims], lease=lease)
        )

    @rule(claims=claims, note=NOTES, tokens=st.sampled_from([None, 7]), cost=st.sampled_from([None, 0.1]))
    def progress(self, claims: Claims, note: str, tokens: int | None, cost: float | None) -> None:
        usage = Usage(input_tokens=tokens, cost=cost)
        self.same_for_each(
            claims,
            lambda store, claim: store.jobs.progress(claim, status_message=note, usage=usage, metadata={"note": note}),
        )

    @rule(claims=claims, answer=TEXTS, metadata=st.sampled_from([None, {"a": "b\0"}]))
    def complete(self, claims: Claims, answer: str, metadata: dict[str, Any] | None) -> None:
        self.same_for_each(claims, lambda store, claim: store.jobs.complete(claim, answer, metadata=metadata))

    @rule(claims=claims, answer=TEXTS)
    def complete_together(self, claims: Claims, answer: str) -> None:
        async def complete(side: Side) -> list[object]:
            mine = [pair[self.sides.index(side)] for pair in claims]
            answers = await asyncio.gather(*(side.answer(side.store.jobs.complete(one, answer)) for one in mine))
            return [plain for _, plain in answers]

        left, right = self.same(complete)
        assert left == right

    @rule(claims=claims, note=NOTES, retry_in=st.sampled_from([None, 0, 5]))
    def fail(self, claims: Claims, note: str, retry_in: int | None) -> None:
        self.same_for_each(
            claims, lambda store, claim: store.jobs.fail(claim, note, retry_in=retry_in, error_type="kind")
        )

    @rule(claims=claims, seconds=st.sampled_from([0, 5]))
    def snooze(self, claims: Claims, seconds: int) -> None:
        self.same_for_each(claims, lambda store, claim: store.jobs.snooze(claim, seconds))

    @rule(claims=claims)
    def release(self, claims: Claims) -> None:
        self.same_for_each(claims, lambda store, claim: store.jobs.release(claim))

    @rule(claims=claims, note=NOTES)
    def cancel_claimed(self, claims: Claims, note: str) -> None:
        self.same_for_each(claims, lambda store, claim: store.jobs.cancel_claimed(claim, note))

    @rule(claims=consumes(claims))
    def forget(self, claims: Claims) -> None:
        """A worker dies: nobody reports on these claims any more."""

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        self.same(lambda side: side.store.jobs.cancel(self.chosen(side, number)))

    @rule(number=st.integers(0, 20))
    def retry(self, number: int) -> None:
        self.same(lambda side: side.store.jobs.retry(self.chosen(side, number)))

    @rule(number=st.integers(0, 20))
    def clear(self, number: int) -> None:
        self.same(lambda side: side.store.jobs.clear([self.chosen(side, number)]))

    @rule(seconds=st.sampled_from([1, 10]))
    def clear_old(self, seconds: int) -> None:
        self.same(lambda side: side.store.jobs.clear(older_than=seconds))

    def chosen(self, side: Side, number: int) -> str:
        return side.ids[number % len(side.ids)] if side.ids else "unknown"

    @rule(seconds=st.sampled_from([1, 4, 31, -2]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        for side in self.sides:
            self.run(side.reopen())

    # What must hold

    @invariant()
    def both_hold_the_same(self) -> None:
        left, right = [self.run(side.everything()) for side in self.sides]
        assert left == right


def test_sqlite_and_postgres_give_the_same_answers(postgres_database: str) -> None:
    def emptied() -> SideBySide:
        postgres.empty(postgres_database)
        return SideBySide(postgres_database)

    run_state_machine_as_test(emptied, settings=settings(max_examples=8, stateful_step_count=25, deadline=None))
