"""OpenAI's Responses API, as the local LLM server speaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, ClassVar

from jobstore.providers import ToolCall
from jobstore.testing.llm_answers import Answer, Failure, LLMRequest, Refusal
from jobstore.testing.llm_openai import FAILURES, openai_error
from jobstore.testing.llm_wire import (
    Counts,
    Protocol,
    limit,
    objects,
    pieces,
    required,
    sent_text,
    server_sent,
    text_of,
)


class Responses(Protocol):
    """OpenAI's Responses API, streamed and whole."""

    api = "openai"
    paths = ("/v1/responses",)
    request_id_header = "x-request-id"
    failures: ClassVar[Mapping[Failure, Refusal]] = FAILURES

    def read(self, fields: dict[str, Any], path: Mapping[str, Any]) -> LLMRequest:  # noqa: ARG002 - always the same
        """Return the request that a body holds."""
        return LLMRequest(
            model=required(fields, "model"),
            prompt=_prompt(fields),
            system=fields.get("instructions"),
            max_tokens=limit(fields, "max_output_tokens"),
            stream=fields.get("stream") is True,
            api=self.api,
            body=fields,
        )

    def error(self, refusal: Refusal, status: int, request_id: str) -> dict[str, Any]:  # noqa: ARG002 - not in the body
        """Return the body of an error response."""
        return openai_error(refusal, status)

    def whole(self, request: LLMRequest, answer: Answer, request_id: str) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        return _Writer(request, answer, request_id).response()

    def events(self, request: LLMRequest, answer: Answer, request_id: str, chunk_size: int) -> Iterator[bytes]:
        """Yield the events of a streamed answer, up to where its ending leaves off."""
        numbers = count()
        for kind, fields in _Writer(request, answer, request_id).events(chunk_size):
            yield server_sent({"type": kind, "sequence_number": next(numbers), **fields}, kind)


def _prompt(fields: dict[str, Any]) -> str:
    given = fields.get("input")
    if isinstance(given, str) and given:
        return given
    return "\n".join(text_of(item.get("content", item.get("output"))) for item in objects(fields, "input"))


_Event = tuple[str, dict[str, Any]]


class _Writer:
    """Writes one response."""

    def __init__(self, request: LLMRequest, answer: Answer, request_id: str) -> None:
        self._answer = answer
        self._id = request_id.removeprefix("req_")
        self._text = sent_text(answer)
        self._counts = Counts.of(request, answer.usage, self._text)
        self._begun = {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": 1_750_000_000,
            "status": "in_progress",
            "model": request.model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": request.system,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None,
        }

    def events(self, chunk_size: int) -> Iterator[_Event]:
        """Yield all events with their fields."""
        yield "response.created", {"response": self._begun}
        yield "response.in_progress", {"response": self._begun}
        index = 0
        if self._answer.reasoning:
            yield from self._reason(index, chunk_size)
            index += 1
        yield from self._speak(index, chunk_size)
        if self._answer.ending == "error":
            code = self._answer.error_type or "server_overloaded"
            yield "error", {"code": code, "message": "an error in mid-stream", "param": None}
        if self._answer.ending == "failed":
            yield "response.failed", {"response": self._failed()}
        if self._answer.ending != "ok":
            return
        for number, call in enumerate(self._answer.tool_calls, index + 1):
            yield from self._call(number, call, chunk_size)
        whole = self.response()
        yield f"response.{whole['status']}", {"response": whole}

    def response(self) -> dict[str, Any]:
        """Return the whole response."""
        reason = self._answer.stop_reason
        reasoning = [self._reasoning(self._answer.reasoning)] if self._answer.reasoning else []
        calls = [_function_call(call, call.arguments) for call in self._answer.tool_calls]
        return self._begun | {
            "status": "completed" if reason is None else "incomplete",
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [*reasoning, self._message("completed", [_output_text(self._text)]), *calls],
            "usage": self._usage(),
        }

    def _failed(self) -> dict[str, Any]:
        error = {"code": self._answer.error_type or "server_error", "message": "an error in mid-stream"}
        return self._begun | {"status": "failed", "error": error}

    def _reason(self, index: int, chunk_size: int) -> Iterator[_Event]:
        place = {"item_id": f"rs_{self._id}", "output_index": index, "summary_index": 0}
        yield "response.output_item.added", {"output_index": index, "item": self._reasoning(None)}
        yield "response.reasoning_summary_part.added", place | {"part": {"type": "summary_text", "text": ""}}
        for piece in pieces(self._answer.reasoning, chunk_size):
            yield "response.reasoning_summary_text.delta", place | {"delta": piece}
        yield "response.reasoning_summary_text.done", place | {"text": self._answer.reasoning}
        part = {"type": "summary_text", "text": self._answer.reasoning}
        yield "response.reasoning_summary_part.done", place | {"part": part}
        yield "response.output_item.done", {"output_index": index, "item": self._reasoning(self._answer.reasoning)}

    def _speak(self, index: int, chunk_size: int) -> Iterator[_Event]:
        """Yield the message, without its end if the answer does not end well."""
        place = {"item_id": f"msg_{self._id}", "output_index": index, "content_index": 0}
        yield "response.output_item.added", {"output_index": index, "item": self._message("in_progress", [])}
        yield "response.content_part.added", place | {"part": _output_text("")}
        for piece in pieces(self._text, chunk_size):
            yield "response.output_text.delta", place | {"delta": piece, "logprobs": []}
        if self._answer.ending == "ok":
            part = _output_text(self._text)
            yield "response.output_text.done", place | {"text": self._text, "logprobs": []}
            yield "response.content_part.done", place | {"part": part}
            item = self._message("completed", [part])
            yield "response.output_item.done", {"output_index": index, "item": item}

    def _call(self, index: int, call: ToolCall, chunk_size: int) -> Iterator[_Event]:
        place = {"item_id": f"fc_{call.id}", "output_index": index}
        yield "response.output_item.added", {"output_index": index, "item": _function_call(call, "")}
        for piece in pieces(call.arguments, chunk_size):
            yield "response.function_call_arguments.delta", place | {"delta": piece}
        done = {"arguments": call.arguments, "name": call.name}
        yield "response.function_call_arguments.done", place | done
        yield "response.output_item.done", {"output_index": index, "item": _function_call(call, call.arguments)}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": f"msg_{self._id}", "type": "message", "role": "assistant", "status": status, "content": content}

    def _reasoning(self, text: str | None) -> dict[str, Any]:
        summary = [] if text is None else [{"type": "summary_text", "text": text}]
        return {"id": f"rs_{self._id}", "type": "reasoning", "summary": summary}

    def _usage(self) -> dict[str, Any]:
        counts = self._counts
        return {
            "input_tokens": counts.input,
            "input_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
            "output_tokens": counts.output,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning},
            "total_tokens": counts.input + counts.output,
        }


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _function_call(call: ToolCall, arguments: str) -> dict[str, Any]:
    status = "completed" if arguments else "in_progress"
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
        "status": status,
    }
