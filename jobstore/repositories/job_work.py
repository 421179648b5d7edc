"""The part of `store.jobs` that those use who work on jobs: claim them, keep them, stream their answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from pydantic import JsonValue

from jobstore.aio import finish, in_thread, together
from jobstore.encoding import check_identifier
from jobstore.errors import JobStoreError, LeaseLost, OutputError
from jobstore.models import Claim, Heartbeat, Job, Usage
from jobstore.operations import attempts, leasing
from jobstore.outputs import OutputWriter
from jobstore.repositories import texts
from jobstore.repositories.arguments import (
    check_claim,
    check_range,
    check_usage,
    names,
    optional_text,
    positive,
    several,
)
from jobstore.repositories.arguments import (
    metadata as check_metadata,
)
from jobstore.repositories.backend import is_unsettled
from jobstore.repositories.job_ending import JobEnding

MAX_CLAIMS = 10_000
PROMPTS_AT_ONCE = 16
"""Read at the same time: the leases run meanwhile, and object storage takes its time for each."""


class JobWork(JobEnding):
    """Claiming jobs and streaming their answers."""

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
        self._backend.require_room()
        claims: list[Claim] = []
        more = True
        try:
            while more and len(claims) < limit:
                arrived, more = await self._claim_round(worker_id, limit - len(claims), milliseconds, tasks, apis)
                claims += arrived
        except BaseException:
            self._release_soon(claims)
            raise
        return claims

    async def _claim_round(
        self, worker_id: str, limit: int, lease: int, tasks: list[str] | None, apis: list[str] | None
    ) -> tuple[list[Claim], bool]:
        """Claim in one transaction; return what can be read of it, and whether there may be more."""
        claimed: leasing.Claimed = await self._backend.write(
            leasing.claim,
            worker_id,
            limit,
            lease,
            tasks,
            apis,
            wakes=True,  # it began leases that will end, and may have rescued or promoted others' jobs
            abandoned=self._release_claimed,
        )
        arrived = await self._arrived(claimed.claims, lease)
        return arrived, claimed.more_due or len(arrived) < len(claimed.claims)

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
            self._settle_soon(claim)

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
            if writer.size != writer.noted:
                await self._backend.write(attempts.close_output, claim, writer.path, writer.size, finishing=True)

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
        return None if prompt is None else claim.with_prompt(prompt)

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
