"""Anthropic's Messages API, read as a stream through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, ClassVar

from jobstore.models import Usage
from jobstore.providers.base import Adapter, Answer, Opened
from jobstore.providers.common import count, part, refused_by_sdk, retry_after, status_category, unexpected_error
from jobstore.providers.errors import Category, ProviderError
from jobstore.providers.events import Event, FinishReason, Reasoning, Text
from jobstore.providers.images import Image, read_images
from jobstore.providers.request import Message, Request

try:
    import anthropic
    from anthropic import AsyncAnthropic
    from anthropic.types import Message as MessageResponse
    from anthropic.types import RawMessageStreamEvent
except ImportError as error:
    raise ImportError(
        "jobstore.providers.anthropic needs the Anthropic SDK: pip install 'jobstore[anthropic]'"
    ) from error

DEFAULT_MAX_TOKENS = 8192
"""The API wants to be told. It is as much as its smaller models take; ask for more where an answer may be longer."""

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
_REFUSALS = frozenset({"invalid_request_error", "not_found_error"})
# These come as plain invalid requests, without a code of their own.
_BY_WORDS: dict[str, Category] = {
    "prompt is too long": "context_too_long",
    "exceed context limit": "context_too_long",
    "content filtering policy": "content_filtered",
}


class AnthropicAnswer(Answer):
    """What has been heard of one message."""

    provider = "anthropic"
    finish_reasons: ClassVar[Mapping[str, FinishReason]] = {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "pause_turn": "paused",
    }
    filtered = frozenset({"refusal"})

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False
        self._tools: dict[int, tuple[str, str, list[str]]] = {}

    @property
    def is_complete(self) -> bool:
        """Whether the end was heard: a reason to stop, and the stop itself."""
        return self._stopped and self.reason is not None

    def hear(self, event: RawMessageStreamEvent) -> list[Event]:
        """Take in the SDK's next event."""
        match event.type:
            case "message_start":
                started = self.start(event.message.id, event.message.model)
                return [*started, *self.count(_plain(event.message.usage))]
            case "content_block_start":
                return self._begin_block(event.index, event.content_block)
            case "content_block_delta":
                return self._go_on(event.index, event.delta)
            case "content_block_stop":
                return self._end_block(event.index)
            case "message_delta":
                self.reason = event.delta.stop_reason or self.reason
                return self.count(_plain(event.usage))
            case "message_stop":
                self._stopped = True
        return []

    def read(self, response: MessageResponse) -> list[Event]:
        """Take in a whole message."""
        events = [*self.start(response.id, response.model)]
        for index, block in enumerate(response.content):
            events += self._begin_block(index, block)
            events += self._end_block(index)
        self.reason, self._stopped = response.stop_reason, True
        return [*events, *self.count(_plain(response.usage))]

    def _begin_block(self, index: int, block: Any) -> list[Event]:  # noqa: ANN401 - a union of two dozen
        if block.type == "text" and block.text:
            return [Text(block.text)]
        if block.type == "thinking" and block.thinking:
            return [Reasoning(block.thinking)]
        if block.type == "tool_use":
            self._tools[index] = (block.id, block.name, [json.dumps(block.input)] if block.input else [])
        return []

    def _go_on(self, index: int, delta: Any) -> list[Event]:  # noqa: ANN401 - a union
        if delta.type == "text_delta":
            return [Text(delta.text)]
        if delta.type == "thinking_delta":
            return [Reasoning(delta.thinking)]
        if delta.type == "input_json_delta" and index in self._tools:
            self._tools[index][2].append(delta.partial_json)
        return []

    def _end_block(self, index: int) -> list[Event]:
        if index not in self._tools:
            return []
        call_id, name, pieces = self._tools.pop(index)
        return [self.call(call_id, name, "".join(pieces))]

    @staticmethod
    def usage(raw: Mapping[str, Any]) -> Usage:
        """Anthropic counts cached input apart from `input_tokens`; jobstore's input tokens are all of them."""
        read, written = count(raw.get("cache_read_input_tokens")), count(raw.get("cache_creation_input_tokens"))
        fresh = count(raw.get("input_tokens"))
        return Usage(
            input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
            output_tokens=count(raw.get("output_tokens")),
            cache_read_tokens=read,
            cache_write_tokens=written,
            reasoning_tokens=count(part(raw, "output_tokens_details").get("thinking_tokens")),
        )


