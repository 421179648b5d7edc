"""What a handler raises to say how its job goes on, other than by returning its answer."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from jobstore import Claim, Job
from jobstore.repositories.jobs import JobRepository


class Outcome(Exception):
    """The base of the outcomes that a handler raises."""

    is_failure: ClassVar[bool] = False
    """Whether something went wrong."""

    @abstractmethod
    async def report(self, jobs: JobRepository, claim: Claim, wait: float | None) -> Job:
        """Record it; `wait` is how many seconds the policy puts off a retry, or None for never."""
        raise NotImplementedError


class Retry(Outcome):
    """Try the job again while attempts remain, else it has failed.

    Args:
        after: Seconds until then; None leaves it to the handler's policy.
        reason: What went wrong.
        error_type: A short name of it.
        pause_lane: Claim nothing of the same task type for the same API until then either, in any process: what an
            API asks for that answers 429.
    """

    is_failure = True

    def __init__(
        self,
        after: float | None = None,
        reason: str = "",
        *,
        error_type: str = "retry",
        pause_lane: bool = False,
    ) -> None:
        self.after = after
        self.reason = reason
        self.error_type = error_type
        self.pause_lane = pause_lane
        super().__init__(reason)

    async def report(self, jobs: JobRepository, claim: Claim, wait: float | None) -> Job:
        """Running → scheduled, or failed when the attempts are used up."""
        after = wait if self.after is None else self.after
        pauses = self.pause_lane and after is not None
        return await jobs.fail(claim, self.reason, retry_in=after, error_type=self.error_type, pause_lane=pauses)


class Fail(Outcome):
    """The job has failed for good.

    Args:
        reason: What went wrong.
        error_type: A short name of it.
    """

    is_failure = True

    def __init__(self, reason: str = "", *, error_type: str = "failed") -> None:
        self.reason = reason
        self.error_type = error_type
        super().__init__(reason)

    async def report(self, jobs: JobRepository, claim: Claim, wait: float | None) -> Job:  # noqa: ARG002
        """Running → failed."""
        return await jobs.fail(claim, self.reason, error_type=self.error_type)


class Snooze(Outcome):
    """Put the job off; this attempt does not count.

    Args:
        seconds: For how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"for {seconds} s")

    async def report(self, jobs: JobRepository, claim: Claim, wait: float | None) -> Job:  # noqa: ARG002
        """Running → scheduled."""
        return await jobs.snooze(claim, self.seconds)


class Cancel(Outcome):
    """The job is not wanted any more.

    Args:
        reason: Why.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)

    async def report(self, jobs: JobRepository, claim: Claim, wait: float | None) -> Job:  # noqa: ARG002
        """Running → canceled."""
        return await jobs.cancel_claimed(claim, self.reason)
