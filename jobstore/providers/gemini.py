"""Google's Gemini API, read as a stream through the official SDK, google-genai."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

from jobstore.errors import InvalidArgument
from jobstore.models import Usage
from jobstore.providers.base import Adapter, Answer, Opened
from jobstore.providers.common import count, unexpected_error
from jobstore.providers.errors import ProviderError
from jobstore.providers.events import Event, FinishReason, Reasoning, Text
from jobstore.providers.gemini_errors import api_error
from jobstore.providers.images import Image, read_images
from jobstore.providers.request import Message, Request, Tool

try:
    from google.genai import Client, errors, types
    from google.genai.client import AsyncClient
except ImportError as error:
    raise ImportError("jobstore.providers.gemini needs Google's SDK: pip install 'jobstore[gemini]'") from error

NO_RETRIES = types.HttpOptions(retry_options=types.HttpRetryOptions(attempts=1))


class GeminiAnswer(Answer):
    """What has been heard of one response: of its first candidate, if there are several."""

    provider = "google"
    finish_reasons: ClassVar[Mapping[str, FinishReason]] = {
        "STOP": "stop",
        "MAX_TOKENS": "length",
        "CONTINUATION": "paused",
    }
    filtered = frozenset(
        {
            "SAFETY",
            "RECITATION",
            "BLOCKLIST",
            "PROHIBITED_CONTENT",
            "SPII",
            "MODEL_ARMOR",
            "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
        }
    )

    def hear(self, event: types.GenerateContentResponse) -> list[Event]:
        """Take in the SDK's next response, which is a part of the whole."""
        events = self.start(event.response_id, event.model_version)
        self.request_id = self.response_id  # it is what the provider's support asks for
        if event.prompt_feedback is not None and event.prompt_feedback.block_reason is not None:
            self.withheld = self.reason = event.prompt_feedback.block_reason.value
        for candidate in (event.candidates or [])[:1]:
            for part in (candidate.content and candidate.content.parts) or []:
                events += self._say(part)
            if candidate.finish_reason is not None:
                self.reason = candidate.finish_reason.value
        if event.usage_metadata is not None:
            events += self.count(event.usage_metadata.model_dump(mode="json", by_alias=True, exclude_none=True))
        return events

    def read(self, response: types.GenerateContentResponse) -> list[Event]:
        """Take in a whole response."""
        return self.hear(response)

    def _say(self, part: types.Part) -> list[Event]:
        if part.text:
            return [Reasoning(part.text) if part.thought else Text(part.text)]
        called = part.function_call
        if called is None or called.name is None:
            return []
        signature = base64.b64encode(part.thought_signature).decode() if part.thought_signature else None
        return [self.call(called.id, called.name, json.dumps(called.args or {}), signature)]

    @staticmethod
    def usage(raw: Mapping[str, Any]) -> Usage:
        """Gemini counts what tools gave to the prompt, and thoughts, apart; jobstore's counts are of all tokens."""
        asked = _sum(raw, "promptTokenCount", "toolUsePromptTokenCount")
        answered = _sum(raw, "candidatesTokenCount", "thoughtsTokenCount")
        if answered is None and asked is not None and count(raw.get("totalTokenCount")) == asked:
            answered = 0  # which is left out, as for a prompt that was blocked
        return Usage(
            input_tokens=asked,
            output_tokens=answered,
            cache_read_tokens=count(raw.get("cachedContentTokenCount")),
            reasoning_tokens=count(raw.get("thoughtsTokenCount")),
        )


