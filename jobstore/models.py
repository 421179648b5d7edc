"""The frozen models of the public interface: what goes into the store and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Generic, NamedTuple, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from jobstore.clock import from_milliseconds
from jobstore.encoding import check_name, dump_json, encode_text, first_problem, load_metadata
from jobstore.errors import InvalidJob
from jobstore.lifecycle import AttemptOutcome, JobStatus

T = TypeVar("T")

MIN_PRIORITY, MAX_PRIORITY = -(2**31), 2**31 - 1

_MIN_MOMENT, _MAX_MOMENT = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

_STATUS = {status.value: status for status in JobStatus}
_OUTCOME = {outcome.value: outcome for outcome in AttemptOutcome}


class Model(BaseModel):
    """What all models have in common: they are frozen, and take nothing for something else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Input(Model):
    """What users make themselves."""

    def __init__(self, **fields: Any) -> None:  # noqa: ANN401 - pydantic validates them
        try:
            self.__pydantic_validator__.validate_python(fields, self_instance=self)  # what BaseModel does
        except ValidationError as error:
            problem = first_problem(error)
        else:
            self._check()
            return
        raise InvalidJob(*problem)  # out here, because that error quotes its input

    def _check(self) -> None:
        """Check what the fields' types do not tell."""


class Usage(_Input):
    """Tokens and cost of a model's answer. A field that is None is unknown and changes nothing.

    Raises:
        InvalidJob: A field cannot be accepted; it names the field.
    """

    input_tokens: Annotated[int, Field(ge=0)] | None = None
    """All tokens of the request, those read from or written to a cache included."""
    output_tokens: Annotated[int, Field(ge=0)] | None = None
    """All tokens of the answer, reasoning included."""
    cache_read_tokens: Annotated[int, Field(ge=0)] | None = None
    cache_write_tokens: Annotated[int, Field(ge=0)] | None = None
    reasoning_tokens: Annotated[int, Field(ge=0)] | None = None
    cost: Annotated[float, Field(ge=0)] | None = None
    """In US dollars."""

    def __add__(self, other: Usage) -> Usage:
        """Return what both took; where one does not know, what the other says."""
        if not isinstance(other, Usage):
            return NotImplemented
        sums: dict[str, Any] = {name: _sum(value, getattr(other, name)) for name, value in self}
        return Usage(**sums)


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


class Text(NamedTuple):
    """A text as it is stored: in the row, or as a complete, durable file that the row names."""

    inline: str | None
    file_path: str | None = None
    """Relative to the outputs folder."""
    size: int | None = None
    """Bytes of its UTF-8; known for files."""
    sha256: str | None = None
    written_at: int | None = None
    """When the file was begun, in milliseconds: an old one must not be committed any more."""

    def __repr__(self) -> str:
        """Name the file, never the text."""
        return f"<Text of {self.size} bytes in {self.file_path or 'its row'}>"


