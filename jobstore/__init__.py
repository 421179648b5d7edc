"""An asyncio-native, durable job store for LLM work: one SQLite file, no server.

Example:
    >>> async with JobStore("jobs.db", migrate=True) as store:
    ...     job = await store.jobs.enqueue("Say hello", task_type="greeting", api_type="claude")
    ...     [claim] = await store.jobs.claim("worker-1")
    ...     await store.jobs.complete(claim, "Hello!")
"""

from jobstore.calls import ApiCall, Settlement, UnknownPolicy
from jobstore.clock import Clock
from jobstore.errors import (
    CallNotFound,
    ConnectionLost,
    ConstraintFailed,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseError,
    DatabaseNotFound,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    JobStoreError,
    LeaseLost,
    MigrationRequired,
    NotFound,
    OutputError,
    OutputRestarted,
    PoolTimeout,
    PromotionError,
    ReadOnlyDatabase,
    SchemaMismatch,
    SessionNotFound,
    StatementFailed,
    StoreClosed,
)
from jobstore.lifecycle import AttemptOutcome, CallStatus, JobStatus
from jobstore.models import (
    UNCHANGED,
    AppliedMigration,
    Attempt,
    Claim,
    Heartbeat,
    Job,
    NewJob,
    Page,
    Session,
    Unchanged,
    Usage,
)
from jobstore.operations.jobs import enqueue_new as enqueue
from jobstore.overviews import Explanation, ExplanationReason, JobStats, Lane, LaneStats, Pause, WorkerInfo
from jobstore.sql import MakeOperation, Operation, Row, execute, execute_many, fetch_all, fetch_one
from jobstore.store import JobStore, close_database, ensure_connection
from jobstore.transactions import drive

__all__ = [
    "UNCHANGED",
    "ApiCall",
    "AppliedMigration",
    "Attempt",
    "AttemptOutcome",
    "CallNotFound",
    "CallStatus",
    "Claim",
    "Clock",
    "ConnectionLost",
    "ConstraintFailed",
    "DatabaseBusy",
    "DatabaseCorrupt",
    "DatabaseError",
    "DatabaseNotFound",
    "DiskFailed",
    "DiskFull",
    "Explanation",
    "ExplanationReason",
    "Heartbeat",
    "InvalidArgument",
    "InvalidJob",
    "InvalidTransition",
    "Job",
    "JobNotFound",
    "JobStats",
    "JobStatus",
    "JobStore",
    "JobStoreError",
    "Lane",
    "LaneStats",
    "LeaseLost",
    "MakeOperation",
    "MigrationRequired",
    "NewJob",
    "NotFound",
    "Operation",
    "OutputError",
    "OutputRestarted",
    "Page",
    "Pause",
    "PoolTimeout",
    "PromotionError",
    "ReadOnlyDatabase",
    "Row",
    "SchemaMismatch",
    "Session",
    "SessionNotFound",
    "Settlement",
    "StatementFailed",
    "StoreClosed",
    "Unchanged",
    "UnknownPolicy",
    "Usage",
    "WorkerInfo",
    "close_database",
    "drive",
    "enqueue",
    "ensure_connection",
    "execute",
    "execute_many",
    "fetch_all",
    "fetch_one",
]
