"""OpenAI's chat completions, as the local LLM server speaks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

_SYSTEM = frozenset({"system", "developer"})
DONE = b"data: [DONE]\n\n"


class Chat(Protocol):
    """OpenAI's chat completions, streamed and whole; reasoning comes as other servers of the protocol send it."""

    api = "openai_chat"
    paths = ("/v1/chat/completions",)
    request_id_header = "x-request-id"
    failures: ClassVar[Mapping[Failure, Refusal]] = FAILURES

    def read(self, fields: dict[str, Any], path: Mapping[str, Any]) -> LLMRequest:  # noqa: ARG002 - always the same
        """Return the request that a body holds."""
        messages = objects(fields, "messages")
        system = "\n".join(text_of(each.get("content")) for each in messages if each.get("role") in _SYSTEM)
        return LLMRequest(
            model=required(fields, "model"),
            prompt="\n".join(text_of(each.get("content")) for each in messages if each.get("role") not in _SYSTEM),
            system=system or None,
            max_tokens=limit(fields, "max_completion_tokens") or limit(fields, "max_tokens"),
            stream=fields.get("stream") is True,
            api=self.api,
            body=fields,
        )

    def error(self, refusal: Refusal, status: int, request_id: str) -> dict[str, Any]:  # noqa: ARG002 - not in the body
        """Return the body of an error response."""
        return openai_error(refusal, status)

    def whole(self, request: LLMRequest, answer: Answer, request_id: str) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [_tool_call(call, call.arguments) for call in answer.tool_calls]
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(answer), "logprobs": None}
        usage = _usage(Counts.of(request, answer.usage, answer.text))
        return _completion(request, request_id, "chat.completion") | {"choices": [choice], "usage": usage}

    def events(self, request: LLMRequest, answer: Answer, request_id: str, chunk_size: int) -> Iterator[bytes]:
        """Yield the events of a streamed answer, up to where its ending leaves off."""
        chunk = _completion(request, request_id, "chat.completion.chunk")
        for delta in _deltas(answer, chunk_size):
            yield server_sent(chunk | {"choices": [_choice(delta)]})
        if answer.ending in {"error", "failed"}:
            error = {"message": "an error in mid-stream", "type": "server_error", "param": None}
            yield server_sent({"error": error | {"code": answer.error_type or "server_overloaded"}})
        if answer.ending != "ok":
            return
        yield server_sent(chunk | {"choices": [_choice({}, _finish_reason(answer))]})
        if (request.body.get("stream_options") or {}).get("include_usage"):
            usage = _usage(Counts.of(request, answer.usage, answer.text))
            yield server_sent(chunk | {"choices": [], "usage": usage})
        yield DONE


def _deltas(answer: Answer, chunk_size: int) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": "", "refusal": None}
    for piece in pieces(answer.reasoning, chunk_size):
        yield {"reasoning_content": piece}
    for piece in pieces(sent_text(answer), chunk_size):
        yield {"content": piece}
    for index, call in enumerate(answer.tool_calls if answer.ending == "ok" else ()):
        yield {"tool_calls": [{"index": index, **_tool_call(call, "")}]}
        for piece in pieces(call.arguments, chunk_size):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _tool_call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _finish_reason(answer: Answer) -> str:
    return answer.stop_reason or ("tool_calls" if answer.tool_calls else "stop")


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "prompt_tokens": counts.input,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
        "completion_tokens": counts.output,
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.input + counts.output,
    }


def _completion(request: LLMRequest, request_id: str, kind: str) -> dict[str, Any]:
    return {
        "id": request_id.replace("req_", "chatcmpl-"),
        "object": kind,
        "created": 1_750_000_000,
        "model": request.model,
    }