class NewJob(_Input):
    """A job to be enqueued; construction validates every field.

    Raises:
        InvalidJob: A field cannot be accepted; it names the field.

    Example:
        >>> NewJob(prompt="Say hello", task_type="greeting", api_type="claude").priority
        0
    """

    prompt: str = Field(repr=False)
    task_type: Annotated[str, Field(min_length=1)]
    api_type: Annotated[str, Field(min_length=1)]
    model_used: str | None = None
    session_id: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict, repr=False)
    priority: Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)] = 0
    """Higher is claimed first."""
    run_at: AwareDatetime | None = None
    """Not before; None is at once."""
    expires_at: AwareDatetime | None = None
    """No attempt begins at or after this moment: whoever still waits then is canceled; None is never."""
    max_attempts: Annotated[int, Field(ge=1, le=MAX_PRIORITY)] = 3
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that one attempt may take; None is without limit."""
    idempotency_key: Annotated[str, Field(min_length=1)] | None = None
    """A second job with a key already used is not made: the first is returned."""

    _NAMES: ClassVar = ("task_type", "api_type", "model_used", "session_id", "idempotency_key")

    def _check(self) -> None:
        if not self.prompt.isascii():
            encode_text("prompt", self.prompt)
        names = f"{self.task_type}{self.api_type}{self.model_used}{self.session_id}{self.idempotency_key}"
        if not names.isascii() or "\0" in names:
            for name in self._NAMES:
                check_name(name, getattr(self, name))
        if self.metadata:
            dump_json("metadata", self.metadata, InvalidJob)
        check_schedule(self.run_at, self.expires_at)


def check_schedule(run_at: datetime | None, expires_at: datetime | None) -> None:
    """Check when a job may run.

    Raises:
        InvalidJob: A moment cannot be stored, or it would expire before it may run.
    """
    for field, moment in (("run_at", run_at), ("expires_at", expires_at)):
        if moment is not None and not _MIN_MOMENT <= moment <= _MAX_MOMENT:
            raise InvalidJob(field, "must lie in the years 1 to 9999 of UTC")
    if run_at is not None and expires_at is not None and expires_at <= run_at:
        raise InvalidJob("expires_at", "must lie after run_at, or the job could never run")


class Job(Model):
    """A job as the database knew it when it was read.

    `prompt` and `response` are None where they were not loaded: in lists, and when they lie in a file
    (`prompt_file_path`, `output_file_path`). `read_prompt()` and `read_response()` have them in any case, unless they
    were pruned (`texts_pruned_at`).
    """

    id: str
    session_id: str | None
    task_type: str
    api_type: str
    model_used: str | None
    status: JobStatus
    status_message: str | None = Field(repr=False)
    priority: int
    run_at: datetime
    expires_at: datetime | None
    """When it is canceled, with the error type `expired`, if it waits then: for its first attempt or for another."""
    attempt: int
    """The number of the latest attempt; 0 before the first. It only grows."""
    attempts_used: int
    """How many attempts count against `max_attempts`; release and snooze give theirs back."""
    max_attempts: int
    timeout: float | None
    """Seconds that one attempt may take."""
    idempotency_key: str | None
    cancel_requested_at: datetime | None
    error_type: str | None
    error_message: str | None = Field(repr=False)
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost: float | None
    """In US dollars."""
    cleared: bool
    """Whether it is hidden from lists."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    """When the latest attempt began."""
    finished_at: datetime | None
    metadata: dict[str, JsonValue] = Field(repr=False)
    prompt_file_path: str | None
    prompt_bytes: int | None
    prompt_sha256: str | None
    output_file_path: str | None
    output_bytes: int | None
    output_sha256: str | None
    texts_pruned_at: datetime | None
    """When prompt and response were removed; their sizes stay."""
    prompt: str | None = Field(default=None, repr=False)
    response: str | None = Field(default=None, repr=False)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """Build a job from a row that was read with the columns of a job, with or without the texts.

        `defaults` are the columns that the row lacks.
        """
        values = {**defaults, **row}
        values["status"] = _STATUS[values["status"]]
        values["cleared"] = bool(values["cleared"])
        values["metadata"] = load_metadata(values["metadata"])
        for name in _JOB_TIMES:
            if values[name] is not None:
                values[name] = from_milliseconds(values[name])
        if values["prompt_file_path"] is not None or values["texts_pruned_at"] is not None:
            values["prompt"] = None
        values.setdefault("prompt", None)
        values.setdefault("response", None)
        return _trusted(cls, values)

    def completed(self, now: int, row: Mapping[str, Any], response: Text) -> Self:
        """Return a claimed job as it is after its completion; `row` has what may have changed since the claim."""
        moment = from_milliseconds(now)
        return _trusted(
            type(self),
            {
                **self.__dict__,
                **row,
                "status": JobStatus.COMPLETED,
                "cancel_requested_at": _moment(row["cancel_requested_at"]),
                "cleared": bool(row["cleared"]),
                "metadata": load_metadata(row["metadata"]),
                "updated_at": moment,
                "finished_at": moment,
                "error_type": None,
                "error_message": None,
                "response": response.inline,
                "output_file_path": response.file_path,
                "output_bytes": response.size,
                "output_sha256": response.sha256,
            },
        )

    def with_prompt(self, prompt: str) -> Self:
        """Return the same job with its prompt, which was read from its file."""
        return _trusted(type(self), {**self.__dict__, "prompt": prompt})


_JOB_TIMES = (
    "run_at", "expires_at", "created_at", "updated_at", "started_at", "finished_at", "cancel_requested_at",
    "texts_pruned_at",
)  # fmt: skip


class Claim(Model):
    """The right to work on a job for a while: one attempt at it, until its lease ends.

    Everything a worker reports names its claim, and is refused with `LeaseLost` once the attempt has ended.
    """

    job: Job
    worker_id: str
    lease_expires_at: datetime

    @classmethod
    def of(cls, job: Job, worker_id: str, lease_expires_at: int) -> Self:
        """Build the claim of a job that was just started; the lease's end is in milliseconds."""
        return _trusted(
            cls, {"job": job, "worker_id": worker_id, "lease_expires_at": from_milliseconds(lease_expires_at)}
        )

    def with_prompt(self, prompt: str) -> Self:
        """Return the same claim with the job's prompt, which lies in a file."""
        return _trusted(type(self), {**self.__dict__, "job": self.job.with_prompt(prompt)})

    @property
    def job_id(self) -> str:
        """The id of the claimed job."""
        return self.job.id

    @property
    def attempt(self) -> int:
        """The number of this attempt: the fence that later ones of the same job cannot pass for."""
        return self.job.attempt

    @property
    def prompt(self) -> str:
        """The whole prompt, also when it lay in a file."""
        return self.job.prompt or ""


