"""What values mean whose columns held whatever was put into them, and how they are kept exactly."""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, datetime

from pydantic import JsonValue

from jobstore.clock import to_milliseconds
from jobstore.encoding import encode_json
from jobstore.errors import InvalidArgument

LATEST_SECONDS = 7_258_118_400
"""The beginning of the year 2200: larger numbers are no seconds."""
EARLIEST_MILLISECONDS = 100_000_000_000
"""1973: smaller numbers are no milliseconds."""

_NUMBER = re.compile(r"\s*[+-]?\d{1,19}(\.\d{1,19})?\s*", re.ASCII)
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class NotUTF8(bytes):
    """A text of the database that is not UTF-8."""

    __slots__ = ()


Raw = str | int | float | bytes | None
"""As SQLite holds it; texts that are not UTF-8 are `NotUTF8`."""


def decode(data: bytes) -> str | NotUTF8:
    """Return a text of the database, whatever its bytes are: what a connection's `text_factory` is."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return NotUTF8(data)


def as_text(value: str | float | bytes) -> str:
    """Return a value as a text; bytes that are no UTF-8 are written out."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else repr(value)


def as_milliseconds(value: Raw) -> int | None:
    """Return a time as milliseconds since the Unix epoch; None if it is none.

    Numbers up to the year 2200 are seconds, those from the year 1973 on as milliseconds are milliseconds, whether they
    were stored as numbers or as texts. Texts may be ISO 8601, in UTC unless they say another zone.
    """
    number = _as_number(value)
    if number is None:
        return _as_moment(value) if isinstance(value, str) else None
    if 0 < number <= LATEST_SECONDS:
        return round(number * 1000)
    if EARLIEST_MILLISECONDS <= number <= LATEST_SECONDS * 1000:
        return round(number)
    return None


def as_count(value: Raw) -> int | None:
    """Return a whole number from 0 to what a column holds; None if it is none."""
    number = as_integer(value)
    return number if number is not None and number >= 0 else None


def as_integer(value: object) -> int | None:
    """Return a whole number that fits 64 bits; None if it is none."""
    number = _as_number(value)
    if number is None or number != int(number) or not -(2**63) <= number < 2**63:
        return None
    return int(number)


def as_flag(value: Raw) -> bool | None:
    """Return what a flag says; None if it says neither."""
    return _FLAGS.get(str(value).strip().lower())


def as_json(value: Raw) -> JsonValue:
    """Return a value as JSON that tells exactly what it was: bytes and infinities are objects that name their kind."""
    if isinstance(value, NotUTF8):
        return {"text_base64": base64.b64encode(value).decode()}
    if isinstance(value, bytes):
        return {"blob_base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"real": str(value)}
    return value


def read_json(text: str) -> tuple[bool, JsonValue]:
    """Return whether a text is JSON that every part of the store can read, and its value."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        encode_json("value", value)
    except (ValueError, RecursionError, InvalidArgument):
        return False, None
    return True, value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _as_number(value: object) -> int | float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _as_moment(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text.strip())
        milliseconds = to_milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None
    return milliseconds if 0 < milliseconds <= LATEST_SECONDS * 1000 else None
