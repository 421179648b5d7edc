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

_NETWORK_ERRORS: tuple[tuple[str, str, Category], ...] = (
    ("anthropic", "APITimeoutError", "timeout"),
    ("anthropic", "APIConnectionError", "connection"),
    ("openai", "APITimeoutError", "timeout"),
    ("openai", "APIConnectionError", "connection"),
    ("httpx", "TimeoutException", "timeout"),
    ("httpx2", "TimeoutException", "timeout"),
    ("httpx", "TransportError", "connection"),
    ("httpx2", "TransportError", "connection"),
    ("aiohttp", "ServerTimeoutError", "timeout"),
    ("aiohttp", "ClientError", "connection"),
    ("builtins", "TimeoutError", "timeout"),
    ("builtins", "OSError", "connection"),
)
"""By name, so that no library is imported that is not in use; the first that fits counts."""


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
    return value if type(value) is int and value >= 0 else None


def part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping within a mapping, empty if there is none."""
    inner = raw.get(name)
    return inner if isinstance(inner, Mapping) else {}


def network_category(error: BaseException) -> Category | None:
    """Return what an error of the network means, or None if it is no such error."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return next((category for module, name, category in _NETWORK_ERRORS if (module, name) in kinds), None)


def unexpected_error(provider: str, error: Exception, request_id: str | None) -> ProviderError:
    """Return what an error means that tells of no response: the network's, or what an unexpected response led to."""
    category = network_category(error) or "server_error"
    return ProviderError(provider, category, request_id=request_id, code=type(error.__cause__ or error).__name__)


def refused_by_sdk(provider: str, error: Exception) -> ProviderError:
    """Return what it means that an SDK did not take its arguments, such as options that it does not know."""
    return ProviderError(provider, "invalid_request", code=type(error).__name__, provider_message=str(error))
