"""OpenAI's Responses API, read as a stream through the official SDK."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jobstore.errors import InvalidArgument
from jobstore.models import Usage
from jobstore.providers.base import Answer
from jobstore.providers.common import count, part
from jobstore.providers.events import Event, FinishReason, Reasoning, Text
from jobstore.providers.images import Image, read_images
from jobstore.providers.openai_base import OpenAIBase, category_of, function
from jobstore.providers.request import Message, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.responses import Response, ResponseStreamEvent


class ResponsesAnswer(Answer):
    """What has been heard of one response."""

    provider = "openai"
    finish_reasons: ClassVar[Mapping[str, FinishReason]] = {
        "completed": "stop",
        "max_output_tokens": "length",
    }
    filtered = frozenset({"content_filter"})

    def hear(self, event: ResponseStreamEvent) -> list[Event]:
        """Take in the SDK's next event; failures are yielded like all others."""
        match event.type:
            case "response.created":
                return self.start(event.response.id, event.response.model)
            case "response.output_text.delta" | "response.refusal.delta":
                return self._say(event.delta, refused=event.type == "response.refusal.delta")
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                return [Reasoning(event.delta)]
            case "response.output_item.done":
                return self._finish_item(event.item)
            case "response.completed" | "response.incomplete" | "response.failed":
                return self._end(event.response)
            case "error":
                self._fail(event.code, event.message)
        return []

    def read(self, response: Response) -> list[Event]:
        """Take in a whole response."""
        events: list[Event] = []
        for item in response.output:
            events += self._read_item(item)
        return [*self.start(response.id, response.model), *events, *self._end(response)]

    def _read_item(self, item: Any) -> list[Event]:  # noqa: ANN401 - a union of three dozen
        if item.type == "message":
            return [text for content in item.content for text in self._read_content(content)]
        if item.type == "reasoning":
            return [Reasoning(piece.text) for piece in [*item.summary, *(item.content or [])]]
        return self._finish_item(item)

    def _read_content(self, content: Any) -> list[Event]:  # noqa: ANN401 - a union
        if content.type == "refusal":
            return self._say(content.refusal, refused=True)
        return self._say(content.text)

    def _say(self, text: str, *, refused: bool = False) -> list[Event]:
        if refused:
            self.withheld = "refusal"
        return [Text(text)]

    def _finish_item(self, item: Any) -> list[Event]:  # noqa: ANN401 - a union of three dozen
        if item.type == "function_call":
            return [self.call(item.call_id, item.name, item.arguments)]
        if item.type == "custom_tool_call":
            return [self.call(item.call_id, item.name, item.input)]
        return []

    def _end(self, response: Response) -> list[Event]:
        """The whole response comes again at its end: completed, incomplete or failed."""
        if response.status == "failed":
            self._fail(*(response.error.code, response.error.message) if response.error is not None else (None, None))
        elif response.status in {"completed", "incomplete"}:
            details = response.incomplete_details
            self.reason = (details.reason if details is not None else None) or response.status
        started = self.start(response.id, response.model)
        if response.usage is None:
            return started
        return [*started, *self.count(response.usage.model_dump(mode="json", exclude_none=True, warnings=False))]

    def _fail(self, code: str | None, message: str | None) -> None:
        self.error = self.failure(category_of(code) or "server_error", code=code, message=message)

    @staticmethod
    def usage(raw: Mapping[str, Any]) -> Usage:
        """OpenAI's counts are inclusive."""
        read = part(raw, "input_tokens_details")
        return Usage(
            input_tokens=count(raw.get("input_tokens")),
            output_tokens=count(raw.get("output_tokens")),
            cache_read_tokens=count(read.get("cached_tokens")),
            cache_write_tokens=count(read.get("cache_write_tokens")),
            reasoning_tokens=count(part(raw, "output_tokens_details").get("reasoning_tokens")),
        )


class ResponsesAdapter(OpenAIBase):
    """The Responses API."""

    name = "openai"
    flavor = "responses"

    def answer(self) -> ResponsesAnswer:
        """Return what will listen to one response."""
        return ResponsesAnswer()

    async def arguments(self, request: Request) -> dict[str, Any]:
        """Return what `responses.create` takes.

        Raises:
            InvalidArgument: There are `stop` texts, which this API does not know, or an image cannot be read.
        """
        if request.stop:
            raise InvalidArgument("stop", "is not known to OpenAI's Responses API: use the API type openai_chat")
        images = await read_images(request.conversation)
        arguments: dict[str, Any] = {
            "model": request.model,
            "input": [item for message in request.conversation for item in _items(message, images)],
        }
        if request.system is not None:
            arguments["instructions"] = request.system
        if request.max_tokens is not None:
            arguments["max_output_tokens"] = request.max_tokens
        if request.temperature is not None:
            arguments["temperature"] = request.temperature
        if request.tools:
            arguments["tools"] = [{"type": "function", "strict": False, **function(tool)} for tool in request.tools]
        return arguments | request.options

    async def create(self, client: AsyncOpenAI, arguments: dict[str, Any]) -> AsyncStream[ResponseStreamEvent]:
        """Call the SDK."""
        stream: AsyncStream[ResponseStreamEvent] = await client.responses.create(**arguments)
        return stream


ADAPTER = ResponsesAdapter()


def _items(message: Message, images: Mapping[str, Image]) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
        return
    pictures = [{"type": "input_image", "detail": "auto", "image_url": images[path].url} for path in message.images]
    if pictures:
        yield {"role": message.role, "content": [*pictures, {"type": "input_text", "text": message.content}]}
    elif message.content:
        yield {"role": message.role, "content": message.content}
    for call in message.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
