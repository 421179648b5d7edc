"""What an error of the Gemini API means: its status, and the details that google.rpc defines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobstore.providers.common import retry_after, status_category, within_reason
from jobstore.providers.errors import Category, ProviderError

_BY_STATUS: dict[str, Category] = {
    "RESOURCE_EXHAUSTED": "rate_limited",
    "UNAVAILABLE": "overloaded",
    "UNAUTHENTICATED": "authentication",
    "PERMISSION_DENIED": "authentication",
    "DEADLINE_EXCEEDED": "timeout",
    "INVALID_ARGUMENT": "invalid_request",
    "FAILED_PRECONDITION": "invalid_request",
    "OUT_OF_RANGE": "invalid_request",
    "NOT_FOUND": "invalid_request",
    "UNIMPLEMENTED": "invalid_request",
    "INTERNAL": "server_error",
    "UNKNOWN": "server_error",
    "CANCELLED": "server_error",
    "ABORTED": "server_error",
}
# These come as plain invalid requests.
_BY_WORDS: dict[str, Category] = {
    "exceeds the maximum number of tokens": "context_too_long",
    "payload size exceeds the limit": "context_too_long",
    "api key expired": "authentication",
    "api key not valid": "authentication",
}
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


def api_error(error: Any, request_id: str | None) -> ProviderError:  # noqa: ANN401 - google.genai.errors.APIError
    """Return what an error of the SDK means."""
    details = _details(error.details)
    response = error.response
    status = error.status if isinstance(error.status, str) else None
    return ProviderError(
        "google",
        _category(error.code, status, str(error.message), details),
        retry_after=_retry_after(details, response),
        http_status=_http_status(response),
        request_id=request_id,
        code=_reason(details) or status,
        provider_message=error.message if isinstance(error.message, str) else None,
    )


def _http_status(response: object) -> int | None:
    """The responses of httpx, and the SDK's own of a stream, have a `status_code`; those of aiohttp, a `status`."""
    status = getattr(response, "status_code", getattr(response, "status", None))
    return status if isinstance(status, int) else None


def _category(code: object, status: str | None, message: str, details: list[Mapping[str, Any]]) -> Category:
    """Look at the details first: a key that has expired is answered like a bad request."""
    if _is_daily(details):
        return "quota_exhausted"
    if (_reason(details) or "").startswith("API_KEY_"):
        return "authentication"
    known = _BY_STATUS.get(status or "") or status_category(code if isinstance(code, int) else 500)
    if known != "invalid_request":
        return known
    return next((category for words, category in _BY_WORDS.items() if words in message.lower()), known)


def _details(body: object) -> list[Mapping[str, Any]]:
    """Return the details of an error's body, of which each has a type."""
    error = body.get("error", body) if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    return [each for each in details if isinstance(each, Mapping)] if isinstance(details, list) else []


def _of_type(details: list[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [each for each in details if str(each.get("@type")).endswith(f"google.rpc.{name}")]


def _reason(details: list[Mapping[str, Any]]) -> str | None:
    return next((str(each["reason"]) for each in _of_type(details, "ErrorInfo") if "reason" in each), None)


def _is_daily(details: list[Mapping[str, Any]]) -> bool:
    """Whether a quota of a day was used up, as GenerateRequestsPerDayPerProjectPerModel-FreeTier."""
    violations = [each.get("violations") for each in _of_type(details, "QuotaFailure")]
    return any("PerDay" in str(found) for found in violations)


def _retry_after(details: list[Mapping[str, Any]], response: object) -> float | None:
    for each in _of_type(details, "RetryInfo"):
        delay = _DELAY.fullmatch(str(each.get("retryDelay")))
        if delay is not None:
            return within_reason(float(delay[1]))
    headers = getattr(response, "headers", None) or {}
    return retry_after({name.lower(): value for name, value in headers.items()})
