"""Every error a user of jobstore can meet.

The hierarchy::

    JobStoreError
    ├── StoreClosed            used after close, in a forked child or in another event loop
    ├── DatabaseError
    │   ├── DatabaseNotFound       no such file or folder
    │   ├── MigrationRequired      steps are pending: run the command it names
    │   ├── SchemaMismatch         made by a newer version, or changed by someone else
    │   ├── DatabaseBusy           another process held the write lock past the deadline
    │   ├── DatabaseInUse          a program has the file open, or has it to itself, as while it is restored
    │   ├── DatabaseCorrupt        not a database, or a damaged one
    │   ├── DiskFailed             reading or writing failed; nothing of the batch was acknowledged
    │   │   └── DiskFull               … because there is no room
    │   │       └── DiskLow                … for new work: what is under way can still be finished
    │   ├── ReadOnlyDatabase       no permission to write
    │   ├── PoolTimeout            no reading connection became free in time
    │   ├── ConnectionLost         the outcome of a write is unknown
    │   └── StatementFailed        the database refused a statement
    │       └── ConstraintFailed       … because of a constraint of the schema
    ├── InvalidArgument        refused before anything was written; names the argument
    │   └── InvalidJob             … of a job; names the field
    ├── NotFound
    │   ├── JobNotFound
    │   ├── CallNotFound
    │   ├── SessionNotFound
    │   └── TextsPruned            a job's prompt and response were removed; the job itself is there
    ├── InvalidTransition      the job's status does not allow this step
    ├── LeaseLost              the attempt has ended; nothing was changed
    ├── AnswerUnfinished       what was streamed is not the whole answer of a model
    ├── LoadError              a dump cannot be loaded; names the line
    ├── PromotionError         a store cannot be copied into another, or is not yet wholly copied
    └── OutputError            a file of a large text is missing, damaged or out of bounds
        ├── OutputTooLarge         it would pass `max_output_bytes`
        └── OutputRestarted        what was being followed was replaced: by a new attempt, or another answer

Calls to models raise `jobstore.providers.ProviderError`, a JobStoreError as well.

Messages say what is wrong and what to do. None carries the text of a prompt or a response.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

ConstraintKind = Literal["unique", "foreign_key", "check", "not_null", "other"]


class JobStoreError(Exception):
    """The base of all errors of this package."""

    @property
    def error_type(self) -> str:
        """What a job carries as its `error_type` that failed of it: the name of the class, or something shorter."""
        return type(self).__name__


class StoreClosed(JobStoreError):
    """The store is closed, or belongs to another process or event loop."""


class DatabaseError(JobStoreError):
    """The database could not do what was asked."""


class DatabaseNotFound(DatabaseError):
    """There is no database at this place.

    Attributes:
        path: Where it was looked for.
    """

    def __init__(self, path: str, advice: str) -> None:
        self.path = path
        super().__init__(f"no database at {path}: {advice}")


class MigrationRequired(DatabaseError):
    """Steps of the schema are pending.

    Attributes:
        pending: The names of the pending steps, in order.
        command: The command to run by hand.
    """

    def __init__(self, pending: tuple[str, ...], command: str) -> None:
        self.pending = pending
        self.command = command
        super().__init__(f"{len(pending)} migration(s) pending ({', '.join(pending)}): run `{command}`")


class SchemaMismatch(DatabaseError):
    """The database has a schema that this version of jobstore does not know.

    Attributes:
        steps: The names of the steps that differ.
    """

    def __init__(self, message: str, steps: tuple[str, ...] = ()) -> None:
        self.steps = steps
        super().__init__(message)


class DatabaseBusy(DatabaseError):
    """Another process held the write lock longer than the deadline; nothing was written.

    Attributes:
        waited: How long it was tried, in seconds.
    """

    def __init__(self, waited: float) -> None:
        self.waited = waited
        super().__init__(
            f"the database was locked by another process for {waited:.1f} s; nothing was written: "
            "try again, and look for a program that keeps a transaction open"
        )


class DatabaseInUse(DatabaseError):
    """A program has the database open, so nobody can have it alone; or one has it alone, so nobody can open it.

    Attributes:
        path: The database.
        operation: What is being done by whoever has it alone; None if programs only have it open.
        processes: Those that have it, as far as the operating system tells.
        waited: How long it was tried, in seconds.
    """

    def __init__(
        self, path: str, operation: str | None, processes: tuple[int, ...], waited: float, user: str | None = None
    ) -> None:
        self.path = path
        self.operation = operation
        self.processes = processes
        self.waited = waited
        if operation is None:
            known = f"process {', '.join(map(str, processes))}" if processes else "another program"
            super().__init__(f"{path} is open in {user or known}: stop the programs that use it, and try again")
        else:
            super().__init__(
                f"nobody can open {path} while it is worked on ({operation}); "
                f"after {waited:.0f} s it still was: try again once that has ended"
            )


class DatabaseCorrupt(DatabaseError):
    """The file is not a database, or it is damaged."""


class DiskFailed(DatabaseError):
    """The disk could not be read or written; nothing of this call was acknowledged."""


class DiskFull(DiskFailed):
    """There is no room left on the disk; nothing of this call was written."""


class DiskLow(DiskFull):
    """Less room is left on a disk than `min_free_bytes`: nothing new is begun, what is under way can be finished.

    Attributes:
        folder: Where the room is short.
        free: Bytes that are free there.
        least: Bytes that are to stay free.
    """

    def __init__(self, folder: str, free: int, least: int) -> None:
        self.folder = folder
        self.free = free
        self.least = least
        super().__init__(
            f"{free:,} bytes are free at {folder}, fewer than the {least:,} that are kept for what is under way: "
            "nothing new is begun until there is more; free some space, or open the store with a smaller min_free_bytes"
        )


class ReadOnlyDatabase(DatabaseError):
    """The database, or the folder it lies in, cannot be written to."""


class PoolTimeout(DatabaseError):
    """No reading connection became free in time.

    Attributes:
        pool_size: How many connections there are.
        waited: How long it was waited for one, in seconds.
    """

    def __init__(self, pool_size: int, waited: float) -> None:
        self.pool_size = pool_size
        self.waited = waited
        super().__init__(
            f"none of {pool_size} reading connections became free within {waited:.1f} s: "
            "read less at a time, or open the store with a larger pool_size"
        )


class ConnectionLost(DatabaseError):
    """The server was lost, and not found again in time. Where a write may have happened, the message says so.

    Attributes:
        waited: How long the server was sought in vain, in seconds; 0 if it was found.
    """

    def __init__(self, message: str, waited: float = 0.0) -> None:
        self.waited = waited
        super().__init__(message)


class StatementFailed(DatabaseError):
    """The database refused a statement, and nothing of its operation was written."""


class ConstraintFailed(StatementFailed):
    """A constraint of the schema refused a row.

    Attributes:
        kind: Which kind of constraint it was.
    """

    def __init__(self, message: str, kind: ConstraintKind) -> None:
        self.kind: ConstraintKind = kind
        super().__init__(message)


class InvalidArgument(JobStoreError):
    """An argument cannot be accepted; nothing was written.

    Attributes:
        field: The argument's name.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class InvalidJob(InvalidArgument):
    """A field of a job cannot be accepted; nothing was written."""


