"""Handlers that ask a model for the answer: what the job says is the request, and errors say how the job goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from jobstore import InvalidArgument, InvalidJob, UnknownPolicy
from jobstore.providers import Category, ProviderError, Request
from jobstore.providers.recording import adapter_to_ask, check_policy
from jobstore.workers.context import JobContext
from jobstore.workers.outcomes import Fail, Outcome, Retry

QUOTA_PAUSE = 3600.0
"""Seconds for which nothing is claimed for an API whose quota is used up: then one job looks whether that has changed.
Quotas begin anew each day or when someone pays; without the pause, each job that waits would fail of the same."""

ON_UNKNOWN = "on_unknown"
"""What a job's metadata may have to say what is done about it; see `UnknownPolicy`."""


@dataclass(frozen=True, slots=True)
class LLMHandler:
    """Does jobs by asking a model."""

    client: object
    on_unknown: UnknownPolicy = "retry"
    """Where the job does not say otherwise."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of the request, where the job says nothing."""

    def __post_init__(self) -> None:
        """Refuse what no job could be done with."""
        check_policy(self.on_unknown, adapter_to_ask(self.client))
        Request(**{"model": "any", "prompt": "any", **self.defaults})

    async def __call__(self, job: JobContext) -> None:
        """Ask, and stream the answer.

        Raises:
            Fail: There is no answer, and trying again would not help.
            Retry: There is no answer, and it may help.
        """
        try:
            async for _ in job.stream(self.client, on_unknown=self._policy(job), **self.defaults):
                pass
        except InvalidJob:  # of the answer, which cannot be stored
            raise
        except InvalidArgument as error:  # nothing was sent
            raise Fail(str(error), error_type="invalid_request") from None
        except ProviderError as error:
            if error.category == "quota_exhausted":
                api = job.job.api_type
                await job.store.lanes.pause(api_type=api, seconds=QUOTA_PAUSE, reason="its quota is used up")
            raise outcome_of(error) from error

    def _policy(self, job: JobContext) -> UnknownPolicy:
        return cast("UnknownPolicy", job.job.metadata.get(ON_UNKNOWN, self.on_unknown))  # `ask` checks it


def outcome_of(error: ProviderError) -> Outcome:
    """Return how a job goes on whose model gave no complete answer.

    What may succeed later is tried again while attempts remain: after the time that the provider has asked for, else
    by the handler's policy. A rate limit that names a time pauses the lane for it. All else fails for good.

    Example:
        >>> except ProviderError as error:
        ...     raise outcome_of(error) from error
    """
    category: Category = error.category
    if not error.retryable:
        return Fail(str(error), error_type=category)
    pauses = category == "rate_limited" and error.retry_after is not None
    return Retry(error.retry_after, str(error), error_type=category, pause_lane=pauses)
