"""OpenAI's chat completions, which many others offer too, read as a stream through the official SDK."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jobstore.models import Usage
from jobstore.providers.base import Answer
from jobstore.providers.common import count, part
from jobstore.providers.events import Event, FinishReason, Reasoning, Text
from jobstore.providers.images import Image, read_images
from jobstore.providers.openai_base import OpenAIBase, function
from jobstore.providers.request import Message, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletion, ChatCompletionChunk


class ChatAnswer(Answer):
    """What has been heard of one completion: of its first choice, if there are several."""

    provider = "openai"
    finish_reasons: ClassVar[Mapping[str, FinishReason]] = {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "function_call": "tool_calls",
    }
    filtered = frozenset({"content_filter"})

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[int, dict[str, str]] = {}

    def hear(self, event: ChatCompletionChunk) -> list[Event]:
        """Take in the SDK's next chunk."""
        events = self.start(event.id or None, event.model)
        for choice in event.choices:
            if choice.index == 0:
                events += self._say(choice.delta)
                events += self._finish(choice.finish_reason)
        if event.usage is not None:
            events += self.count(event.usage.model_dump(mode="json", exclude_none=True, warnings=False))
        return events

    def read(self, response: ChatCompletion) -> list[Event]:
        """Take in a whole completion."""
        events = self.start(response.id or None, response.model)
        for choice in response.choices[:1]:
            events += self._say(choice.message)
            events += self._finish(choice.finish_reason)
        if response.usage is not None:
            events += self.count(response.usage.model_dump(mode="json", exclude_none=True, warnings=False))
        return events

    def _say(self, said: Any) -> list[Event]:  # noqa: ANN401 - a message, or a part of one
        events: list[Event] = []
        # Not OpenAI's own: other servers tell so what the model thinks.
        thought = getattr(said, "reasoning_content", None) or getattr(said, "reasoning", None)
        if isinstance(thought, str) and thought:
            events.append(Reasoning(thought))
        if said.content:
            events.append(Text(said.content))
        if said.refusal:
            self.withheld = "refusal"
            events.append(Text(said.refusal))
        for number, call in enumerate(said.tool_calls or ()):
            self._collect(getattr(call, "index", number), call)
        return events

    def _collect(self, index: int, call: Any) -> None:  # noqa: ANN401 - a call, or a part of one
        """Put a call together: its id and name come with its first part; what a custom tool is given is its input."""
        known = self._parts.setdefault(index, {"id": "", "name": "", "arguments": ""})
        known["id"] = call.id or known["id"]
        said = call.to_dict()
        called = part(said, "function") or part(said, "custom")
        known["name"] = called.get("name") or known["name"]
        known["arguments"] += called.get("arguments") or called.get("input") or ""

    def _finish(self, reason: str | None) -> list[Event]:
        if reason is None:
            return []
        self.reason = reason
        calls, self._parts = list(self._parts.values()), {}
        return [self.call(call["id"], call["name"], call["arguments"]) for call in calls if call["name"]]

    @staticmethod
    def usage(raw: Mapping[str, Any]) -> Usage:
        """OpenAI's counts are inclusive."""
        read = part(raw, "prompt_tokens_details")
        return Usage(
            input_tokens=count(raw.get("prompt_tokens")),
            output_tokens=count(raw.get("completion_tokens")),
            cache_read_tokens=count(read.get("cached_tokens")),
            cache_write_tokens=count(read.get("cache_write_tokens")),
            reasoning_tokens=count(part(raw, "completion_tokens_details").get("reasoning_tokens")),
        )


class ChatAdapter(OpenAIBase):
    """Chat completions, of OpenAI and of whoever speaks its protocol."""

    name = "openai_chat"
    flavor = "chat"

    def answer(self) -> ChatAnswer:
        """Return what will listen to one completion."""
        return ChatAnswer()

    async def arguments(self, request: Request) -> dict[str, Any]:
        """Return what `chat.completions.create` takes."""
        images = await read_images(request.conversation)
        messages = [_message(message, images) for message in request.conversation]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": messages,
            "stream_options": {"include_usage": True},
        }
        if request.max_tokens is not None:
            arguments["max_completion_tokens"] = request.max_tokens
        if request.temperature is not None:
            arguments["temperature"] = request.temperature
        if request.stop:
            arguments["stop"] = request.stop
        if request.tools:
            arguments["tools"] = [{"type": "function", "function": function(tool)} for tool in request.tools]
        return arguments | request.options

    async def create(self, client: AsyncOpenAI, arguments: dict[str, Any]) -> AsyncStream[ChatCompletionChunk]:
        """Call the SDK."""
        stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(**arguments)
        return stream


ADAPTER = ChatAdapter()


def _message(message: Message, images: Mapping[str, Image]) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        said["content"] = list(_parts(message, images))
    if message.tool_calls:
        said["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return said


def _parts(message: Message, images: Mapping[str, Image]) -> Iterator[dict[str, Any]]:
    for path in message.images:
        yield {"type": "image_url", "image_url": {"url": images[path].url}}
    yield {"type": "text", "text": message.content}