class AnthropicAdapter(Adapter):
    """The Messages API, through `AsyncAnthropic` or its kin for clouds."""

    name = "anthropic"
    provider = "anthropic"

    def answer(self) -> AnthropicAnswer:
        """Return what will listen to one message."""
        return AnthropicAnswer()

    async def arguments(self, request: Request) -> dict[str, Any]:
        """Return what `messages.create` takes."""
        images = await read_images(request.conversation)
        arguments: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": list(_turns(request.conversation, images)),
        }
        if request.system is not None:
            arguments["system"] = request.system
        if request.stop:
            arguments["stop_sequences"] = request.stop
        if request.tools:
            arguments["tools"] = [
                {"name": tool.name, "description": tool.description or "", "input_schema": tool.parameters}
                for tool in request.tools
            ]
        arguments |= request.options
        if request.temperature is not None:  # the SDK's call has no argument for it any more
            arguments["extra_body"] = {"temperature": request.temperature, **part(arguments, "extra_body")}
        return arguments

    async def open(self, client: AsyncAnthropic, arguments: dict[str, Any], *, sdk_retries: bool) -> Opened:
        """Send a request."""
        asked = client if sdk_retries else client.with_options(max_retries=0)
        try:
            events = await asked.messages.create(**arguments | {"stream": True})
        except TypeError as error:  # before anything is sent
            raise refused_by_sdk(self.provider, error) from error
        response = events.response
        return Opened(events, events.close, response.status_code, response.headers.get("request-id"))

    def translate(self, error: Exception, request_id: str | None = None) -> ProviderError:
        """Return what an error of the SDK means."""
        if isinstance(error, anthropic.APIStatusError):
            return _status_error(error)
        return unexpected_error(self.provider, error, request_id)


ADAPTER = AnthropicAdapter()


def _status_error(error: anthropic.APIStatusError) -> ProviderError:
    headers = error.response.headers
    return ProviderError(
        "anthropic",
        _category(error),
        retryable=False if headers.get("x-should-retry") == "false" else None,
        retry_after=retry_after(headers),
        http_status=error.status_code,
        request_id=error.request_id,
        code=error.error_code or error.type,
        provider_message=error.api_message,
    )


def _category(error: anthropic.APIStatusError) -> Category:
    """Look at the code first: an account without credit is answered like one that is too fast."""
    if (error.error_code or "").endswith("spend_limit_reached"):
        return "quota_exhausted"
    known = _BY_TYPE.get(error.type or "") or status_category(error.status_code)
    if known == "server_error" and error.type in _REFUSALS:  # within a stream, whose status is 200
        known = "invalid_request"
    if known != "invalid_request":
        return known
    message = str(error.api_message).lower()
    return next((category for words, category in _BY_WORDS.items() if words in message), "invalid_request")


def _turns(conversation: Iterable[Message], images: Mapping[str, Image]) -> Iterator[dict[str, Any]]:
    """Yield the conversation's turns; results of tools are said by the user, together."""
    speakers = groupby(conversation, key=lambda message: "assistant" if message.role == "assistant" else "user")
    for role, messages in speakers:
        yield {"role": role, "content": [block for message in messages for block in _blocks(message, images)]}


def _blocks(message: Message, images: Mapping[str, Image]) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
        return
    for path in message.images:
        source = {"type": "base64", "media_type": images[path].media_type, "data": images[path].base64}
        yield {"type": "image", "source": source}
    if message.content:
        yield {"type": "text", "text": message.content}
    for call in message.tool_calls:
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": call.parsed()}


def _plain(usage: Any) -> dict[str, Any]:  # noqa: ANN401 - a model of the SDK
    plain: dict[str, Any] = usage.model_dump(mode="json", exclude_none=True, warnings=False)
    return plain