class Heartbeat(Model):
    """The answer to a heartbeat for one claim."""

    job_id: str
    attempt: int
    extended: bool
    """False: the attempt has ended, stop working on it."""
    cancel_requested: bool
    """Someone wants the job canceled: stop and report, or complete all the same."""


class Attempt(Model):
    """One try at a job: a lease with an outcome."""

    job_id: str
    attempt: int
    worker_id: str
    lease_expires_at: datetime
    cancel_acknowledged_at: datetime | None
    """When its holder heard that the job is to be canceled; it stopped at `finished_at`."""
    started_at: datetime
    finished_at: datetime | None
    outcome: AttemptOutcome | None
    error_type: str | None
    error_message: str | None = Field(repr=False)
    error_traceback: str | None = Field(repr=False)
    """Where it failed: frames and types of errors, without their messages."""
    output_file_path: str | None
    """Where what it streamed lies, relative to the outputs folder."""
    output_bytes: int | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build an attempt from its row."""
        return _trusted(
            cls,
            {
                **row,
                "lease_expires_at": from_milliseconds(row["lease_expires_at"]),
                "cancel_acknowledged_at": _moment(row["cancel_acknowledged_at"]),
                "started_at": from_milliseconds(row["started_at"]),
                "finished_at": _moment(row["finished_at"]),
                "outcome": _OUTCOME.get(row["outcome"]),
            },
        )


class Session(Model):
    """A user's session in a project; it groups jobs and remembers what was selected."""

    id: str
    name: str
    project_directory: str
    project_hash: str
    """SHA-256 of the project directory, in hexadecimal: what `cached_state` is kept by."""
    task_description: str = Field(repr=False)
    search_term: str
    title_regex: str
    content_regex: str
    negative_title_regex: str
    negative_content_regex: str
    is_regex_active: bool
    search_selected_files_only: bool
    codebase_structure: str = Field(repr=False)
    model_used: str | None
    model_settings: dict[str, JsonValue]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a session from its row."""
        return _trusted(
            cls,
            {
                **row,
                "is_regex_active": bool(row["is_regex_active"]),
                "search_selected_files_only": bool(row["search_selected_files_only"]),
                "model_settings": json.loads(row["model_settings"]),
                "created_at": from_milliseconds(row["created_at"]),
                "updated_at": from_milliseconds(row["updated_at"]),
            },
        )


class Page(Model, Generic[T]):
    """A part of a list."""

    items: list[T]
    next_cursor: str | None
    """What to pass as `cursor` for the next part; None at the end."""


class Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""What an argument is if it is not given, where None means something."""


class AppliedMigration(Model):
    """A step of the schema that was applied."""

    name: str
    checksum: str
    applied_at: datetime


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else from_milliseconds(milliseconds)


M = TypeVar("M", bound=BaseModel)
_FIELDS: dict[type[BaseModel], set[str]] = {model: set(model.model_fields) for model in (Job, Claim, Attempt, Session)}
_set = object.__setattr__


def _trusted(model: type[M], values: dict[str, Any]) -> M:
    """Make a frozen model of values that the schema's own constraints have checked.

    `model_construct` does the same field by field: 14 µs for a job where this takes 2 µs (measured),
    as much as the rest of a claim.
    """
    instance = model.__new__(model)
    _set(instance, "__dict__", values)
    _set(instance, "__pydantic_fields_set__", _FIELDS[model])
    _set(instance, "__pydantic_extra__", None)
    _set(instance, "__pydantic_private__", None)
    return instance
