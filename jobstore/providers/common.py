"""What the adapters have in common when they read what a server said: waits, counts, and errors of the network."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from jobstore.providers.errors import Category, ProviderError

LONGEST_WAIT = 86_400.0
"""Seconds: what a server asks for beyond a day is no plan to rely on."""

_BY_CLASS: tuple[tuple[str, str, Category], ...] = (
    ("anthropic", "APITimeoutError", "timeout"),
    ("anthropic", "APIConnectionError", "connection"),
    ("anthropic", "CredentialsError", "authentication"),
    ("openai", "APITimeoutError", "timeout"),
    ("openai", "APIConnectionError", "connection"),
    ("openai", "SubjectTokenProviderError", "authentication"),
    ("google", "TransportError", "connection"),
    ("google", "GoogleAuthError", "authentication"),
    ("httpx", "TimeoutException", "timeout"),
    ("httpx", "TransportError", "connection"),
    ("httpx2", "TimeoutException", "timeout"),
    ("httpx2", "TransportError", "connection"),
    ("aiohttp", "ServerTimeoutError", "timeout"),
    ("aiohttp", "ClientError", "connection"),
    ("builtins", "TimeoutError", "timeout"),
    ("builtins", "OSError", "connection"),
)
"""Errors that tell of no response: by name, so that no library is imported that is not in use. The first that fits
counts."""


_BY_STATUS: dict[int, Category] = {
    401: "authentication",
    402: "quota_exhausted",
    403: "authentication",
    408: "timeout",
    409: "server_error",  # two requests in each other's way: another try may pass
    413: "context_too_long",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}
_CLIENT_ERRORS = 4


def status_category(status: int) -> Category:
    """Return what an HTTP status means where nothing else says it."""
    return _BY_STATUS.get(status) or ("invalid_request" if status // 100 == _CLIENT_ERRORS else "server_error")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a response asks for: in milliseconds, in seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        wait = None if value is None else within_reason(_seconds(value, unit))
        if wait is not None:
            return wait
    return None


def within_reason(seconds: float) -> float | None:
    """Return a wait that can be planned with, or None for what is no wait."""
    return min(max(0.0, seconds), LONGEST_WAIT) if math.isfinite(seconds) else None


def _seconds(value: str, unit: float) -> float:
    try:
        return float(value) * unit
    except ValueError:
        return _until(value)


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return math.nan


def count(value: object) -> int | None:
    """Return a count of tokens; SDKs do not validate what they receive, and what is none is unknown."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping within a mapping, empty if there is none."""
    inner = raw.get(name)
    return inner if isinstance(inner, Mapping) else {}


def unexpected_error(provider: str, error: Exception, request_id: str | None) -> ProviderError:
    """Return what an error means that tells of no response: the network's, or what an unexpected response led to."""
    category = _category(error) or "server_error"
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return ProviderError(provider, category, request_id=request_id, code=type(cause).__name__)


def presentable(error: Exception) -> Exception | None:
    """Return the cause to be shown in a traceback: errors that quote a body, and so maybe a text, are left out."""
    quotes_nothing = isinstance(error, TypeError | AttributeError | LookupError)
    return error if quotes_nothing or _category(error) in {"timeout", "connection"} else None


def _category(error: Exception) -> Category | None:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return next((category for package, name, category in _BY_CLASS if (package, name) in kinds), None)


def refused_by_sdk(provider: str, error: Exception) -> ProviderError:
    """Return what it means that an SDK sends nothing: it has no key, or does not know an option."""
    category: Category = "authentication" if "resolve authentication" in str(error) else "invalid_request"
    return ProviderError(provider, category, code=type(error).__name__, provider_message=str(error))
