"""Checks of the arguments that the repositories are given: each names the argument that it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from jobstore.clock import seconds, to_milliseconds
from jobstore.errors import InvalidArgument, InvalidJob
from jobstore.models import check_identifier, encode_json


def milliseconds(field: str, moment: datetime | None) -> int | None:
    """Return an aware datetime as milliseconds since the Unix epoch."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidArgument(field, "must be an aware datetime: give it a time zone")
    return to_milliseconds(moment)


def names(field: str, values: Sequence[str] | None) -> list[str] | None:
    """Check a list of names; None is any."""
    if values is None:
        return None
    if isinstance(values, str):
        raise InvalidJob(field, "must be a list of names, not one text")
    for value in values:
        check_identifier(field, value)
    return list(values)


def check_range(field: str, value: object, lowest: int, highest: int) -> None:
    """Check a whole number."""
    if not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidJob(field, f"must be a whole number from {lowest} to {highest:,}")


def positive(field: str, duration: float) -> int:
    """Return a duration in milliseconds."""
    if not duration > 0 or duration == float("inf"):
        raise InvalidJob(field, "must be a number of seconds above 0")
    return max(1, seconds(duration))


def not_negative(field: str, duration: float) -> int:
    """Return a duration in milliseconds."""
    if not duration >= 0 or duration == float("inf"):
        raise InvalidJob(field, "must be a number of seconds, 0 or more")
    return seconds(duration)


def metadata(metadata: Mapping[str, JsonValue] | None) -> dict[str, Any] | None:
    """Check changes of a job's metadata."""
    if metadata is None:
        return None
    try:
        encode_json("metadata", dict(metadata))
    except InvalidArgument as error:
        raise InvalidJob(error.field, error.reason) from None
    return dict(metadata)


def storable(message: str) -> str:
    """Return a message with what no database can hold written out: a report must not be lost over it."""
    return message.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
