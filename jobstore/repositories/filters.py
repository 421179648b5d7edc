"""Which jobs are meant: the filters that listing, counting and changing many jobs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeAlias

from jobstore.errors import InvalidArgument
from jobstore.lifecycle import JobStatus
from jobstore.operations import listing
from jobstore.repositories.arguments import milliseconds

Statuses: TypeAlias = JobStatus | str | Sequence[JobStatus | str] | None
"""One or several; None is any."""


def job_filter(
    status: Statuses,
    session_id: str | None,
    task_type: str | None,
    api_type: str | None,
    cleared: bool | None,  # noqa: FBT001 - handed on by name above
    created_before: datetime | None,
    created_after: datetime | None,
) -> listing.JobFilter:
    """Return which jobs are meant.

    Raises:
        InvalidArgument: An argument cannot be accepted; it names the argument.
    """
    if cleared not in {None, False, True}:
        raise InvalidArgument("cleared", "must be True, False or None")
    return listing.JobFilter(
        statuses=read_statuses(status),
        session_id=session_id,
        task_type=task_type,
        api_type=api_type,
        cleared=cleared,
        created_before=milliseconds("created_before", created_before),
        created_after=milliseconds("created_after", created_after),
    )


def read_statuses(status: Statuses) -> list[JobStatus] | None:
    """Return statuses as a list without repetitions; None is any.

    Raises:
        InvalidArgument: One of them is none.
    """
    if status is None:
        return None
    several = [status] if isinstance(status, str) or not isinstance(status, Iterable) else status
    try:
        return list(dict.fromkeys(map(JobStatus, several)))
    except ValueError:
        raise InvalidArgument("status", f"must be one of {', '.join(JobStatus)}") from None
