"""Jobs of the old system: what becomes of each row, of its texts and of its files."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from typing import Any, NamedTuple

from jobstore.lifecycle import AttemptOutcome, JobStatus
from jobstore.migrate.adoption.leftovers import read_metadata, with_adopted
from jobstore.migrate.adoption.report import Findings
from jobstore.migrate.adoption.rows import OldRow, insert
from jobstore.migrate.adoption.sessions import Sessions, take_id
from jobstore.migrate.adoption.texts import CopiedFile, NotCopied, Texts
from jobstore.migrate.adoption.values import as_integer
from jobstore.models import MAX_PRIORITY, MIN_PRIORITY, Text
from jobstore.sql import Value

WORKER = "adopted"
"""Who did the attempts of adopted jobs, as nobody knows any more."""
UNKNOWN_TYPE = "unknown"
"""The task type or API type of a job that had none."""
UNKNOWN_STATUS = "unknown_status"
"""The error type of a job whose status was none: it failed, and can be retried by hand."""
REPEATED_ID = "repeated_id"
"""The error type of a job that would run, but has the id of another: it is canceled, lest the same runs twice."""

_STATUSES = {
    **dict.fromkeys(("idle", "preparing", "created", "queued"), JobStatus.IDLE),
    **dict.fromkeys(("running", "acknowledged_by_worker"), JobStatus.RUNNING),
    "completed": JobStatus.COMPLETED,
    "failed": JobStatus.FAILED,
    **dict.fromkeys(("canceled", "cancelled"), JobStatus.CANCELED),
}
_OUTCOMES: dict[JobStatus, AttemptOutcome | None] = {
    JobStatus.IDLE: AttemptOutcome.RELEASED,
    JobStatus.RUNNING: None,
    JobStatus.COMPLETED: AttemptOutcome.COMPLETED,
    JobStatus.FAILED: AttemptOutcome.FAILED,
    JobStatus.CANCELED: AttemptOutcome.CANCELED,
}
_USED = {JobStatus.RUNNING, JobStatus.COMPLETED, JobStatus.FAILED}
_FILES = ("output_file_path", "xml_path")
_TIMES = ("created_at", "start_time", "updated_at", "last_update", "end_time")
_NO_TEXT = Text(None)


class _Times(NamedTuple):
    created: int
    updated: int
    began: int | None
    ended: int | None


class Jobs:
    """Adopts jobs.

    Args:
        connection: In the adoption's transaction.
        findings: What the report will tell.
        sessions: Makes those that are missing.
        texts: Where large texts and files go.
        now: The present time in milliseconds.
    """

    def __init__(
        self, connection: sqlite3.Connection, findings: Findings, sessions: Sessions, texts: Texts, now: int
    ) -> None:
        self._connection = connection
        self._findings = findings
        self._sessions = sessions
        self._texts = texts
        self._now = now
        self._waiting_since: dict[int, int] = {}

    def adopt(self, table: str, row: OldRow) -> None:
        """Make a row a job."""
        job_id, is_repeated = take_id(self._connection, "background_jobs", row)
        metadata = row.text("metadata") or ""
        known = read_metadata(metadata) if metadata.strip(" \t\r\n") else {}
        if known is None:
            row.problem("metadata", "metadata is no JSON object")
        job: dict[str, Value] = {
            "id": job_id,
            **_status(row, is_repeated=is_repeated),
            **self._types(table, row, known or {}),
        }
        status = JobStatus(str(job["status"]))
        times = self._times(row)
        file = self._copy_file(job_id, row)
        job |= self._texts_of(job_id, row, status, file)
        job |= self._run(job_id, status, times, file)
        if times.ended is not None and not status.is_terminal:
            row.keep("end_time")
        job["session_id"] = self._session(row)
        leftovers = row.leftovers()
        job["metadata"] = with_adopted(metadata if known else "{}", leftovers)
        insert(self._connection, "background_jobs", job)
        self._findings.row(table, job_id, row.changes, row.problems, leftovers)

    def _types(self, table: str, row: OldRow, known: dict[str, Any]) -> dict[str, Value]:
        """Take the columns that say what kind of job it is, and those that only have another name."""
        task_type = row.name("task_type") or _name_in(known, "jobTypeForWorker")
        api_type = row.name("api_type") or ("gemini" if table == "gemini_requests" else None)
        for name, value in (("task_type", task_type), ("api_type", api_type)):
            if value is None:
                row.changes.append(f"{name} was missing: it is {UNKNOWN_TYPE}")
        return {
            "task_type": task_type or UNKNOWN_TYPE,
            "api_type": api_type or UNKNOWN_TYPE,
            "model_used": row.name("model_used") or _name_in(known, "modelUsed"),
            "priority": _priority(known),
            "status_message": row.text("status_message"),
            "input_tokens": row.count("tokens_sent"),
            "output_tokens": row.count("tokens_received"),
            "cleared": row.flag("cleared"),
        }

    def _times(self, row: OldRow) -> _Times:
        created, began, updated, last, ended = (row.time(name) for name in _TIMES)
        if last is not None and updated is not None and last != updated:
            row.keep("last_update")
        if created is None:
            row.changes.append("created_at was missing")
        updated = updated or last
        first = created or began or updated or ended or self._now
        return _Times(first, updated or ended or began or first, began, ended)

    def _copy_file(self, job_id: str, row: OldRow) -> CopiedFile | None:
        """Copy the file that a row names; where there are two, the first that can be copied."""
        for name in _FILES:
            named = row.raw(name)
            if named in {None, "", b""}:
                continue
            row.keep(name)
            try:
                file = self._texts.copy(job_id, named)
            except NotCopied as error:
                row.add(f"{name}_problem", str(error))
                row.problem(name, f"{name} {error}")
                continue
            self._findings.files += 1
            self._findings.bytes += file.text.size or 0
            if file.readable is not file.text:
                row.problem(name, f"{name} names a file that is not UTF-8: a readable copy stands in for it")
            return file
        return None

    def _texts_of(self, job_id: str, row: OldRow, status: JobStatus, file: CopiedFile | None) -> dict[str, Value]:
        """Take the texts. A response in the row counts; a file beside it is kept with the attempt."""
        prompt = self._texts.place("prompts", job_id, row.text("prompt") or "")
        answer = row.text("response")
        response = _NO_TEXT
        if answer:
            response = self._texts.place("responses", job_id, answer)
            if file is not None and not _is_same(answer, file.text):
                row.problem("output_file_path", "output_file_path names a file that differs from the response")
        elif status is JobStatus.COMPLETED and file is not None:
            response = file.readable
        elif answer is not None:
            response = Text("")
        return {
            "prompt": prompt.inline or "",
            "prompt_bytes": prompt.size,
            "prompt_file_path": prompt.file_path,
            "prompt_sha256": prompt.sha256,
            "response": response.inline,
            "output_file_path": response.file_path,
            "output_bytes": response.size if response.file_path else None,
            "output_sha256": response.sha256,
        }

    def _run(self, job_id: str, status: JobStatus, times: _Times, file: CopiedFile | None) -> dict[str, Value]:
        """Return the columns of a job that say how it ran, after writing its attempts."""
        columns: dict[str, Value] = {
            "created_at": times.created,
            "updated_at": times.updated,
            "run_at": self._in_line(times.created) if status is JobStatus.IDLE else times.created,
            "finished_at": (times.ended or times.updated) if status.is_terminal else None,
        }
        if status not in _USED and times.began is None and file is None:
            return columns
        files = [] if file is None else list(dict.fromkeys((file.text, file.readable)))
        started = times.began or times.created
        for attempt, text in enumerate(files or [_NO_TEXT], start=1):
            is_last = attempt >= len(files)
            outcome = _OUTCOMES[status] if is_last else AttemptOutcome.RELEASED
            self._insert_attempt(job_id, attempt, text, started, times, outcome)
        columns |= {"attempt": max(1, len(files)), "attempts_used": int(status in _USED), "started_at": started}
        return columns

    def _insert_attempt(
        self, job_id: str, attempt: int, text: Text, started: int, times: _Times, outcome: AttemptOutcome | None
    ) -> None:
        """Insert an attempt, whose lease ended when its worker was last heard of."""
        row: dict[str, Value] = {
            "job_id": job_id,
            "attempt": attempt,
            "worker_id": WORKER,
            "lease_expires_at": min(times.updated, self._now),
            "started_at": started,
            "finished_at": None if outcome is None else times.ended or times.updated,
            "outcome": outcome,
            "output_file_path": text.file_path,
            "output_bytes": text.size,
        }
        insert(self._connection, "job_attempts", row)

    def _in_line(self, created: int) -> int:
        """Return a time that keeps the order of jobs that wait since the same second."""
        run_at = created + min(self._waiting_since.get(created, 0), 999)
        self._waiting_since[created] = run_at - created + 1
        return run_at

    def _session(self, row: OldRow) -> str | None:
        session_id = row.name("session_id")
        directory = row.name("project_directory")
        if directory:
            row.keep("project_directory")
        if session_id is not None:
            self._sessions.require(session_id, directory)
        return session_id


def _status(row: OldRow, *, is_repeated: bool) -> dict[str, Value]:
    """Take the status, and what went wrong."""
    text = row.text("status")
    status = _STATUSES.get((text or "").strip().lower())
    message = row.text("error_message")
    if status is None:
        row.problem("status", "status is unknown: the job failed, retry it by hand")
        reason = message or "its status in the old system was unknown"
        return {"status": JobStatus.FAILED, "error_type": UNKNOWN_STATUS, "error_message": reason}
    if is_repeated and not status.is_terminal:
        row.problem("status", "id is another row's too, and the job would run: it is canceled, retry it by hand")
        reason = message or "another job of the old system has the same id"
        return {"status": JobStatus.CANCELED, "error_type": REPEATED_ID, "error_message": reason}
    if status != text:
        row.changed("status", f"status was {(text or '').strip().lower()}, and is {status}")
    elif status is JobStatus.RUNNING:
        row.changes.append("its worker is gone: the next claim rescues it")
    return {"status": status, "error_message": message}


def _priority(known: dict[str, Any]) -> int:
    """Return the priority that the metadata tells, where it stays; 0 if it tells none."""
    for name in ("priority", "jobPriorityForWorker"):
        number = as_integer(known.get(name))
        if number is not None and MIN_PRIORITY <= number <= MAX_PRIORITY:
            return number
    return 0


def _name_in(known: dict[str, Any], key: str) -> str | None:
    value = known.get(key)
    return value if isinstance(value, str) and value and "\0" not in value else None


def _is_same(answer: str, file: Text) -> bool:
    data = answer.encode()
    return len(data) == file.size and sha256(data).hexdigest() == file.sha256