class NotFound(JobStoreError):
    """What was asked for does not exist."""


class JobNotFound(NotFound):
    """There is no such job.

    Attributes:
        job_id: The id that was asked for.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id!r}: it was never enqueued here, or it was pruned")


class CallNotFound(NotFound):
    """There is no such call in the ledger.

    Attributes:
        call_id: The id that was asked for.
    """

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        super().__init__(f"no call {call_id!r}: it was never made here, or its job was pruned")


class SessionNotFound(NotFound):
    """There is no such session.

    Attributes:
        session_id: The id that was asked for.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"no session {session_id!r}: create it with store.sessions.create()")


class TextsPruned(NotFound):
    """The prompt and the response of a job were removed, by a policy or by hand; the job itself is still there.

    Attributes:
        job_id: The job.
        pruned_at: When they were removed.
    """

    def __init__(self, job_id: str, pruned_at: datetime) -> None:
        self.job_id = job_id
        self.pruned_at = pruned_at
        moment = pruned_at.isoformat(" ", "seconds")
        super().__init__(f"the texts of job {job_id} were pruned at {moment}: restore them from a backup")


class InvalidTransition(JobStoreError):
    """The job's status does not allow this step; nothing was changed.

    Attributes:
        job_id: The job.
        from_status: Its status now.
        to_status: The status it was to take.
    """

    def __init__(self, job_id: str, from_status: str, to_status: str) -> None:
        self.job_id = job_id
        self.from_status = from_status
        self.to_status = to_status
        super().__init__(f"job {job_id} is {from_status}: it cannot become {to_status}")


