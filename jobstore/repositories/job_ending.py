"""The part of `store.jobs` that ends attempts: complete, fail, snooze, release; and the calls to models with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import JsonValue

from jobstore.aio import in_thread
from jobstore.errors import InvalidArgument, JobStoreError, LeaseLost, OutputError
from jobstore.lifecycle import AttemptOutcome
from jobstore.models import Attempt, Claim, Job, Text, Usage
from jobstore.operations import attempts, calls, pausing
from jobstore.operations import texts as operations
from jobstore.operations.calls import Settled
from jobstore.outputs import OutputWriter, TextDecoder
from jobstore.repositories.arguments import check_claim, check_usage, not_negative, optional_text, storable
from jobstore.repositories.arguments import (
    metadata as check_metadata,
)
from jobstore.repositories.backend import Backend
from jobstore.sql import MakeOperation


class JobEnding:
    """Reporting what became of attempts."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writers: dict[tuple[str, int], OutputWriter] = {}
        """What streams the answers of running attempts."""

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
        with self._ending(claim) as settled:
            if response is None:
                return await self._complete_streamed(claim, usage, changes, settled)
            text = await self._backend.store_text("response", "responses", claim.job_id, response)
            complete = calls.settling(settled, attempts.complete)
            job: Job = await self._backend.write_text(
                text, "output_file_path", complete, claim, text, usage, changes, finishing=True
            )
            self._forget_output(claim)
            return job

    async def _complete_streamed(
        self, claim: Claim, usage: Usage | None, changes: dict[str, Any] | None, settled: Sequence[Settled]
    ) -> Job:
        writer = self._writers.get((claim.job_id, claim.attempt))
        path, reached = await self._streamed(claim, writer)
        text, inline = Text(None), None
        try:
            if path is not None:
                text, inline = await in_thread(_measure, self._backend, path, reached)
        except OutputError:
            again = await self._attempt(claim)
            if again is not None and again.output_file_path == path:
                raise
            # The same call was made twice at once, and the other has completed the job; or the job is gone.
        if path is not None and inline is not None:
            move = calls.settling(settled, operations.move_into_row)
            job = await self._complete_inline(move, claim, Text(inline, size=text.size), path, usage, changes)
        else:
            complete = calls.settling(settled, attempts.complete)
            job = await self._backend.write(complete, claim, text, usage, changes, finishing=True)
        if writer is not None:
            writer.noted = writer.size
        return job

    async def _streamed(self, claim: Claim, writer: OutputWriter | None) -> tuple[str | None, int]:
        """Return where an answer was streamed to, None if nowhere, and how many bytes have reached it."""
        if writer is not None:
            await writer.close()
            return writer.path, writer.size
        attempt = await self._attempt(claim)
        if attempt is None or attempt.outcome is AttemptOutcome.COMPLETED:
            return None, 0
        return attempt.output_file_path, attempt.output_bytes or 0

    async def _attempt(self, claim: Claim) -> Attempt | None:
        """Return the attempt's row, by way of the writer: a paid answer must not wait for the pool of readers."""
        return await self._backend.write(attempts.get_attempt, claim.job_id, claim.attempt, finishing=True)

    async def _complete_inline(
        self,
        move: MakeOperation[..., operations.Moved],
        claim: Claim,
        text: Text,
        path: str,
        usage: Usage | None,
        changes: dict[str, Any] | None,
    ) -> Job:
        """Move a small streamed answer from its file into the row."""

        def remove_file(moved: operations.Moved | None) -> None:
            if moved is not None and moved.file_path is not None:
                self._backend.discard([moved.file_path])

        moved: operations.Moved = await self._backend.write(
            move, claim, text, path, usage, changes, finishing=True, abandoned=remove_file
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
            error: What went wrong. Of an exception, its text, and its class name is the error type; of a
                `ProviderError`, its category.
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
            kind = kind or (error.error_type if isinstance(error, JobStoreError) else type(error).__name__)
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
        with self._ending(claim) as settled:
            end = calls.settling(settled, make_operation)
            job = await self._backend.write(end, claim, *args, finishing=True, wakes=True)
        self._forget_output(claim)
        return job

    @contextmanager
    def _ending(self, claim: Claim) -> Iterator[list[Settled]]:
        """Say nothing of a claim while its holder ends it, and give what is to be settled with the end."""
        settled = self._backend.settlements.take(claim)
        try:
            with self._backend.leases.ending(claim):
                yield settled
        except BaseException as error:
            self._backend.settlements.put_back(claim, settled)
            if isinstance(error, LeaseLost):
                self._settle_soon(claim)
            raise

    def _settle_soon(self, claim: Claim) -> None:
        """Settle by themselves the calls of an attempt that someone else has ended."""
        if settled := self._backend.settlements.take(claim):
            self._backend.write_soon(calls.settle_all, settled)

    def _forget_output(self, claim: Claim) -> None:
        self._writers.pop((claim.job_id, claim.attempt), None)


def _measure(backend: Backend, path: str, reached: int) -> tuple[Text, str | None]:
    """Return what a row has to say of a streamed file, and its text if that belongs into the row."""
    text = backend.outputs.measure(path, reached)
    if text.size is None or text.size > backend.inline_limit:
        return text, None
    data = backend.outputs.read(path, text.size, text.sha256)
    return text, TextDecoder().decode(data, path, last=True) if backend.fits_row(data) else None
