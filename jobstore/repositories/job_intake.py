"""The part of `store.jobs` that makes jobs: to be done by workers, or recorded while the caller does them."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from pydantic import JsonValue

from jobstore.clock import seconds
from jobstore.models import Claim, Job, NewJob, Text
from jobstore.operations import attempts, jobs, leasing
from jobstore.repositories.arguments import check_iterable, check_new_job, plain_dict
from jobstore.repositories.backend import is_unsettled, new_id
from jobstore.repositories.calls import CallRepository
from jobstore.repositories.job_work import JobWork
from jobstore.repositories.recording import RecordedCall

RECORD_LEASE = 30.0
"""Seconds; renewed while the call runs, so it only tells how soon a crash is noticed."""


class JobIntake(JobWork):
    """Recording prompts."""

    async def enqueue(
        self,
        prompt: str,
        *,
        task_type: str,
        api_type: str,
        model_used: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        priority: int = 0,
        run_at: datetime | None = None,
        expires_at: datetime | None = None,
        max_attempts: int = 3,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """(new) → idle, or scheduled if `run_at` lies ahead.

        Args:
            prompt: Any text; above the store's inline limit it goes to a file.
            task_type: What kind of work it is; workers choose by it.
            api_type: Which API it is for.
            model_used: Which model it is for.
            session_id: The session it belongs to.
            metadata: Anything that JSON can express.
            priority: A 32-bit integer; higher is claimed first.
            run_at: Not before this aware datetime.
            expires_at: No attempt begins at or after this aware datetime, neither the first nor another: if the job
                waits then, it is canceled with the `error_type` "expired". One that has passed already is no error:
                the job is recorded, and canceled at once.
            max_attempts: How often it may be tried.
            timeout: Seconds that one attempt may take.
            idempotency_key: With a key that was used before, the job made then is returned, and none is made.

        Raises:
            InvalidJob: A field cannot be accepted; it names the field.
            SessionNotFound: There is no such session.
            DiskFull: There is no room. Nothing was recorded. `DiskLow`: what is left is kept for what is under way.

        Example:
            >>> job = await store.jobs.enqueue("Say hello", task_type="greeting", api_type="claude")
        """
        new = NewJob(
            prompt=prompt,
            task_type=task_type,
            api_type=api_type,
            model_used=model_used,
            session_id=session_id,
            metadata={} if metadata is None else plain_dict(metadata),
            priority=priority,
            run_at=run_at,
            expires_at=expires_at,
            max_attempts=max_attempts,
            timeout=timeout,
            idempotency_key=idempotency_key,
        )
        await self._backend.disk.require_room()
        job_id = new_id()
        text = await self._backend.store_text("prompt", "prompts", job_id, prompt)
        return await self._backend.write_text(text, "prompt_file_path", jobs.enqueue, job_id, new, text, wakes=True)

    async def enqueue_many(self, new_jobs: Iterable[NewJob]) -> list[Job]:
        """Enqueue many; the result is in the order given. Each thousand of them is all or nothing.

        Raises:
            InvalidJob: Something is no `NewJob`; nothing of its thousand was recorded.
            SessionNotFound: A session does not exist; nothing of its thousand was recorded.
            DiskFull: There is no room. `DiskLow`: what is left is kept for what is under way.

        Example:
            >>> await store.jobs.enqueue_many(
            ...     NewJob(prompt=text, task_type="summary", api_type="claude") for text in texts
            ... )
        """
        check_iterable("new_jobs", new_jobs)
        enqueued: list[Job] = []
        remaining = iter(new_jobs)
        while part := list(itertools.islice(remaining, jobs.MAX_ROWS)):
            enqueued += await self._enqueue_part(part)
        return enqueued

    async def _enqueue_part(self, part: Sequence[NewJob]) -> list[Job]:
        for new in part:
            check_new_job(new)
        await self._backend.disk.require_room()
        prepared: list[tuple[str, NewJob, Text]] = []

        def settle(made: list[Job] | None) -> None:
            taken = {job.prompt_file_path for job in made or ()}
            files = [text.file_path for _, _, text in prepared if text.file_path is not None]
            if unneeded := [path for path in files if path not in taken]:
                self._backend.discard(unneeded)

        try:
            for new in part:
                job_id = new_id()
                text = await self._backend.store_text("prompt", "prompts", job_id, new.prompt)
                prepared.append((job_id, new, text))
        except BaseException:
            settle(None)
            raise
        size = sum(len(text.inline or "") for _, _, text in prepared)
        try:
            made = await self._backend.write(jobs.enqueue_many, prepared, size=size, wakes=True, abandoned=settle)
        except BaseException as error:
            if not is_unsettled(error):
                settle(None)
            raise
        settle(made)
        return made

    @asynccontextmanager
    async def record(
        self,
        prompt: str,
        *,
        task_type: str,
        api_type: str,
        model_used: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[RecordedCall]:
        """(new) → running: record a call that the program makes itself.

        The job belongs to the caller, its lease is kept alive, and no worker ever repeats it. At the end it is
        completed; an exception marks it failed (`error_type` is its class name) and propagates; cancellation
        marks it canceled.

        Raises:
            InvalidJob: A field cannot be accepted; it names the field.
            SessionNotFound: There is no such session.
            DiskLow: Less room is left than `min_free_bytes`: nothing new is begun.

        Example:
            >>> async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            ...     async for text in ask_model("Say hello"):
            ...         await call.write(text)
        """
        new = NewJob(
            prompt=prompt,
            task_type=task_type,
            api_type=api_type,
            model_used=model_used,
            session_id=session_id,
            metadata={} if metadata is None else plain_dict(metadata),
            priority=priority,
            max_attempts=1,
            timeout=timeout,
        )
        call = RecordedCall(self, CallRepository(self._backend), await self._start_recorded(new))
        with self.lease_kept(
            call.claim, lease=RECORD_LEASE, lost=call.note_lost, cancel_requested=call.note_cancel_requested
        ):
            try:
                yield call
            except BaseException as error:
                await call.end(error)
                raise
            else:
                await call.end(None)

    async def _start_recorded(self, new: NewJob) -> Claim:
        await self._backend.disk.require_room()
        job_id = new_id()
        text = await self._backend.store_text("prompt", "prompts", job_id, new.prompt)

        def abandoned(claim: Claim | None) -> None:
            if claim is not None:
                self._backend.write_soon(attempts.cancel_claimed, claim, "the caller was cancelled")
            elif text.file_path is not None:
                self._backend.discard([text.file_path])

        worker_id = f"record:{socket.gethostname()}:{os.getpid()}"
        try:
            claim: Claim = await self._backend.write(
                leasing.start_recorded,
                job_id,
                new,
                text,
                worker_id,
                seconds(RECORD_LEASE),
                size=len(text.inline or ""),
                wakes=True,  # its lease may be the next to end
                abandoned=abandoned,
            )
        except BaseException as error:
            if not is_unsettled(error):
                abandoned(None)
            raise
        return claim if text.inline is not None else claim.with_prompt(new.prompt)
