"""`store.jobs`: recording prompts, claiming jobs, reporting on them, and reading what became of them."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

from pydantic import JsonValue

from jobstore.aio import finish, in_thread
from jobstore.clock import seconds, to_milliseconds
from jobstore.errors import InvalidArgument, InvalidJob, OutputError
from jobstore.lifecycle import JobStatus
from jobstore.models import (
    Attempt,
    Claim,
    Heartbeat,
    Job,
    JobStats,
    NewJob,
    Page,
    Text,
    Usage,
    check_identifier,
    encode_json,
)
from jobstore.operations import attempts, jobs, listing
from jobstore.outputs import OutputWriter
from jobstore.repositories import texts
from jobstore.repositories.backend import Backend, new_id
from jobstore.repositories.recording import RecordedCall

MAX_CLAIMS = 10_000
RECORD_LEASE = 30.0
"""Seconds; renewed while the call runs, so it only tells how soon a crash is noticed."""


class JobRepository:
    """The jobs of a store. Reached as `store.jobs`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writers: dict[tuple[str, int], OutputWriter] = {}

    # Making jobs

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
        max_attempts: int = 3,
        timeout: float | None = None,  # noqa: ASYNC109 - kept for the job's handler
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
            max_attempts: How often it may be tried.
            timeout: Seconds that one attempt may take.
            idempotency_key: With a key that was used before, the job made then is returned, and none is made.

        Raises:
            InvalidJob: A field cannot be accepted; it names the field.
            SessionNotFound: There is no such session.
            DiskFull: There is no room. Nothing was recorded.

        Example:
            >>> job = await store.jobs.enqueue("Say hello", task_type="greeting", api_type="claude")
        """
        new = NewJob(
            prompt=prompt,
            task_type=task_type,
            api_type=api_type,
            model_used=model_used,
            session_id=session_id,
            metadata={} if metadata is None else metadata,
            priority=priority,
            run_at=run_at,
            max_attempts=max_attempts,
            timeout=timeout,
            idempotency_key=idempotency_key,
        )
        job_id = new_id()
        text = await self._backend.store_text("prompt", "prompts", job_id, prompt)
        return await self._backend.write_text(
            text, "prompt_file_path", jobs.enqueue, job_id, new, text, wakes=True
        )

    async def enqueue_many(self, new_jobs: Iterable[NewJob]) -> builtins.list[Job]:
        """Enqueue many; the result is in the order given. Each thousand of them is all or nothing.

        Raises:
            SessionNotFound: A session does not exist; nothing of its thousand was recorded.
            DiskFull: There is no room.

        Example:
            >>> await store.jobs.enqueue_many(
            ...     NewJob(prompt=text, task_type="summary", api_type="claude") for text in texts
            ... )
        """
        enqueued: list[Job] = []
        remaining = iter(new_jobs)
        while part := list(itertools.islice(remaining, jobs.MAX_ROWS)):
            enqueued += await self._enqueue_part(part)
        return enqueued

    async def _enqueue_part(self, part: Sequence[NewJob]) -> builtins.list[Job]:
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
            made = await self._backend.write(
                jobs.enqueue_many, prepared, size=size, wakes=True, abandoned=settle
            )
        except asyncio.CancelledError:
            raise
        except BaseException:
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
        timeout: float | None = None,  # noqa: ASYNC109 - kept with the job
    ) -> AsyncIterator[RecordedCall]:
        """(new) → running: record a call that the program makes itself.

        The job belongs to the caller, its lease is kept alive, and no worker ever repeats it. At the end it is
        completed; an exception marks it failed (`error_type` is its class name) and propagates; cancellation
        marks it canceled.

        Raises:
            InvalidJob: A field cannot be accepted; it names the field.
            SessionNotFound: There is no such session.

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
            metadata={} if metadata is None else metadata,
            priority=priority,
            max_attempts=1,
            timeout=timeout,
        )
        call = RecordedCall(self, await self._start_recorded(new))
        self._backend.leases.keep(
            call.claim, RECORD_LEASE, partial(setattr, call, "lost", True), partial(setattr, call, "cancel_requested", True)
        )
        try:
            yield call
        except BaseException as error:
            await call.end(error)
            raise
        else:
            await call.end(None)
        finally:
            self._backend.leases.forget(call.claim)

    async def _start_recorded(self, new: NewJob) -> Claim:
        job_id = new_id()
        text = await self._backend.store_text("prompt", "prompts", job_id, new.prompt)

        def abandoned(claim: Claim | None) -> None:
            if claim is not None:
                self._backend.engine.write_soon(attempts.cancel_claimed, claim, "the caller was cancelled")
            elif text.file_path is not None:
                self._backend.discard([text.file_path])

        worker_id = f"record:{socket.gethostname()}:{os.getpid()}"
        try:
            return await self._backend.write(
                attempts.start_recorded,
                job_id,
                new,
                text,
                worker_id,
                seconds(RECORD_LEASE),
                size=len(text.inline or ""),
                abandoned=abandoned,
            )
        except asyncio.CancelledError:
            raise
        except BaseException:
            abandoned(None)
            raise

    # Working on jobs

    async def claim(
        self,
        worker_id: str,
        *,
        limit: int = 1,
        lease: float = 30.0,
        task_types: Sequence[str] | None = None,
        api_types: Sequence[str] | None = None,
    ) -> builtins.list[Claim]:
        """idle → running, for up to `limit` jobs: the highest priority first, then the oldest.

        Leases that have ended are rescued first, and scheduled jobs that fell due are promoted. Cancelling
        this call gives back what it got. A job whose prompt cannot be read from its file fails, and the others
        are returned.

        Args:
            worker_id: Who claims.
            limit: 1 to 10,000.
            lease: Seconds until others may have the job, unless a heartbeat renews it.
            task_types: Only these; None is any.
            api_types: Only these; None is any.

        Returns:
            The claims, in the order of their claim; none if there is nothing to do.

        Raises:
            InvalidJob: An argument cannot be accepted; it names the argument.

        Example:
            >>> [claim] = await store.jobs.claim("worker-1")
        """
        check_identifier("worker_id", worker_id)
        _check_range("limit", limit, 1, MAX_CLAIMS)
        milliseconds = _positive("lease", lease)
        tasks, apis = _names("task_types", task_types), _names("api_types", api_types)
        if tasks == [] or apis == []:
            return []
        claims: list[Claim] = []
        try:
            while True:
                claimed = await self._backend.write(
                    attempts.claim,
                    worker_id,
                    limit - len(claims),
                    milliseconds,
                    tasks,
                    apis,
                    abandoned=self._release_claimed,
                )
                claims += claimed.claims
                if len(claims) == limit or not claimed.more_due:
                    return await self._with_prompts(claims)
        except BaseException:
            self._release_soon(claims)
            raise

    async def heartbeat(self, claims: Sequence[Claim], *, lease: float = 30.0) -> builtins.list[Heartbeat]:
        """Renew leases for `lease` seconds from now; one answer each, in the order given.

        Raises:
            InvalidJob: The lease is not positive.

        Example:
            >>> [beat] = await store.jobs.heartbeat([claim])
            >>> if not beat.extended:
            ...     stop_working()
        """
        keys = [(claim.job_id, claim.attempt) for claim in claims]
        return await self._backend.write(attempts.heartbeat, keys, _positive("lease", lease), finishing=True)

    async def progress(
        self,
        claim: Claim,
        *,
        status_message: str | None = None,
        usage: Usage | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Job:
        """Note how a running job gets on; what is None stays as it is, and metadata is merged.

        Raises:
            InvalidJob: The metadata is not JSON, or the message cannot be stored.
            LeaseLost: The attempt has ended.
        """
        if status_message is not None:
            status_message = _storable(status_message)
        changes = _metadata(metadata)
        return await self._backend.write(attempts.progress, claim, status_message, usage, changes)

    @asynccontextmanager
    async def output(self, claim: Claim) -> AsyncIterator[OutputWriter]:
        """Stream a response into a file while the job runs.

        `write` returns when the text is buffered. It is in the file within 250 ms or 8 KB, and on the disk
        within a second, so a crash loses no more than that. Leaving does not complete the job: `complete`
        without a response does, and takes what was streamed for the response.

        Raises:
            LeaseLost: The attempt has ended.
            DiskFull: There is no room.
            OutputError: The attempt has an output already, or the file cannot be written.

        Example:
            >>> async with store.jobs.output(claim) as output:
            ...     async for text in ask_model(claim.prompt):
            ...         await output.write(text)
            >>> await store.jobs.complete(claim)
        """
        text, file = await self._backend.create_output(claim.job_id)

        def undo() -> None:
            file.close()
            self._backend.discard([file.path])

        try:
            await self._backend.write(
                attempts.open_output, claim, text, finishing=True, abandoned=lambda _: file.close()
            )
        except asyncio.CancelledError:
            raise  # the file stays: the row may name it. If it does not, a sweep takes it
        except BaseException:
            undo()
            raise
        key = (claim.job_id, claim.attempt)
        writer = self._writers[key] = OutputWriter(file)
        try:
            yield writer
        finally:
            await finish(self._close_output(claim, writer))

    async def _close_output(self, claim: Claim, writer: OutputWriter) -> None:
        self._writers.pop((claim.job_id, claim.attempt), None)
        try:
            await writer.close()
        finally:
            await self._backend.write(attempts.close_output, claim, writer.size, finishing=True)

    async def complete(
        self,
        claim: Claim,
        response: str | None = None,
        *,
        usage: Usage | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Job:
        """running → completed. Repeating one's own `complete` returns the job.

        A late answer, after the lease was lost, counts while no later attempt has begun and the job was not
        canceled, because answers cost money.

        Args:
            claim: What was claimed.
            response: The answer; above the inline limit it goes to a file. Without one, what was streamed
                through `output()` is the response.
            usage: Tokens and cost.
            metadata: Merged into the job's.

        Raises:
            InvalidJob: The response cannot be stored, or the metadata is not JSON.
            LeaseLost: The attempt has ended in another way. Nothing was changed.
            DiskFull: There is no room. Nothing was changed: try again.
        """
        changes = _metadata(metadata)
        if response is None:
            return await self._complete_streamed(claim, usage, changes)
        text = await self._backend.store_text("response", "responses", claim.job_id, response)
        return await self._backend.write_text(
            text, "output_file_path", attempts.complete, claim, text, usage, changes, finishing=True
        )

    async def _complete_streamed(
        self, claim: Claim, usage: Usage | None, changes: dict[str, Any] | None
    ) -> Job:
        writer = self._writers.pop((claim.job_id, claim.attempt), None)
        if writer is not None:
            await writer.close()
        attempt = await self._backend.read(attempts.get_attempt, claim.job_id, claim.attempt)
        path = None if attempt is None else attempt.output_file_path
        if path is None:
            return await self._backend.write(
                attempts.complete, claim, Text(None), usage, changes, finishing=True
            )
        text = await in_thread(self._backend.outputs.measure, path)
        if (text.size or 0) > self._backend.inline_limit:
            return await self._backend.write(attempts.complete, claim, text, usage, changes, finishing=True)
        data = await in_thread(self._backend.outputs.read, path)
        return await self._complete_inline(claim, Text(data.decode(), size=len(data)), path, usage, changes)

    async def _complete_inline(
        self, claim: Claim, text: Text, path: str, usage: Usage | None, changes: dict[str, Any] | None
    ) -> Job:
        """Move a small streamed answer from its file into the row."""

        def settle(job: Job | None) -> None:
            if job is not None:
                self._backend.discard([path])

        job = await self._backend.write(
            partial(attempts.complete, keep_output=False),
            claim,
            text,
            usage,
            changes,
            finishing=True,
            abandoned=settle,
        )
        settle(job)
        return job

    async def fail(
        self,
        claim: Claim,
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        error_type: str | None = None,
    ) -> Job:
        """running → scheduled if `retry_in` seconds are given and attempts remain, else failed.

        A job that was asked to end becomes canceled. What was streamed stays readable.

        Args:
            claim: What was claimed.
            error: What went wrong. Of an exception, its text, and its class name is the error type.
            retry_in: Seconds until it may be tried again; None is never.
            error_type: A short name of what went wrong.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        if isinstance(error, BaseException):
            error_type = error_type or type(error).__name__
        delay = None if retry_in is None else _not_negative("retry_in", retry_in)
        message = _storable(str(error))
        return await self._backend.write(
            attempts.fail, claim, error_type, message, delay, finishing=True, wakes=True
        )

    async def snooze(self, claim: Claim, seconds: float) -> Job:
        """running → scheduled in so many seconds. It does not use up an attempt.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        delay = _not_negative("seconds", seconds)
        return await self._backend.write(attempts.snooze, claim, delay, finishing=True, wakes=True)

    async def release(self, claim: Claim) -> Job:
        """running → idle at once. It does not use up an attempt.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        return await self._backend.write(attempts.release, claim, finishing=True, wakes=True)

    async def cancel_claimed(self, claim: Claim, reason: str) -> Job:
        """running → canceled, by the one who holds the claim.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        return await self._backend.write(attempts.cancel_claimed, claim, _storable(reason), finishing=True)

    # Steering jobs

    async def cancel(self, job_id: str) -> Job:
        """idle or scheduled → canceled. A running job is asked to end: its next heartbeat tells its worker.

        Raises:
            JobNotFound: There is no such job.
            InvalidTransition: It has ended already.
        """
        return await self._backend.write(jobs.cancel, job_id)

    async def cancel_session(self, session_id: str) -> int:
        """Cancel all unfinished jobs of a session; return how many that were.

        Raises:
            SessionNotFound: There is no such session.
        """
        total = 0
        while canceled := await self._backend.write(jobs.cancel_session, session_id):
            total += canceled
        return total

    async def retry(self, job_id: str) -> Job:
        """failed, canceled or completed → idle, with all its attempts before it again.

        What it answered before stays readable until a new answer is recorded.

        Raises:
            JobNotFound: There is no such job.
            InvalidTransition: It has not ended.
        """
        return await self._backend.write(jobs.retry, job_id, wakes=True)

    async def clear(self, job_ids: Iterable[str] | None = None, *, older_than: float | None = None) -> int:
        """Hide jobs from lists: those named, or those that ended at least `older_than` seconds ago.

        Returns:
            How many were not hidden before.

        Raises:
            InvalidArgument: Neither or both were given.
        """
        if (job_ids is None) == (older_than is None):
            raise InvalidArgument("job_ids", "give either job_ids or older_than")
        if job_ids is not None:
            return await self._clear_named(job_ids)
        age = _not_negative("older_than", older_than or 0.0)
        total, after = 0, (-(2**63), "")
        while cleared := await self._backend.write(jobs.clear_finished, age, after):
            total += cleared[0]
            after = cleared[1:]
        return total

    async def _clear_named(self, job_ids: Iterable[str]) -> int:
        if isinstance(job_ids, str):
            job_ids = [job_ids]
        total, remaining = 0, iter(job_ids)
        while part := list(itertools.islice(remaining, jobs.MAX_ROWS)):
            total += await self._backend.write(jobs.clear, part)
        return total

    async def prune(self, *, older_than: float) -> int:
        """Delete the jobs that ended at least `older_than` seconds ago, with their attempts and files.

        Returns:
            How many were deleted.
        """
        age = _not_negative("older_than", older_than)
        return await delete_all(self._backend, jobs.prune, age)

    # Reading jobs

    async def get(self, job_id: str) -> Job:
        """Return a job with the texts that lie in its row.

        Raises:
            JobNotFound: There is no such job.
        """
        return await self._backend.read(jobs.get, job_id)

    async def list(
        self,
        *,
        status: JobStatus | str | Sequence[JobStatus | str] | None = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        cleared: bool | None = False,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
        order: listing.Order = "newest",
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Return a part of the jobs, without their texts.

        Args:
            status: One or several; None is any.
            session_id: Of this session.
            task_type: Of this task type.
            api_type: For this API.
            cleared: Hidden ones: False leaves them out, True gives only them, None both.
            created_before: Before this aware datetime.
            created_after: At or after this aware datetime.
            order: "newest" first, or "active": running, then waiting, then finished, each newest first.
            limit: How many at most, 1 to 1,000.
            cursor: The `next_cursor` of the part before.

        Raises:
            InvalidArgument: An argument cannot be accepted; it names the argument.

        Example:
            >>> page = await store.jobs.list(status="failed", limit=20)
            >>> more = await store.jobs.list(status="failed", limit=20, cursor=page.next_cursor)
        """
        if order not in {"newest", "active"}:
            raise InvalidArgument("order", 'must be "newest" or "active"')
        _check_range("limit", limit, 1, jobs.MAX_ROWS)
        where = _filter(status, session_id, task_type, api_type, cleared, created_before, created_after)
        begin = None if cursor is None else listing.Cursor.decode(cursor)
        return await self._backend.read(listing.list_jobs, where, order, limit, begin)

    async def count(
        self,
        *,
        status: JobStatus | str | Sequence[JobStatus | str] | None = None,
        session_id: str | None = None,
        task_type: str | None = None,
        api_type: str | None = None,
        cleared: bool | None = None,
        created_before: datetime | None = None,
        created_after: datetime | None = None,
    ) -> int:
        """Return how many jobs there are; the arguments are those of `list`, but hidden jobs count as well."""
        where = _filter(status, session_id, task_type, api_type, cleared, created_before, created_after)
        return await self._backend.read(listing.count_jobs, where)

    async def stats(self) -> JobStats:
        """Return how many jobs there are by status and lane."""
        return await self._backend.read(listing.stats)

    async def attempts(self, job_id: str) -> builtins.list[Attempt]:
        """Return a job's attempts, the first first; none for an unknown job."""
        return await self._backend.read(attempts.attempts, job_id)

    async def read_prompt(self, job_id: str) -> str:
        """Return the whole prompt of a job.

        Raises:
            JobNotFound: There is no such job.
            OutputError: Its file is missing, damaged, or lies outside the outputs folder.
        """
        return await texts.read_prompt(self._backend, job_id)

    async def read_response(self, job_id: str) -> str | None:
        """Return the whole response of a job; of an unfinished or failed one, its latest partial response.

        Returns:
            The text; None if nothing was answered.

        Raises:
            JobNotFound: There is no such job.
            OutputError: Its file is missing, damaged, or lies outside the outputs folder.
        """
        return await texts.read_response(self._backend, job_id)

    def open_response(self, job_id: str) -> AsyncIterator[str]:
        """Yield what `read_response` returns, in parts, holding only one of them in memory.

        Raises:
            JobNotFound: There is no such job.
            OutputError: Its file is missing, lies outside the outputs folder, or, at the end, proves damaged.

        Example:
            >>> async for text in store.jobs.open_response(job.id):
            ...     print(text, end="")
        """
        return texts.open_response(self._backend, job_id)

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield a response from its beginning on, while it is being written by any process.

        A job that waits is waited for. The end comes when the attempt ends, in whatever way.

        Raises:
            JobNotFound: There is no such job.
            OutputRestarted: A new attempt has begun: tail again from the beginning.
            OutputError: The file cannot be read.

        Example:
            >>> async for text in store.jobs.tail(job.id):
            ...     print(text, end="", flush=True)
        """
        return texts.tail(self._backend, job_id)

    # Waiting

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - the contract
        """Wait until a job has ended and return it.

        Raises:
            JobNotFound: There is no such job, or it was pruned meanwhile.
            TimeoutError: It has not ended within `timeout` seconds.
        """
        signal = self._backend.engine.changes
        async with asyncio.timeout(timeout):
            while True:
                seen = signal.count
                job = await self._backend.read(jobs.get, job_id)
                if job.status.is_terminal:
                    return job
                await self._backend.wait(signal, seen, None)

    async def wake(self, since: int | None = None) -> int:
        """Wait until there may be new work, and return a token of now.

        Args:
            since: A token taken before looking for work: nothing that came after it is missed. Without one, a
                token is returned at once.

        Example:
            >>> token = await store.jobs.wake()
            >>> while not (claims := await store.jobs.claim("worker-1")):
            ...     token = await store.jobs.wake(since=token)
        """
        signal = self._backend.engine.work
        if since is None:
            self._backend.check_usable()
            return signal.count
        due = await self._backend.read(jobs.next_due)
        if due is None:
            return await self._backend.wait(signal, since, None)
        delay = max(0, due - self._backend.engine.clock())
        return await self._backend.wait(signal, since, delay / 1000)

    # Parts of the above

    def _release_soon(self, claims: Sequence[Claim]) -> None:
        if claims:
            self._backend.engine.write_soon(attempts.release_many, list(claims), wakes=True)

    def _release_claimed(self, claimed: attempts.Claimed | None) -> None:
        if claimed is not None:
            self._release_soon(claimed.claims)

    async def _with_prompts(self, claims: Sequence[Claim]) -> builtins.list[Claim]:
        """Load the prompts that lie in files; fail the jobs whose prompt cannot be read."""
        loaded: list[Claim] = []
        for claim in claims:
            if claim.job.prompt_file_path is None:
                loaded.append(claim)
                continue
            try:
                prompt = await texts.load_prompt(self._backend, claim.job)
            except OutputError as error:
                await self.fail(claim, error, error_type="prompt_unreadable")
            else:
                loaded.append(claim.model_copy(update={"job": claim.job.with_prompt(prompt)}))
        return loaded


async def delete_all(backend: Backend, make_operation: Any, argument: object) -> int:  # noqa: ANN401
    """Repeat an operation that deletes some jobs until none is left; remove the files of each round."""

    def remove_files(pruned: jobs.Pruned | None) -> None:
        if pruned is not None and pruned.file_paths:
            backend.discard(pruned.file_paths)

    total = 0
    while True:
        pruned: jobs.Pruned = await backend.write(make_operation, argument, abandoned=remove_files)
        remove_files(pruned)
        total += pruned.jobs
        if not pruned.jobs:
            return total


def _filter(
    status: JobStatus | str | Sequence[JobStatus | str] | None,
    session_id: str | None,
    task_type: str | None,
    api_type: str | None,
    cleared: bool | None,
    created_before: datetime | None,
    created_after: datetime | None,
) -> listing.JobFilter:
    return listing.JobFilter(
        statuses=_statuses(status),
        session_id=session_id,
        task_type=task_type,
        api_type=api_type,
        cleared=cleared,
        created_before=_milliseconds("created_before", created_before),
        created_after=_milliseconds("created_after", created_after),
    )


def _statuses(status: JobStatus | str | Sequence[JobStatus | str] | None) -> list[JobStatus] | None:
    if status is None:
        return None
    try:
        return [JobStatus(one) for one in dict.fromkeys([status] if isinstance(status, str) else status)]
    except ValueError:
        raise InvalidArgument("status", f"must be one of {', '.join(JobStatus)}") from None


def _milliseconds(field: str, moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidArgument(field, "must be an aware datetime: give it a time zone")
    return to_milliseconds(moment)


def _names(field: str, values: Sequence[str] | None) -> list[str] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise InvalidJob(field, "must be a list of names, not one text")
    for value in values:
        check_identifier(field, value)
    return list(values)


def _check_range(field: str, value: int, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidJob(field, f"must be a whole number from {lowest} to {highest:,}")


def _positive(field: str, duration: float) -> int:
    """Return a duration in milliseconds."""
    if not duration > 0 or duration == float("inf"):
        raise InvalidJob(field, "must be a number of seconds above 0")
    return max(1, seconds(duration))


def _not_negative(field: str, duration: float) -> int:
    """Return a duration in milliseconds."""
    if not duration >= 0 or duration == float("inf"):
        raise InvalidJob(field, "must be a number of seconds, 0 or more")
    return seconds(duration)


def _metadata(metadata: Mapping[str, JsonValue] | None) -> dict[str, Any] | None:
    """Check changes of a job's metadata."""
    if metadata is None:
        return None
    try:
        encode_json("metadata", dict(metadata))
    except InvalidArgument as error:
        raise InvalidJob(error.field, error.reason) from None
    return dict(metadata)


def _storable(message: str) -> str:
    """Return a message with what no database can hold written out: a report must not be lost over it."""
    return message.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