class LeaseLost(JobStoreError):
    """The attempt has ended; nothing was changed. Stop working on it: someone else may have the job.

    Attributes:
        job_id: The job.
        attempt: The attempt that has ended.
    """

    def __init__(self, job_id: str, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        super().__init__(f"attempt {attempt} of job {job_id} has ended: its lease expired or its outcome is recorded")


class AnswerUnfinished(JobStoreError):
    """A model's stream was left before its end, so what was streamed is no answer.

    Attributes:
        job_id: The job.
        attempt: The attempt.
    """

    def __init__(self, job_id: str, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        super().__init__(f"attempt {attempt} of job {job_id} left its answer unfinished: read the stream to its end")

    @property
    def error_type(self) -> str:
        """What a job carries that failed of it."""
        return "unfinished_answer"


class PromotionError(JobStoreError):
    """A store cannot be copied into another, or was not copied wholly; what was copied stays for the next try.

    Attributes:
        differences: What differs between the two, or is damaged in the source: names of tables, paths of texts.
    """

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        self.differences = differences
        super().__init__(message)


class LoadError(JobStoreError):
    """A dump cannot be loaded, or not to its end. It never quotes what stands in the dump.

    Attributes:
        reason: What is wrong.
        number: Of the line, or of the row where there are no lines, from 1 on; 0 if it is about the whole.
        table: The table.
        loaded: How many of its rows, from the first on, were dealt with before: they stay.
    """

    def __init__(self, reason: str, number: int, table: str = "", loaded: int = 0) -> None:
        self.reason = reason
        self.number = number
        self.table = table
        self.loaded = loaded
        where = f"{table}, line {number}" if number else table
        if loaded:
            reason = f"{reason}; the {loaded:,} rows before it stay, mend it and go on with those there skipped"
        super().__init__(f"{where}: {reason}")

    def at(self, table: str, loaded: int) -> LoadError:
        """Return the same error, with where it was met."""
        return LoadError(self.reason, self.number, table, loaded)


class OutputError(JobStoreError):
    """The file of a large text is missing, damaged, or not where files of this store may lie.

    Attributes:
        path: The path, relative to the outputs folder, if it is about one file.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        self.path = path
        super().__init__(message)


class OutputTooLarge(OutputError):
    """An answer is larger than a store accepts. What was streamed before the piece that passed the limit is kept.

    Attributes:
        path: The path of what was streamed, relative to the outputs folder; None if it came as a whole.
        limit: Bytes that an answer may have.
    """

    def __init__(self, limit: int, path: str | None = None) -> None:
        self.limit = limit
        super().__init__(
            f"an answer may have {limit:,} bytes, and this one has more: "
            "fail the job, or open the store with a larger max_output_bytes",
            path,
        )


class OutputRestarted(OutputError):
    """What was being followed does not count any more: start again from the beginning.

    A newer attempt has begun, or another answer was recorded than the one that was streamed.

    Attributes:
        job_id: The job.
        attempt: The attempt that was followed.
    """

    def __init__(self, job_id: str, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        super().__init__(f"what attempt {attempt} of job {job_id} wrote was replaced: follow it from the beginning")
