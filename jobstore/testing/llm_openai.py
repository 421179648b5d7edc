"""What OpenAI's two APIs have in common: their errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobstore.testing.llm_answers import Failure, Refusal

FAILURES: Mapping[Failure, Refusal] = {
    "rate_limited": Refusal(429, error_type="requests", error_code="rate_limit_exceeded"),
    "overloaded": Refusal(503, error_type="server_error"),
    "quota": Refusal(429, error_type="insufficient_quota", error_code="insufficient_quota"),
    "invalid": Refusal(400),
    "expired": Refusal(401, "the API key has expired", error_code="invalid_api_key"),
    "context_too_long": Refusal(400, error_code="context_length_exceeded"),
    "server_error": Refusal(500),
    "timeout": Refusal(504),
}
_SERVER_ERRORS = 500


def openai_error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return the body of an error response of OpenAI's."""
    kind = "server_error" if status >= _SERVER_ERRORS else "invalid_request_error"
    return {
        "error": {
            "message": refusal.words,
            "type": refusal.error_type or kind,
            "param": None,
            "code": refusal.error_code,
        }
    }
