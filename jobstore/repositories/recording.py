"""Recording a call that the program makes anyway: a running job that belongs to the caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from jobstore.aio import finish
from jobstore.calls import UnknownPolicy
from jobstore.errors import JobStoreError
from jobstore.models import Claim, Job, Usage
from jobstore.repositories.answers import AttemptAnswer
from jobstore.repositories.calls import CallRepository

if TYPE_CHECKING:
    from jobstore.providers import Request
    from jobstore.repositories.job_work import JobWork


class RecordedCall:
    """A call that is being recorded.

    Attributes:
        claim: The running job and its one attempt.
        job: The job as it was last heard of.
        lost: Whether the attempt has ended meanwhile; a late answer is recorded all the same if nobody else has.
        cancel_requested: Whether someone wants the job canceled.
    """

    def __init__(self, jobs: JobWork, calls: CallRepository, claim: Claim) -> None:
        self.claim = claim
        self.job: Job = claim.job
        self.lost = False
        self.cancel_requested = False
        self._jobs = jobs
        self._calls = calls
        self._answer = AttemptAnswer(jobs, claim)

    @property
    def answer(self) -> AttemptAnswer:
        """What there is of the response, for those who stream it."""
        return self._answer

    @property
    def finished(self) -> bool:
        """Whether its outcome is recorded."""
        return self.job.status.is_terminal

    async def write(self, text: str) -> None:
        """Add a piece of the response; it survives a crash from about a second later.

        Raises:
            InvalidJob: It cannot be stored.
            LeaseLost: The attempt has ended.
            DiskFull: There is no room for it.
            OutputError: It cannot be written.
        """
        await self._answer.write(text)

    def stream(
        self,
        client: object,
        request: Request | None = None,
        *,
        on_unknown: UnknownPolicy = "retry",
        **fields: Any,  # noqa: ANN401 - those of a Request
    ) -> AsyncGenerator[str, None]:
        """Ask a model and yield the text of its answer as it comes; all of it is recorded, and the request itself.

        The job is completed only if the answer came to its end. One that is left before is failed as
        `unfinished_answer`, and what came until then stays readable. Why the model stopped is in the job's metadata as
        `finish_reason`, and the calls of tools that it asks for as `tool_calls`. Its thoughts are not recorded.

        Args:
            client: An `AsyncAnthropic`, an `AsyncOpenAI` or a `genai.Client`; its own retries are off here.
            request: What to ask; by default the job's prompt, its `model_used`, and from its metadata what a
                `Request` has.
            on_unknown: What is noted to be done should the process die meanwhile; see `UnknownPolicy`.
            **fields: Of the request, where the job says nothing, such as `model` or `max_tokens`.

        Raises:
            InvalidArgument: The request cannot be put to this API; nothing was sent.
            ProviderError: There is no complete answer.
            LeaseLost: The attempt has ended.

        Example:
            >>> async with store.jobs.record("Say hello", task_type="greeting", api_type="claude") as call:
            ...     async for text in call.stream(AsyncAnthropic(), model="claude-opus-5-5", max_tokens=100):
            ...         print(text, end="")
        """
        # The store knows the providers by this one import, of who calls this: they are built upon it.
        from jobstore.providers.recording import ask  # noqa: PLC0415

        texts = ask(self._answer, self._calls, client, request, on_unknown=on_unknown, **fields)
        return self._answer.closes(texts)

    async def finish(self, text: str | None = None, *, usage: Usage | None = None) -> Job:
        """Record the call as completed; without a text, what was written is the response.

        Raises:
            LeaseLost: The attempt has ended in another way.
            AnswerUnfinished: No text is given, and a stream was left before the end of the model's answer.
            ProviderError: The same, because the model broke off.
        """
        if text is None and self._answer.broken is not None:
            raise self._answer.broken
        given = await self._answer.unopened() if text is None else text
        metadata = self._answer.metadata or None
        self.job = await self._jobs.complete(self.claim, given, usage=usage or self._answer.usage, metadata=metadata)
        await self._answer.close(keeps=False)
        return self.job

    def note_lost(self) -> None:
        """Note that the attempt has ended meanwhile."""
        self.lost = True

    def note_cancel_requested(self) -> None:
        """Note that someone wants the job canceled."""
        self.cancel_requested = True

    async def end(self, error: BaseException | None) -> None:
        """Record how the call ended, unless that is done; also when the caller is being cancelled."""
        await finish(self._end(error))

    async def _end(self, error: BaseException | None) -> None:
        if self.finished:
            return
        if error is None and self._answer.broken is not None:  # whoever caught it has heard of it
            error = self._answer.broken
        if error is not None:
            await self._record_failure(error)
            return
        try:
            await self.finish()
        except JobStoreError as failure:
            await self._record_failure(failure)
            raise

    async def _record_failure(self, error: BaseException) -> None:
        """Record an error as far as that is possible: the error itself is what the caller is to see."""
        with contextlib.suppress(JobStoreError):
            await self._answer.close()
        with contextlib.suppress(JobStoreError):
            if isinstance(error, asyncio.CancelledError):
                self.job = await self._jobs.cancel_claimed(self.claim, "the caller was cancelled")
            else:
                self.job = await self._jobs.fail(self.claim, error)
