"""What can go wrong between a worker and a model, in the same few categories for every provider.

The hierarchy::

    JobStoreError
    └── ProviderError          the model gave no complete answer: `category` says why, `retryable` what to do
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from jobstore.errors import JobStoreError

Category = Literal[
    "rate_limited",
    "overloaded",
    "quota_exhausted",
    "invalid_request",
    "authentication",
    "content_filtered",
    "context_too_long",
    "timeout",
    "connection",
    "truncated",
    "server_error",
]

_MEANING: dict[Category, str] = {
    "rate_limited": "too many requests or tokens at a time: try again later",
    "overloaded": "the service is overloaded: try again later",
    "quota_exhausted": "the account has reached its limit: add credit or raise the limit",
    "invalid_request": "the request was refused: change the model, the prompt or the options",
    "authentication": "access was refused: check the key and what it may be used for",
    "content_filtered": "the answer was withheld by the provider's content filter: change the prompt",
    "context_too_long": "the prompt and max_tokens are more than the model takes: shorten them",
    "timeout": "no answer came in time: try again",
    "connection": "the connection could not be made, or it broke: try again",
    "truncated": "the stream ended before the answer was complete: try again",
    "server_error": "the service failed: try again",
}
_RETRYABLE = frozenset({"rate_limited", "overloaded", "timeout", "connection", "truncated", "server_error"})
_CODE = re.compile(r"[\w.:-]{1,100}", re.ASCII)


class ProviderError(JobStoreError):
    """The model gave no complete answer.

    Attributes:
        provider: Which one, for example "anthropic".
        category: Why.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds to wait before that, if the provider said so.
        http_status: The status of the response, if there was one: 200 when the failure came inside a stream.
        request_id: What the provider's support asks for.
        code: The provider's own short name of the failure, or the name of the network error.
        raw_usage: The token counts in the provider's own terms, as far as the response had told them.
        provider_message: The provider's own words. They may quote the request, so the error's message
            leaves them out; take care where you show them.
    """

    def __init__(
        self,
        provider: str,
        category: Category,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
        code: str | None = None,
        provider_message: str | None = None,
        raw_usage: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.provider = provider
        self.category: Category = category
        self.retryable = category in _RETRYABLE if retryable is None else retryable
        self.retry_after = retry_after
        self.http_status = http_status
        self.request_id = _short(request_id)
        self.code = _short(code)
        self.provider_message = provider_message
        self.raw_usage = dict(raw_usage or {})
        status = f"HTTP {http_status}" if http_status is not None else None
        request = f"request {self.request_id}" if self.request_id is not None else None
        known = ", ".join(part for part in (status, self.code, request) if part is not None)
        super().__init__(f"{provider}: {_MEANING[category]}" + (f" ({known})" if known else ""))

    @property
    def error_type(self) -> str:
        """What a job carries that failed of it: the category."""
        return self.category


def _short(code: str | None) -> str | None:
    """Drop what is no plain identifier: what a server sends must not carry text into messages."""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None
