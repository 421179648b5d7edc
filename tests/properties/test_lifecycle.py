"""The lifecycle against a plain model: whatever is done in whatever order, the store and the model agree."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from jobstore import Claim, InvalidTransition, Job, JobStatus, JobStore, LeaseLost
from jobstore.clock import from_milliseconds
from jobstore.lifecycle import TRANSITIONS
from jobstore.operations import leasing
from jobstore.testing import FakeClock
from tests import postgres

T = TypeVar("T")


@dataclass
class ModelAttempt:
    number: int
    expires: int
    outcome: str | None = None


@dataclass
class ModelJob:
    """What the store ought to know of a job."""

    order: int
    priority: int
    run_at: int
    max_attempts: int
    status: str = "idle"
    used: int = 0
    cancel_requested: bool = False
    response: str | None = None
    error_type: str | None = None
    attempts: list[ModelAttempt] = field(default_factory=list)

    @property
    def attempt(self) -> int:
        return len(self.attempts)

    def holds(self, number: int) -> bool:
        return self.status == "running" and self.attempt == number

    def end(self, status: str, outcome: str) -> None:
        self.status = "canceled" if self.cancel_requested and status != "completed" else status
        self.attempts[-1].outcome = "canceled" if self.status == "canceled" and outcome != "lost" else outcome


class Lifecycle(RuleBasedStateMachine):
    claims = Bundle("claims")

    def __init__(self, database: str | None = None) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.database = database or self.folder / "jobs.db"
        self.clock = FakeClock()
        self.model: dict[str, ModelJob] = {}
        self.seen: dict[str, JobStatus] = {}
        self.store = self.run(self.opened())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def opened(self) -> JobStore:
        return await JobStore(
            self.database, migrate=True, outputs=self.folder / "jobs.db.outputs", clock=self.clock
        ).open()

    def teardown(self) -> None:
        self.run(self.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    # What is done

    @rule(priority=st.integers(-1, 1), delay=st.sampled_from([0, 0, 0, 5]), max_attempts=st.integers(1, 3))
    def enqueue(self, priority: int, delay: int, max_attempts: int) -> None:
        run_at = self.clock.now + delay * 1000
        job = self.run(self.enqueued(priority, delay, max_attempts))
        self.model[job.id] = ModelJob(len(self.model), priority, run_at, max_attempts, "scheduled" if delay else "idle")

    async def enqueued(self, priority: int, delay: int, max_attempts: int) -> Job:
        now = from_milliseconds(self.clock.now)
        return await self.store.jobs.enqueue(
            "p",
            task_type="task",
            api_type="api",
            priority=priority,
            run_at=now + timedelta(seconds=delay) if delay else None,
            max_attempts=max_attempts,
        )

    @rule(target=claims, limit=st.integers(1, 3), lease=st.sampled_from([3, 30]))
    def claim(self, limit: int, lease: int) -> list[Claim]:
        claims = self.run(self.store.jobs.claim("worker", limit=limit, lease=lease))
        self.settle_due()
        idle = [job_id for job_id, job in self.model.items() if job.status == "idle"]
        idle.sort(key=self.claim_order)
        assert [claim.job_id for claim in claims] == idle[:limit]
        for claim in claims:
            job = self.model[claim.job_id]
            job.status = "running"
            job.used += 1
            job.attempts.append(ModelAttempt(job.attempt + 1, self.clock.now + lease * 1000))
            assert claim.attempt == job.attempt
        return claims

    def claim_order(self, job_id: str) -> tuple[int, int, int]:
        job = self.model[job_id]
        return -job.priority, job.run_at, job.order

    def rescue_due(self) -> None:
        for job in self.model.values():
            if job.status == "running" and job.attempts[-1].expires <= self.clock.now:
                if not job.cancel_requested and job.used >= job.max_attempts:
                    job.error_type = "worker_lost"
                    job.end("failed", "lost")
                else:
                    job.end("idle", "lost")

    def settle_due(self) -> None:
        self.rescue_due()
        for job in self.model.values():
            if job.status == "scheduled" and job.run_at <= self.clock.now:
                job.status = "idle"

    @rule(claims=claims, lease=st.sampled_from([3, 30]))
    def heartbeat(self, claims: list[Claim], lease: int) -> None:
        beats = self.run(self.store.jobs.heartbeat(claims, lease=lease))
        for claim, beat in zip(claims, beats, strict=True):
            job = self.model[claim.job_id]
            assert beat.extended == job.holds(claim.attempt)
            assert beat.cancel_requested == (beat.extended and job.cancel_requested)
            if beat.extended:
                job.attempts[-1].expires = self.clock.now + lease * 1000

    @rule(claims=claims, answer=st.sampled_from(["", "a", "b\0é"]))
    def complete(self, claims: list[Claim], answer: str) -> None:
        for claim in claims:
            job = self.model[claim.job_id]
            attempt = job.attempts[claim.attempt - 1]
            late = (
                job.attempt == claim.attempt
                and attempt.outcome == "lost"
                and job.status in {"idle", "scheduled", "failed"}
            )
            again = job.attempt == claim.attempt and job.status == "completed" and attempt.outcome == "completed"
            if job.holds(claim.attempt) or late:
                done = self.run(self.store.jobs.complete(claim, answer))
                assert done.response == (None if done.output_file_path else answer)
                job.status, attempt.outcome, job.response, job.error_type = "completed", "completed", answer, None
            elif again:
                self.run(self.store.jobs.complete(claim, answer))  # whose answer is not taken
            else:
                self.refused(self.store.jobs.complete(claim, answer))

    @rule(claims=claims, retry_in=st.sampled_from([None, 0, 5]))
    def fail(self, claims: list[Claim], retry_in: int | None) -> None:
        for claim in claims:
            job = self.model[claim.job_id]
            if not job.holds(claim.attempt):
                self.refused(self.store.jobs.fail(claim, "no", retry_in=retry_in))
                continue
            self.run(self.store.jobs.fail(claim, "no", retry_in=retry_in, error_type="kind"))
            job.error_type = "kind"
            again = retry_in is not None and job.used < job.max_attempts
            job.end("scheduled" if again else "failed", "failed")
            if job.status == "scheduled":
                job.run_at = self.clock.now + (retry_in or 0) * 1000

    @rule(claims=claims, seconds=st.sampled_from([0, 5]))
    def snooze(self, claims: list[Claim], seconds: int) -> None:
        for claim in claims:
            job = self.model[claim.job_id]
            if not job.holds(claim.attempt):
                self.refused(self.store.jobs.snooze(claim, seconds))
                continue
            self.run(self.store.jobs.snooze(claim, seconds))
            job.used -= 1
            job.end("scheduled", "snoozed")
            job.run_at = self.clock.now + seconds * 1000

    @rule(claims=claims)
    def release(self, claims: list[Claim]) -> None:
        for claim in claims:
            job = self.model[claim.job_id]
            if not job.holds(claim.attempt):
                self.refused(self.store.jobs.release(claim))
                continue
            self.run(self.store.jobs.release(claim))
            job.used -= 1
            job.end("idle", "released")

    @rule(claims=consumes(claims))
    def forget(self, claims: list[Claim]) -> None:
        """A worker dies: nobody reports on these claims any more."""

    def refused(self, call: Coroutine[Any, Any, Job]) -> None:
        with pytest.raises(LeaseLost):
            self.run(call)

    def impossible(self, call: Coroutine[Any, Any, Job], before: str, after: str) -> None:
        with pytest.raises(InvalidTransition) as caught:
            self.run(call)
        assert (caught.value.from_status, caught.value.to_status) == (before, after)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.model:
            return
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        job = self.model[job_id]
        self.run(self.store.run(leasing.rescue_due))  # whose effect a refused cancel would undo
        self.rescue_due()
        if job.status in {"completed", "failed", "canceled"}:
            self.impossible(self.store.jobs.cancel(job_id), job.status, "canceled")
            return
        self.run(self.store.jobs.cancel(job_id))
        job.cancel_requested = True
        if job.status != "running":
            job.status = "canceled"

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        if not self.model:
            return
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        job = self.model[job_id]
        self.run(self.store.run(leasing.rescue_due))
        self.rescue_due()
        if job.status in {"idle", "scheduled", "running"}:
            self.impossible(self.store.jobs.retry(job_id), job.status, "idle")
            return
        self.run(self.store.jobs.retry(job_id))
        job.status, job.used, job.cancel_requested, job.error_type = "idle", 0, False, None
        job.run_at = self.clock.now

    @rule(seconds=st.sampled_from([1, 4, 31]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(self.opened())

    # What must hold

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        for job_id, expected in self.model.items():
            job = self.run(self.store.jobs.get(job_id))
            assert job.status == expected.status
            assert (job.attempt, job.attempts_used) == (expected.attempt, expected.used)
            assert job.error_type == expected.error_type
            assert (job.cancel_requested_at is not None) == (expected.cancel_requested or (job.status == "canceled"))
            assert (job.finished_at is not None) == job.status.is_terminal
            assert self.run(self.store.jobs.read_response(job_id)) == expected.response
            before = self.seen.get(job_id, job.status)
            assert job.status == before or reachable(before, job.status)
            self.seen[job_id] = job.status
            outcomes = [attempt.outcome for attempt in self.run(self.store.jobs.attempts(job_id))]
            assert outcomes == [attempt.outcome for attempt in expected.attempts]


def reachable(before: JobStatus, after: JobStatus) -> bool:
    """Whether a rule's few steps lead from one status to the other: a claim may promote and start in one."""
    one_step = TRANSITIONS[before]
    return after in one_step or any(after in TRANSITIONS[between] for between in one_step)


def test_sqlite_agrees_with_the_model() -> None:
    run_state_machine_as_test(Lifecycle, settings=settings(max_examples=25, stateful_step_count=40, deadline=None))


def test_postgres_agrees_with_the_model(postgres_database: str) -> None:
    def emptied() -> Lifecycle:
        postgres.empty(postgres_database)
        return Lifecycle(postgres_database)

    run_state_machine_as_test(emptied, settings=settings(max_examples=10, stateful_step_count=30, deadline=None))
