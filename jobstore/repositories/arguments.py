"""Checks of the arguments that the repositories are given: each names the argument that it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeGuard, TypeVar

from pydantic import JsonValue

from jobstore.clock import seconds, to_milliseconds
from jobstore.encoding import check_identifier, encode_json, encode_text
from jobstore.errors import InvalidArgument, InvalidJob
from jobstore.models import Claim, NewJob, Usage

T = TypeVar("T")

MAX_DURATION = 100 * 365.25 * 24 * 3600
"""Seconds. A century from now can still be stored and shown; far more than that cannot."""


def milliseconds(field: str, moment: object) -> int | None:
    """Return an aware datetime as milliseconds since the Unix epoch."""
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidArgument(field, "must be an aware datetime: give it a time zone")
    return to_milliseconds(moment)


def identifier(field: str, value: object) -> str:
    """Return the id of something. The thing itself is refused: pass its `id`."""
    if not isinstance(value, str):
        raise InvalidArgument(field, f"must be an id, which is a str, not {type(value).__name__}")
    encode_text(field, value, InvalidArgument)
    return value


def names(field: str, values: Sequence[str] | None) -> list[str] | None:
    """Check a list of names; None is any."""
    if values is None:
        return None
    listed = several(field, values)
    for value in listed:
        check_identifier(field, value)
    return list(dict.fromkeys(listed))


def several(field: str, values: Iterable[T]) -> list[T]:
    """Return several values as a list."""
    check_iterable(field, values)
    return list(values)


def check_iterable(field: str, values: object) -> None:
    """Check that several values are given. One text is refused: it would be taken for its letters."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidJob(field, f"must be several values, not one {type(values).__name__}")


def check_range(
    field: str, value: object, lowest: int, highest: int, refusal: type[InvalidArgument] = InvalidJob
) -> None:
    """Check a whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise refusal(field, f"must be a whole number from {lowest:,} to {highest:,}")


def positive(field: str, duration: object) -> int:
    """Return a duration in milliseconds."""
    if not _is_number(duration) or not 0 < duration <= MAX_DURATION:
        raise InvalidJob(field, "must be a number of seconds above 0, at most a hundred years")
    return max(1, seconds(duration))


def not_negative(field: str, duration: object) -> int:
    """Return a duration in milliseconds."""
    if not _is_number(duration) or not 0 <= duration <= MAX_DURATION:
        raise InvalidJob(field, "must be a number of seconds, 0 or more, at most a hundred years")
    return seconds(duration)


def metadata(changes: Mapping[str, JsonValue] | None) -> dict[str, Any] | None:
    """Check changes of a job's metadata."""
    if changes is None:
        return None
    plain = plain_dict(changes)
    if not isinstance(plain, dict):
        raise InvalidJob("metadata", f"must be a mapping, not {type(changes).__name__}")
    encode_json("metadata", plain, InvalidJob)
    return plain


def plain_dict(mapping: Any) -> Any:  # noqa: ANN401 - whatever is no mapping is refused by who checks it
    """Return any mapping as a dict, and anything else as it is."""
    return dict(mapping) if isinstance(mapping, Mapping) else mapping


def check_claim(claim: object) -> None:
    """Check that something is a claim."""
    if not isinstance(claim, Claim):
        raise InvalidArgument("claim", f"must be a Claim from claim(), not {type(claim).__name__}")


def check_new_job(new: object) -> None:
    """Check that something is a job to be enqueued."""
    if not isinstance(new, NewJob):
        raise InvalidJob("new_jobs", f"must be NewJob, not {type(new).__name__}")


def check_usage(usage: object) -> None:
    """Check that something says what was used, or nothing."""
    if usage is not None and not isinstance(usage, Usage):
        raise InvalidJob("usage", f"must be a Usage, not {type(usage).__name__}")


def path_text(field: str, path: object) -> str:
    """Return a path as text."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidArgument(field, f"must be a path, not {type(path).__name__}")
    text = os.fspath(path)
    check_identifier(field, text, InvalidArgument)
    return str(text)


def optional_text(field: str, text: object) -> str | None:
    """Return a short text as it can be stored, or None."""
    if text is not None and not isinstance(text, str):
        raise InvalidJob(field, f"must be a str, not {type(text).__name__}")
    return None if text is None else storable(text)


def storable(message: object) -> str:
    """Return what a message says, with what no database can hold written out: no report is lost over it."""
    try:
        text = str(message)
    except Exception:  # noqa: BLE001 - an error whose own text fails is still to be reported
        text = f"a {type(message).__name__} that cannot be shown"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
