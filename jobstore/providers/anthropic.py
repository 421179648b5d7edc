"""Anthropic's Messages API, read as a stream through the official SDK."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Mapping
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import Any

from pydantic import JsonValue

from jobstore.models import Usage
from jobstore.providers.errors import Category, ProviderError
from jobstore.providers.events import Done, Event, FinishReason, Text

try:
    import anthropic
    import httpx2
    from anthropic import AsyncAnthropic
    from anthropic.types import MessageDeltaUsage, RawMessageStreamEvent
    from anthropic.types import Usage as MessageUsage
except ImportError as error:
    raise ImportError(
        "jobstore.providers.anthropic needs the Anthropic SDK: pip install 'jobstore[anthropic]'"
    ) from error

PROVIDER = "anthropic"

_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "pause_turn": "paused",
}
_BY_TYPE: dict[str, Category] = {
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "billing_error": "quota_exhausted",
    "authentication_error": "authentication",
    "permission_error": "authentication",
    "timeout_error": "timeout",
    "api_error": "server_error",
    "request_too_large": "context_too_long",
}
_BY_STATUS: dict[int, Category] = {
    401: "authentication",
    402: "quota_exhausted",
    403: "authentication",
    408: "timeout",
    409: "server_error",  # two requests in each other's way: another try may pass
    413: "context_too_long",
    429: "rate_limited",
    504: "timeout",
    529: "overloaded",
}
_REFUSALS = frozenset({"invalid_request_error", "not_found_error"})
_CLIENT_ERRORS = 4
# These come as plain invalid requests, without a code of their own.
_BY_WORDS: dict[str, Category] = {
    "prompt is too long": "context_too_long",
    "exceed context limit": "context_too_long",
    "content filtering policy": "content_filtered",
}
_FAILURES = (anthropic.AnthropicError, httpx2.HTTPError, JSONDecodeError, UnicodeDecodeError)
_LONGEST_WAIT = 86_400.0
"""Seconds: what a server asks for beyond a day is no plan to rely on."""


async def stream(
    client: AsyncAnthropic,
    *,
    model: str,
    prompt: str,
    max_tokens: int,
    system: str | None = None,
    **options: Any,  # noqa: ANN401 - whatever else the SDK takes
) -> AsyncGenerator[Event, None]:
    """Ask a model and yield its answer as it comes; the last event is always `Done`.

    The SDK's own retries are off: who calls this decides whether and when to try again. Who may leave it before
    its end closes it with `contextlib.aclosing`, so that the connection ends at once.

    Args:
        client: The SDK's client.
        model: The model's name.
        prompt: What the user says.
        max_tokens: How long the answer may become.
        system: The system prompt.
        **options: Passed to the SDK's `messages.create`, for example `thinking` or `stop_sequences`.

    Yields:
        `Text` for each piece, `Usage` as counts become known (inclusive; the latest counts), then `Done`.

    Raises:
        ProviderError: There is no complete answer. What was yielded before is a part of one.

    Example:
        >>> async for event in stream(client, model="claude-opus-5-5", prompt="Say hello", max_tokens=100):
        ...     match event:
        ...         case Text(text):
        ...             await job.write(text)
        ...         case Usage():
        ...             await job.progress(usage=event)
    """
    if system is not None:
        options["system"] = system
    answer = _Answer()
    try:
        events = await client.with_options(max_retries=0).messages.create(
            model=model,
            max_tokens=max_tokens,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            **options,
        )
        answer.request_id = events.response.headers.get("request-id")
        async with events:
            async for event in events:
                for heard in answer.hear(event):
                    yield heard
    except _FAILURES as error:
        if not answer.is_complete:  # after its end, nothing can spoil an answer that is paid for
            raise _translate(error, answer.request_id) from _presentable(error)
    yield answer.done()


class _Answer:
    """What has been heard of one answer."""

    def __init__(self) -> None:
        self.request_id: str | None = None
        self._response_id: str | None = None
        self._model: str | None = None
        self._stop_reason: str | None = None
        self._stopped = False
        self._usage: dict[str, Any] = {}

    @property
    def is_complete(self) -> bool:
        """Whether the end was heard: a reason to stop, and the stop itself."""
        return self._stopped and self._stop_reason is not None

    def hear(self, event: RawMessageStreamEvent) -> list[Event]:
        """Take in the SDK's next event and return what it means."""
        if event.type == "content_block_delta":
            return [Text(event.delta.text)] if event.delta.type == "text_delta" else []
        if event.type == "content_block_start":
            block = event.content_block
            return [Text(block.text)] if block.type == "text" and block.text else []
        if event.type == "message_start":
            self._response_id, self._model = event.message.id, event.message.model
            return [self._count(event.message.usage)]
        if event.type == "message_delta":
            self._stop_reason = event.delta.stop_reason or self._stop_reason
            return [self._count(event.usage)]
        if event.type == "message_stop":
            self._stopped = True
        return []

    def done(self) -> Done:
        """Return the end of the answer.

        Raises:
            ProviderError: It did not come to its end, or the model refused to answer.
        """
        if not self._stopped or self._stop_reason is None:
            raise ProviderError(PROVIDER, "truncated", http_status=200, request_id=self.request_id)
        if self._stop_reason == "refusal":
            raise ProviderError(
                PROVIDER, "content_filtered", http_status=200, request_id=self.request_id, code="refusal"
            )
        return Done(
            finish_reason=_FINISH_REASONS.get(self._stop_reason, "other"),
            provider_reason=self._stop_reason,
            model=self._model,
            response_id=self._response_id,
            request_id=self.request_id,
            raw_usage=self._usage,
        )

    def _count(self, usage: MessageUsage | MessageDeltaUsage) -> Usage:
        """Merge cumulative counts into what was known, and return all of it."""
        self._usage = {**self._usage, **usage.model_dump(mode="json", exclude_none=True, warnings=False)}
        return _inclusive(self._usage)