class GeminiAdapter(Adapter):
    """`models.generate_content`, through `genai.Client` or its `aio`."""

    name = "gemini"
    provider = "google"

    def answer(self) -> GeminiAnswer:
        """Return what will listen to one response."""
        return GeminiAnswer()

    async def arguments(self, request: Request) -> dict[str, Any]:
        """Return what `models.generate_content` takes.

        Raises:
            InvalidArgument: The options name `http_options`, which belong to the client, or do not fit; or an image
                cannot be read.
        """
        images = await read_images(request.conversation)
        config: dict[str, Any] = {
            "system_instruction": request.system,
            "max_output_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stop_sequences": request.stop or None,
            "tools": [{"function_declarations": [_declaration(tool) for tool in request.tools]}]
            if request.tools
            else None,
            # One request a call: what comes next is for the caller to decide.
            "automatic_function_calling": {"disable": True},
            "automatic_continuation": False,
        }
        return {
            "model": request.model,
            "contents": list(_contents(request.conversation, images)),
            "config": _config(config | request.options),
        }

    async def open(self, client: Client | AsyncClient, arguments: dict[str, Any], *, sdk_retries: bool) -> Opened:
        """Send a request; the SDK tells that it was answered only with the first part of the answer."""
        models = client.models if isinstance(client, AsyncClient) else client.aio.models
        if not sdk_retries:
            config = arguments["config"].model_copy(update={"http_options": NO_RETRIES})
            arguments = arguments | {"config": config}
        parts: Any = await models.generate_content_stream(**arguments)
        first = await anext(parts, None)
        return Opened(_chain(first, parts), partial(_leave, parts), 200, None)

    def translate(self, error: Exception, request_id: str | None = None) -> ProviderError:
        """Return what an error of the SDK means."""
        if isinstance(error, errors.APIError):
            return api_error(error, request_id)
        return unexpected_error(self.provider, error, request_id)


ADAPTER = GeminiAdapter()


async def _chain(first: object | None, rest: AsyncIterator[object]) -> AsyncGenerator[object, None]:
    if first is None:
        return
    yield first
    async for part in rest:
        yield part


async def _leave(parts: AsyncGenerator[object, None]) -> None:
    """End a stream that may not have been read to its end.

    To close it would leave its connection to the garbage collector, since the SDK's response and the iterator in it
    refer to each other. So it is read on until it waits for the network, and that is cancelled.
    """
    reading: asyncio.Future[object] | None = None
    try:
        while reading is None or (reading.done() and reading.exception() is None and reading.result() is not None):
            reading = asyncio.ensure_future(anext(parts, None))
            await asyncio.sleep(0)
    finally:
        if reading is not None and reading.cancel():
            await asyncio.wait([reading])


def _sum(raw: Mapping[str, Any], *names: str) -> int | None:
    counts = [known for name in names if (known := count(raw.get(name))) is not None]
    return sum(counts) if counts else None


def _declaration(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description or "", "parameters_json_schema": tool.parameters}


def _config(fields: dict[str, Any]) -> types.GenerateContentConfig:
    try:
        config = types.GenerateContentConfig(**fields)
    except ValueError:  # it quotes what it was given
        problem = "do not fit what google-genai's GenerateContentConfig takes"
    else:
        if config.http_options is None:
            return config
        problem = "must not have http_options: a job could send the client's key elsewhere; give them to the client"
    raise InvalidArgument("options", problem)


def _contents(conversation: Iterable[Message], images: Mapping[str, Image]) -> Iterator[dict[str, Any]]:
    """Yield the conversation's turns; results of tools are said by the user, together."""
    names = {call.id: call.name for message in conversation for call in message.tool_calls}
    speakers = groupby(conversation, key=lambda message: "model" if message.role == "assistant" else "user")
    for role, messages in speakers:
        yield {"role": role, "parts": [part for message in messages for part in _parts(message, images, names)]}


def _parts(message: Message, images: Mapping[str, Image], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        call_id = message.tool_call_id or ""
        result = {"id": call_id, "name": names.get(call_id, call_id), "response": {"result": message.content}}
        yield {"function_response": result}
        return
    for path in message.images:
        yield {"inline_data": {"mime_type": images[path].media_type, "data": images[path].data}}
    if message.content:
        yield {"text": message.content}
    for call in message.tool_calls:
        called: dict[str, Any] = {"function_call": {"id": call.id, "name": call.name, "args": call.parsed()}}
        if call.signature is not None:
            called["thought_signature"] = base64.b64decode(call.signature)
        yield called
