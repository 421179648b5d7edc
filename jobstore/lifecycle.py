"""The statuses of a job and the transitions between them: the one place that knows.

::

            enqueue                 claim                  complete
   (new) ───────────▶  idle  ───────────────▶  running  ───────────────▶ completed
     │                  ▲ ▲ │                   │ │ │ │
     │ run_at in future │ │ │ cancel            │ │ │ └── fail (final) ─▶ failed
     ▼                  │ │ └──────────┐        │ │ └──── cancel ───────▶ canceled
  scheduled ────────────┘ │            ▼        │ └ release, rescue ──▶ idle
     ▲      run_at passes │        canceled     └─ fail (retry), snooze ─▶ scheduled
     └────────────────────┼─────────────────────┘
                          └── retry (by hand) from failed, canceled or completed
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands."""

    IDLE = "idle"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether only `retry` leads out of this status."""
        return self in TERMINAL


class AttemptOutcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    SNOOZED = "snoozed"
    RELEASED = "released"
    CANCELED = "canceled"
    LOST = "lost"
    """Its lease expired and someone rescued the job."""


class CallStatus(StrEnum):
    """What became of a call to a model."""

    SENT = "sent"
    """Nobody knows yet: it is under way."""
    SUCCEEDED = "succeeded"
    """The answer came to its end."""
    FAILED = "failed"
    TRUNCATED = "truncated"
    """Its stream ended, but not with the end of an answer."""
    CANCELED = "canceled"
    """The caller did not want the rest of it."""
    UNKNOWN = "unknown"
    """Nobody will know: its attempt ended before the call did, as when its process died."""


WAITING = (JobStatus.IDLE, JobStatus.SCHEDULED)
TERMINAL = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED)

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.SCHEDULED: frozenset({JobStatus.IDLE, JobStatus.CANCELED, JobStatus.COMPLETED}),
    JobStatus.IDLE: frozenset({JobStatus.RUNNING, JobStatus.CANCELED, JobStatus.COMPLETED}),
    JobStatus.RUNNING: frozenset({*TERMINAL, *WAITING}),
    JobStatus.FAILED: frozenset({JobStatus.IDLE, JobStatus.COMPLETED}),
    JobStatus.CANCELED: frozenset({JobStatus.IDLE, JobStatus.COMPLETED}),
    JobStatus.COMPLETED: frozenset({JobStatus.IDLE}),
}
"""What may follow what. Waiting or failed to completed is the late answer of an attempt that was given up.

So is canceled to completed, of a job that nobody canceled: it expired after its attempt was given up.
"""

WORKER_LOST = "worker_lost"
"""The `error_type` of a job whose last attempt's lease expired."""
EXPIRED = "expired"
"""The `error_type` of a job that was canceled because it still waited at its `expires_at`."""
CALL_UNKNOWN = "call_unknown"
"""The `error_type` of a job that is held for a person, because nobody knows what became of a call."""
