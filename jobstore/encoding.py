"""Texts and JSON as they are stored: what cannot be stored is refused before that, by the name of its field."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from jobstore.errors import InvalidArgument, InvalidJob


def encode_text(field: str, text: object, refusal: type[InvalidArgument] = InvalidJob) -> bytes:
    """Return a text as UTF-8.

    Raises:
        InvalidArgument: It is no text, or holds a lone surrogate, which no file or database can keep.
    """
    if not isinstance(text, str):
        raise refusal(field, f"must be a str, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        index = error.start
    # Out here, because that error quotes the whole text and would stay behind as this one's context.
    raise refusal(field, f"holds a lone surrogate at index {index}, which cannot be stored")


def encode_json(field: str, value: object, refusal: type[InvalidArgument] = InvalidArgument) -> str:
    """Return a value as JSON text that reads back as the same value.

    Raises:
        InvalidArgument: JSON cannot express it, or it holds a lone surrogate.
    """
    try:
        _JSON.validate_python(value)
    except ValidationError as error:
        _, reason = first_problem(error)
    else:
        return dump_json(field, value, refusal)
    raise refusal(field, f"must be JSON: {reason}")


def dump_json(field: str, value: object, refusal: type[InvalidArgument] = InvalidArgument) -> str:
    """Return as JSON text what was validated before.

    Raises:
        InvalidArgument: It holds a lone surrogate, or an integer of thousands of digits.
    """
    try:
        text = _dumps(value)
        text.encode()
    except UnicodeEncodeError:
        reason = "holds a lone surrogate, which cannot be stored"
    except ValueError:
        reason = "holds a number with too many digits"
    else:
        return text
    raise refusal(field, reason)


def load_metadata(text: str) -> dict[str, Any]:
    """Return a job's metadata from its JSON text."""
    return {} if text == "{}" else json.loads(text)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the first offending field and what is wrong with it, without the input that pydantic quotes."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return str(first["loc"][0]) if first["loc"] else "", first["msg"]


_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue, config=ConfigDict(strict=True, allow_inf_nan=False))
_dumps = json.JSONEncoder(allow_nan=False, ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def check_name(field: str, value: str | None, refusal: type[InvalidArgument] = InvalidJob) -> None:
    """Check a short text that identifies something.

    Raises:
        InvalidArgument: It holds a NUL character or a lone surrogate.
    """
    if value is None or (value.isascii() and "\0" not in value):
        return
    encode_text(field, value, refusal)
    if "\0" in value:
        raise refusal(field, "must not hold NUL characters")


def check_identifier(field: str, value: object, refusal: type[InvalidArgument] = InvalidJob) -> None:
    """Check a name that must be there, such as a worker's.

    Raises:
        InvalidArgument: It is no text, empty, or holds a NUL character or a lone surrogate.
    """
    if not isinstance(value, str) or not value:
        raise refusal(field, "must be a str that is not empty")
    check_name(field, value, refusal)
