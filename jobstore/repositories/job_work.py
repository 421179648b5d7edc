"""The part of `store.jobs` that those use who work on jobs: claim, stream, report."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from pydantic import JsonValue

from jobstore.aio import finish, in_thread, together
from jobstore.errors import InvalidArgument, JobStoreError, LeaseLost, OutputError
from jobstore.lifecycle import AttemptOutcome
from jobstore.models import Attempt, Claim, Heartbeat, Job, Text, Usage, check_identifier
from jobstore.operations import attempts, leasing, pausing
from jobstore.operations import texts as operations
from jobstore.outputs import OutputWriter, TextDecoder
from jobstore.repositories import texts
from jobstore.repositories.arguments import (
    check_claim,
    check_range,
    check_usage,
    names,
    not_negative,
    optional_text,
    positive,
    several,
    storable,
)
from jobstore.repositories.arguments import (
    metadata as check_metadata,
)
from jobstore.repositories.backend import Backend, is_unsettled
from jobstore.sql import MakeOperation

MAX_CLAIMS = 10_000
PROMPTS_AT_ONCE = 16
"""Read at the same time: the leases run meanwhile, and object storage takes its time for each."""


class JobWork:
    """Claiming jobs and reporting on them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writers: dict[tuple[str, int], OutputWriter] = {}

    async def claim(
        self,
        worker_id: str,
        *,
        limit: int = 1,
        lease: float = 30.0,
        task_types: Sequence[str] | None = None,
        api_types: Sequence[str] | None = None,
    ) -> list[Claim]:
        """Idle → running, for up to `limit` jobs: the highest priority first, then the oldest.

        Leases that have ended are rescued first, jobs that have expired are canceled, and scheduled jobs that fell due
        are promoted. Lanes that are paused are passed over; see `store.lanes`. Cancelling
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
            DiskLow: Less room is left than `min_free_bytes`: nothing new is begun.

        Example:
            >>> [claim] = await store.jobs.claim("worker-1")
        """
        check_identifier("worker_id", worker_id)
        check_range("limit", limit, 1, MAX_CLAIMS)
        milliseconds = positive("lease", lease)
        tasks, apis = names("task_types", task_types), names("api_types", api_types)
        if tasks == [] or apis == []:
            return []
        await self._backend.disk.require_room()
        claims: list[Claim] = []
        try:
            while True:
                claimed: leasing.Claimed = await self._backend.write(
                    leasing.claim,
                    worker_id,
                    limit - len(claims),
                    milliseconds,
                    tasks,
                    apis,
                    wakes=True,  # it began leases that will end, and may have rescued or promoted others' jobs
                    abandoned=self._release_claimed,
                )
                arrived = await self._arrived(claimed.claims, milliseconds)
                claims += arrived
                more = claimed.more_due or len(arrived) < len(claimed.claims)
                if len(claims) == limit or not more:
                    return claims
        except BaseException:
            self._release_soon(claims)
            raise

    async def heartbeat(self, claims: Sequence[Claim], *, lease: float = 30.0) -> list[Heartbeat]:
        """Renew leases for `lease` seconds from now; one answer each, in the order given.

        Raises:
            InvalidJob: The lease is not positive.

        Example:
            >>> [beat] = await store.jobs.heartbeat([claim])
            >>> if not beat.extended:
            ...     stop_working()
        """
        listed = several("claims", claims)
        for claim in listed:
            check_claim(claim)
        keys = [(claim.job_id, claim.attempt) for claim in listed]
        return await self._backend.write(leasing.heartbeat, keys, positive("lease", lease), finishing=True)

    @contextmanager
    def lease_kept(
        self,
        claim: Claim,
        *,
        lease: float = 30.0,
        lost: Callable[[], None] = lambda: None,
        cancel_requested: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Keep a claim's lease alive, from a thread of the store, even while the event loop is blocked.

        Args:
            claim: What was claimed.
            lease: Seconds by which it is renewed, each time a third of them has passed.
            lost: Called in the event loop if the attempt has ended: stop working on it.
            cancel_requested: Called in the event loop, once, soon after someone wants the job canceled. That it was
                is noted in the attempt.

        Example:
            >>> with store.jobs.lease_kept(claim, lost=task.cancel):
            ...     await work_on(claim)
        """
        check_claim(claim)
        positive("lease", lease)
        leases = self._backend.leases

        def told() -> None:
            self._backend.write_soon(attempts.acknowledge_cancel, claim)
            cancel_requested()

        leases.keep(claim, lease, lost, told)
        try:
            yield
        finally:
            leases.forget(claim)

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
        check_claim(claim)
        check_usage(usage)
        message, changes = optional_text("status_message", status_message), check_metadata(metadata)
        return await self._backend.write(attempts.progress, claim, message, usage, changes)

    @asynccontextmanager
    async def output(self, claim: Claim) -> AsyncIterator[OutputWriter]:
        """Stream a response into the outputs while the job runs.

        `write` returns when the text is buffered. It is in the file within 250 ms or 8 KB, and on the disk
        within a second; in object storage both are within a second and an upload. A crash loses no more than that.
        Leaving does not complete the job: `complete` without a response does, and takes what was streamed for the
        response.

        Raises:
            LeaseLost: The attempt has ended.
            DiskFull: There is no room.
            OutputTooLarge: A piece was refused: with it, there would be more than `max_output_bytes`.
            OutputError: The attempt has an output already, or the file cannot be written.

        Example:
            >>> async with store.jobs.output(claim) as output:
            ...     async for text in ask_model(claim.prompt):
            ...         await output.write(text)
            >>> await store.jobs.complete(claim)
        """
        check_claim(claim)
        text, file = await self._backend.create_output(claim.job_id)

        def remove(taken_back: str | None) -> None:
            if taken_back is not None:
                self._backend.discard([taken_back])

        def undo(path: str | None) -> None:
            file.close()
            if path is None:  # no row names it
                self._backend.discard([file.path])
            else:  # the caller was cancelled after that: let it open another
                self._backend.write_soon(attempts.take_back_output, claim, path, abandoned=remove)

        try:
            await self._backend.write(attempts.open_output, claim, text, finishing=True, abandoned=undo)
        except BaseException as error:
            if not is_unsettled(error):
                undo(None)
            raise
        key = (claim.job_id, claim.attempt)
        writer = self._writers[key] = OutputWriter(file, self._backend.max_output_bytes)
        try:
            yield writer
        finally:
            await finish(self._close_output(claim, writer))

    async def _close_output(self, claim: Claim, writer: OutputWriter) -> None:
        try:
            await writer.close()
            self._forget_output(claim)
        except JobStoreError:
            # It stays known, so that complete() does not take it for whole; unless an outcome is recorded already.
            if self._writers.get((claim.job_id, claim.attempt)) is writer:
                raise
        finally:
            await self._backend.write(attempts.close_output, claim, writer.path, writer.size, finishing=True)

    def _forget_output(self, claim: Claim) -> None:
        self._writers.pop((claim.job_id, claim.attempt), None)

    async def complete(
        self,
        claim: Claim,
        response: str | None = None,
        *,
        usage: Usage | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Job:
        """Running → completed. Repeating one's own `complete` returns the job.

        A late answer, after the lease was lost, counts while no later attempt has begun and nobody canceled the
        job, because answers cost money.

        Args:
            claim: What was claimed.
            response: The answer; above the inline limit it goes to a file. Without one, what was streamed
                through `output()` is the response.
            usage: Tokens and cost.
            metadata: Merged into the job's.

        Raises:
            InvalidJob: The response cannot be stored, or the metadata is not JSON.
            OutputTooLarge: The response has more than `max_output_bytes`. Nothing was changed: fail the job.
            LeaseLost: The attempt has ended in another way. Nothing was changed.
            DiskFull: There is no room. Nothing was changed: try again. If it was a streamed answer that found none,
                what was streamed is not whole: give the answer, or fail the job.
        """
        check_claim(claim)
        check_usage(usage)
        changes = check_metadata(metadata)
        with self._backend.leases.ending(claim):
            if response is None:
                return await self._complete_streamed(claim, usage, changes)
            text = await self._backend.store_text("response", "responses", claim.job_id, response)
            job: Job = await self._backend.write_text(
                text, "output_file_path", attempts.complete, claim, text, usage, changes, finishing=True
            )
            self._forget_output(claim)
            return job

    async def _complete_streamed(self, claim: Claim, usage: Usage | None, changes: dict[str, Any] | None) -> Job:
        writer = self._writers.get((claim.job_id, claim.attempt))
        if writer is not None:
            await writer.close()
        attempt = await self._attempt(claim)
        path = None if attempt is None or attempt.outcome is AttemptOutcome.COMPLETED else attempt.output_file_path
        if attempt is None or path is None:
            return await self._backend.write(attempts.complete, claim, Text(None), usage, changes, finishing=True)
        try:
            reached = max(attempt.output_bytes or 0, 0 if writer is None else writer.size)
            text, inline = await in_thread(_measure, self._backend, path, reached)
        except OutputError:
            again = await self._attempt(claim)
            if again is None or again.output_file_path == path:
                raise
            return await self._complete_streamed(claim, usage, changes)  # the same call was made twice at once
        if inline is None:
            return await self._backend.write(attempts.complete, claim, text, usage, changes, finishing=True)
        return await self._complete_inline(claim, Text(inline, size=text.size), path, usage, changes)

    async def _attempt(self, claim: Claim) -> Attempt | None:
        """Return the attempt's row, by way of the writer: a paid answer must not wait for the pool of readers."""
        return await self._backend.write(attempts.get_attempt, claim.job_id, claim.attempt, finishing=True)

    async def _complete_inline(
        self, claim: Claim, text: Text, path: str, usage: Usage | None, changes: dict[str, Any] | None
    ) -> Job:
        """Move a small streamed answer from its file into the row."""

        def remove_file(moved: operations.Moved | None) -> None:
            if moved is not None and moved.file_path is not None:
                self._backend.discard([moved.file_path])

        moved: operations.Moved = await self._backend.write(
            operations.move_into_row, claim, text, path, usage, changes, finishing=True, abandoned=remove_file
        )
        remove_file(moved)
        return moved.job

    async def fail(
        self,
        claim: Claim,
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        error_type: str | None = None,
        traceback: str | None = None,
        pause_lane: bool = False,
    ) -> Job:
        """Running → scheduled if `retry_in` seconds are given and attempts remain, else failed.

        A job that was asked to end becomes canceled. What was streamed stays readable.

        Args:
            claim: What was claimed.
            error: What went wrong. Of an exception, its text, and its class name is the error type.
            retry_in: Seconds until it may be tried again; None is never.
            error_type: A short name of what went wrong.
            traceback: Where it went wrong; it is kept with the attempt.
            pause_lane: Claim nothing of the same task type for the same API either, for `retry_in` seconds: the API
                has said that it wants to be left alone. In the same transaction, and also if this job has no
                attempts left. A pause that would last longer already stays as it is.

        Raises:
            InvalidArgument: The lane is to be paused, but `retry_in` does not say for how long.
            LeaseLost: The attempt has ended. Nothing was changed.

        Example:
            >>> await store.jobs.fail(claim, "too many requests", retry_in=30.0, pause_lane=True)
        """
        check_claim(claim)
        kind = optional_text("error_type", error_type)
        if isinstance(error, BaseException):
            kind = kind or type(error).__name__
        delay = None if retry_in is None else not_negative("retry_in", retry_in)
        message = storable(error)
        where = optional_text("traceback", traceback)
        if not pause_lane:
            return await self._end(attempts.fail, claim, kind, message, delay, where)
        if delay is None:
            raise InvalidArgument("pause_lane", "needs retry_in, the seconds for which the lane is paused")
        return await self._end(pausing.fail_and_pause, claim, kind, message, delay, where)

    async def snooze(self, claim: Claim, seconds: float) -> Job:
        """Running → scheduled in so many seconds. It does not use up an attempt.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        check_claim(claim)
        delay = not_negative("seconds", seconds)
        return await self._end(attempts.snooze, claim, delay)

    async def release(self, claim: Claim) -> Job:
        """Running → idle at once. It does not use up an attempt.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        check_claim(claim)
        return await self._end(attempts.release, claim)

    async def cancel_claimed(self, claim: Claim, reason: str) -> Job:
        """Running → canceled, by the one who holds the claim.

        Raises:
            LeaseLost: The attempt has ended. Nothing was changed.
        """
        check_claim(claim)
        return await self._end(attempts.cancel_claimed, claim, storable(reason))

    async def _end(
        self,
        make_operation: MakeOperation[..., Job],
        claim: Claim,
        *args: Any,  # noqa: ANN401 - the operation's own
    ) -> Job:
        """Run an operation that ends an attempt without an answer."""
        with self._backend.leases.ending(claim):
            job = await self._backend.write(make_operation, claim, *args, finishing=True, wakes=True)
        self._forget_output(claim)
        return job

    def _release_soon(self, claims: Sequence[Claim]) -> None:
        if claims:
            self._backend.write_soon(attempts.release_many, list(claims), wakes=True)

    def _release_claimed(self, claimed: leasing.Claimed | None) -> None:
        if claimed is not None:
            self._release_soon(claimed.claims)

    async def _arrived(self, claims: Sequence[Claim], lease: int) -> list[Claim]:
        """Return claims as their holder gets them: those that can be read, and are held still when they are."""
        try:
            return await self._backend.leases.confirm(await self._with_prompts(claims), lease)
        except BaseException:
            self._release_soon(claims)  # what has ended meanwhile is passed over
            raise

    async def _with_prompts(self, claims: Sequence[Claim]) -> list[Claim]:
        """Load the prompts that lie in files; fail the jobs whose prompt cannot be read."""
        if all(claim.job.prompt_file_path is None for claim in claims):
            return list(claims)
        loaded: list[Claim | None] = []
        for start in range(0, len(claims), PROMPTS_AT_ONCE):
            batch = claims[start : start + PROMPTS_AT_ONCE]
            loaded += await together([self._with_prompt(claim) for claim in batch])
        return [claim for claim in loaded if claim is not None]

    async def _with_prompt(self, claim: Claim) -> Claim | None:
        """Return a claim with its prompt; None if that cannot be read."""
        if claim.job.prompt_file_path is None:
            return claim
        prompt = await self._prompt_or_failure(claim)
        return None if prompt is None else claim.model_copy(update={"job": claim.job.with_prompt(prompt)})

    async def _prompt_or_failure(self, claim: Claim) -> str | None:
        """Return the prompt that lies in a file, or fail the job and return None."""
        try:
            return await texts.load_prompt(self._backend, claim.job)
        except OutputError as error:
            # If the whole folder is away, this is not the job's own trouble.
            await in_thread(self._backend.outputs.check_there, claim.job.prompt_file_path or "")
            with contextlib.suppress(LeaseLost):  # a short lease: someone else will find the same
                await self.fail(claim, error, error_type="prompt_unreadable")
        return None


def _measure(backend: Backend, path: str, reached: int) -> tuple[Text, str | None]:
    """Return what a row has to say of a streamed file, and its text if that belongs into the row."""
    text = backend.outputs.measure(path, reached)
    if text.size is None or text.size > backend.inline_limit:
        return text, None
    data = backend.outputs.read(path, text.size, text.sha256)
    return text, TextDecoder().decode(data, path, last=True) if backend.fits_row(data) else None
