"""Models of how things stand: counts, lanes, workers, retention, space, and why a job is not running."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from jobstore.clock import from_milliseconds
from jobstore.lifecycle import JobStatus
from jobstore.models import Model


class LaneStats(Model):
    """How many jobs of one lane have which status."""

    task_type: str
    api_type: str
    counts: dict[JobStatus, int]


class JobStats(Model):
    """How many jobs there are."""

    counts: dict[JobStatus, int]
    """By status; every status is there."""
    lanes: list[LaneStats]
    """In the order of their names."""


class RetentionPolicy(Model):
    """By which rule jobs that have ended, or their texts alone, are removed."""

    name: str
    removes: Literal["jobs", "texts"]
    """Jobs with their attempts and texts; or only their prompts and responses."""
    statuses: list[JobStatus]
    task_type: str | None
    """None is any."""
    api_type: str | None
    """None is any."""
    older_than: float | None
    """Seconds since a job has ended."""
    keep: int | None
    """How many of the jobs that are meant stay, whatever their age: those that ended last."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a policy from its row."""
        return cls(
            name=row["name"],
            removes=row["removes"],
            statuses=list(map(JobStatus, json.loads(row["statuses"]))),
            task_type=row["task_type"] or None,
            api_type=row["api_type"] or None,
            older_than=None if row["older_than"] is None else row["older_than"] / 1000,
            keep=row["keep"],
        )


class Space(Model):
    """What a database takes, in bytes."""

    total: int
    """Of a file, with its write-ahead log; on a server, of the store's tables with their indexes."""
    free: int
    """Of that, what holds nothing: of a file, its free pages. 0 where a server does not tell."""
    can_shrink: bool
    """Whether free space is given back bit by bit: a file must have been made with auto_vacuum, as migrations do."""


class Vacuumed(Model):
    """What a vacuum did."""

    before: Space
    after: Space


class Pause(Model):
    """Why nothing is claimed from some lanes for a while."""

    task_type: str | None
    """None is any."""
    api_type: str | None
    """None is any."""
    paused_at: datetime
    until: datetime | None
    """When it ends; None is when someone resumes them."""
    reason: str

    @property
    def scope(self) -> str:
        """What is paused, in words."""
        if self.task_type is None:
            return "everything" if self.api_type is None else f"API {self.api_type}"
        return f"task type {self.task_type}" if self.api_type is None else f"lane {self.task_type}/{self.api_type}"

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a pause from its row."""
        return cls(
            task_type=row["task_type"] or None,
            api_type=row["api_type"] or None,
            paused_at=from_milliseconds(row["paused_at"]),
            until=None if row["until"] is None else from_milliseconds(row["until"]),
            reason=row["reason"],
        )


class Lane(Model):
    """How one lane stands: the jobs of one task type for one API."""

    task_type: str
    api_type: str
    idle: int
    """Jobs that could be claimed, if the lane is not paused."""
    scheduled: int
    """Jobs that wait for their time."""
    running: int
    oldest_seconds: float | None
    """For how long the idle job that waits the longest could have been claimed; None without any."""
    paused: bool
    paused_until: datetime | None
    """When the pause ends that lasts the longest; None is when someone resumes it, or without any."""
    pause_reason: str
    """Of the same."""


class WorkerInfo(Model):
    """A live worker, as it has last told of itself."""

    id: str
    """What its attempts carry as `worker_id`."""
    host: str
    pid: int
    version: str
    """Of the user's code, if the worker was given one, else of jobstore."""
    task_types: list[str]
    """What it has handlers for."""
    api_types: list[str]
    """The APIs that it does jobs for, whatever their task type."""
    concurrency: int
    """How many jobs it runs at the same time, at most."""
    running: int
    """How many it ran when it was last seen."""
    started_at: datetime
    seen_at: datetime

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build it from its row."""
        names = ("id", "host", "pid", "version", "concurrency", "running")
        return cls(
            **{name: row[name] for name in names},
            task_types=json.loads(row["task_types"]),
            api_types=json.loads(row["api_types"]),
            started_at=from_milliseconds(row["started_at"]),
            seen_at=from_milliseconds(row["seen_at"]),
        )


class ExplanationReason(StrEnum):
    """Why a job is not running, or what became of it."""

    COMPLETED = "completed"
    FAILED = "failed"
    """For good, with attempts left."""
    ATTEMPTS_USED_UP = "attempts_used_up"
    """It failed, with no attempt left."""
    HELD = "held"
    """It failed and is for a person to look at, because nobody knows what became of a call to a model."""
    CANCELED = "canceled"
    EXPIRED = "expired"
    """It still waited at its `expires_at`."""
    RUNNING = "running"
    CANCEL_REQUESTED = "cancel_requested"
    """It runs, and was asked to end."""
    LEASE_ENDED = "lease_ended"
    """It runs no more, and nobody has claimed since."""
    SCHEDULED = "scheduled"
    PAUSED = "paused"
    NO_WORKER = "no_worker"
    """No live worker is registered for its task type or its API."""
    BEHIND = "behind"
    """Others are ahead of it."""
    NEXT = "next"
    """Nothing is ahead of it."""


class Explanation(Model):
    """Why a job is not running, or what became of it, and what that was told from."""

    job_id: str
    status: JobStatus
    reason: ExplanationReason
    text: str
    """All of it in a sentence; times are UTC."""
    until: datetime | None = None
    """When that ends by itself: its time comes, a pause or a lease ends; or when it ended. None if nobody knows."""
    pause: Pause | None = None
    """The pause that keeps its lane the longest, whatever else there is."""
    worker_id: str | None = None
    """Who holds it, or held it last."""
    workers: int = 0
    """How many live workers are registered for its task type or its API."""
    ahead: int = 0
    """How many jobs those would claim before it, if it waits for its turn; counted up to 1,000."""