def _inclusive(raw: Mapping[str, Any]) -> Usage:
    """Anthropic counts cached input apart from `input_tokens`; jobstore's input tokens are all of them."""
    read, written = _number(raw.get("cache_read_input_tokens")), _number(raw.get("cache_creation_input_tokens"))
    fresh = _number(raw.get("input_tokens"))
    details = raw.get("output_tokens_details")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=_number(raw.get("output_tokens")),
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=_number(details.get("thinking_tokens")) if isinstance(details, Mapping) else None,
    )


def _number(value: JsonValue) -> int | None:
    """The SDK does not validate what it receives: a count that is none is unknown."""
    return value if type(value) is int and value >= 0 else None


def _translate(error: Exception, request_id: str | None) -> ProviderError:
    """Return the error of this package that an SDK's or a socket's error stands for."""
    if isinstance(error, anthropic.APIStatusError):
        return _translate_status(error)
    category: Category = "server_error"
    if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
        category = "timeout"
    elif isinstance(error, anthropic.APIConnectionError | httpx2.TransportError):
        category = "connection"
    elif isinstance(error, anthropic.CredentialsError):
        category = "authentication"
    return ProviderError(PROVIDER, category, request_id=request_id, code=type(error.__cause__ or error).__name__)


def _translate_status(error: anthropic.APIStatusError) -> ProviderError:
    headers = error.response.headers
    return ProviderError(
        PROVIDER,
        _category(error),
        retryable=False if headers.get("x-should-retry") == "false" else None,
        retry_after=_retry_after(headers),
        http_status=error.status_code,
        request_id=error.request_id,
        code=error.error_code or error.type,
        provider_message=error.api_message,
    )


def _category(error: anthropic.APIStatusError) -> Category:
    """Look at the code first: an account without credit is answered like one that is too fast."""
    if (error.error_code or "").endswith("spend_limit_reached"):
        return "quota_exhausted"
    known = _BY_TYPE.get(error.type or "") or _BY_STATUS.get(error.status_code)
    if known is not None:
        return known
    if error.type not in _REFUSALS and error.status_code // 100 != _CLIENT_ERRORS:
        return "server_error"
    message = str(error.api_message).lower()
    return next((category for words, category in _BY_WORDS.items() if words in message), "invalid_request")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a response asks for: in milliseconds, in seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            wait = float(value) * unit
        except ValueError:
            wait = _until(value)
        if math.isfinite(wait):
            return min(max(0.0, wait), _LONGEST_WAIT)
    return None


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return math.nan


def _presentable(error: Exception) -> Exception | None:
    """Return the cause to be shown in a traceback; errors that quote a body, and so maybe a text, are left out."""
    return error if isinstance(error, httpx2.TransportError | anthropic.APIConnectionError) else None
