"""What OpenAI's two APIs have in common: how a request is sent through the official SDK, and what errors mean."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from jobstore.providers.base import Adapter, Opened
from jobstore.providers.common import refused_by_sdk, retry_after, status_category, unexpected_error
from jobstore.providers.errors import Category, ProviderError
from jobstore.providers.request import Tool

try:
    import openai
    from openai import AsyncOpenAI
except ImportError as error:
    raise ImportError("jobstore.providers.openai needs the OpenAI SDK: pip install 'jobstore[openai]'") from error

_BY_CODE: dict[str, Category] = {
    "rate_limit_exceeded": "rate_limited",
    "insufficient_quota": "quota_exhausted",
    "credit_balance_exhausted": "quota_exhausted",
    "billing_hard_limit_reached": "quota_exhausted",
    "billing_not_active": "quota_exhausted",
    "context_length_exceeded": "context_too_long",
    "string_above_max_length": "context_too_long",
    "content_filter": "content_filtered",
    "invalid_api_key": "authentication",
    "server_overloaded": "overloaded",
    "engine_overloaded": "overloaded",
    "overloaded_error": "overloaded",
    "slow_down": "overloaded",
    "vector_store_timeout": "timeout",
}
"""Codes and types of errors; where a code says nothing, the type may."""

_BY_WORDS: tuple[tuple[str, Category], ...] = (
    ("spend_limit", "quota_exhausted"),
    ("policy", "content_filtered"),  # bio_policy, image_content_policy_violation, …
    ("invalid", "invalid_request"),
    ("image", "invalid_request"),
)
"""Words within codes, of families that grow."""


class OpenAIBase(Adapter):
    """An API of OpenAI's, through `AsyncOpenAI` or its kin."""

    provider = "openai"

    async def open(self, client: AsyncOpenAI, arguments: dict[str, Any], *, sdk_retries: bool) -> Opened:
        """Send a request."""
        asked = client if sdk_retries else client.with_options(max_retries=0)
        try:
            events = await self.create(asked, arguments | {"stream": True})
        except TypeError as error:  # before anything is sent
            raise refused_by_sdk(self.provider, error) from error
        response = events.response
        return Opened(events, events.close, response.status_code, response.headers.get("x-request-id"))

    @abstractmethod
    async def create(self, client: AsyncOpenAI, arguments: dict[str, Any]) -> openai.AsyncStream[Any]:
        """Call the SDK."""

    def translate(self, error: Exception, request_id: str | None = None) -> ProviderError:
        """Return what an error of the SDK means."""
        if isinstance(error, openai.APIStatusError):
            return _status_error(error)
        if isinstance(error, openai.APIError) and error.body is not None:  # an error event in a stream
            return ProviderError(
                self.provider,
                category_of(error.code, error.type) or "server_error",
                http_status=200,
                request_id=request_id,
                code=error.code or error.type,
                provider_message=error.message,
            )
        return unexpected_error(self.provider, error, request_id)


def category_of(code: str | None, kind: str | None = None, status: int | None = None) -> Category | None:
    """Look at the code first: an account without credit is answered like one that is too fast."""
    for name in (code or "", kind or ""):
        if name in _BY_CODE:
            return _BY_CODE[name]
    known = next((category for word, category in _BY_WORDS if word in (code or "")), None)
    if known is not None or status is None:
        return known or ("invalid_request" if kind == "invalid_request_error" else None)
    return status_category(status)


def function(tool: Tool) -> dict[str, Any]:
    """Return a tool as OpenAI's APIs describe functions."""
    return {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters}


def _status_error(error: openai.APIStatusError) -> ProviderError:
    headers = error.response.headers
    return ProviderError(
        "openai",
        category_of(error.code, error.type, error.status_code) or "server_error",
        retryable=False if headers.get("x-should-retry") == "false" else None,
        retry_after=retry_after(headers),
        http_status=error.status_code,
        request_id=error.request_id,
        code=error.code or error.type,
        provider_message=_words(error),
    )


def _words(error: openai.APIStatusError) -> str:
    """Return what the server said; the SDK's own message has the status and the whole body around it."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return said if isinstance(said, str) else error.message
