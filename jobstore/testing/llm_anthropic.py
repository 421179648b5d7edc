"""Anthropic's Messages API, as the local LLM server speaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from jobstore.providers import ToolCall
from jobstore.testing.llm_answers import Answer, Failure, LLMRequest, Refusal
from jobstore.testing.llm_wire import (
    Counts,
    Invalid,
    Protocol,
    limit,
    objects,
    pieces,
    required,
    sent_text,
    server_sent,
    text_of,
)

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Messages(Protocol):
    """Anthropic's Messages API, streamed and whole."""

    api = "anthropic"
    paths = ("/v1/messages",)
    request_id_header = "request-id"
    failures: ClassVar[Mapping[Failure, Refusal]] = {
        "rate_limited": Refusal(429),
        "overloaded": Refusal(529),
        "quota": Refusal(429, error_code="enforced_spend_limit_reached"),
        "invalid": Refusal(400),
        "expired": Refusal(401, "the API key has expired"),
        "context_too_long": Refusal(400, "prompt is too long: 300000 tokens > 200000 maximum"),
        "server_error": Refusal(500),
        "timeout": Refusal(504),
    }

    def read(self, fields: dict[str, Any], path: Mapping[str, Any]) -> LLMRequest:  # noqa: ARG002 - always the same
        """Return the request that a body holds."""
        model, max_tokens, messages = (
            required(fields, "model"),
            limit(fields, "max_tokens"),
            objects(fields, "messages"),
        )
        if max_tokens == 0:
            raise Invalid("max_tokens: field required")
        return LLMRequest(
            model=model,
            prompt="\n".join(text_of(message.get("content")) for message in messages),
            system=text_of(fields["system"]) if fields.get("system") else None,
            max_tokens=max_tokens,
            stream=fields.get("stream") is True,
            api=self.api,
            body=fields,
        )

    def error(self, refusal: Refusal, status: int, request_id: str) -> dict[str, Any]:
        """Return the body of an error response."""
        error: dict[str, Any] = {
            "type": refusal.error_type or _ERROR_TYPES.get(status, "api_error"),
            "message": refusal.words,
        }
        if refusal.error_code is not None:
            error["details"] = {"error_code": refusal.error_code}
        return {"type": "error", "error": error, "request_id": request_id}

    def whole(self, request: LLMRequest, answer: Answer, request_id: str) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        return _message(request, request_id) | {
            "content": [
                *([_thinking(answer.reasoning)] if answer.reasoning else []),
                {"type": "text", "text": answer.text},
                *(_tool_use(call) | {"input": call.parsed()} for call in answer.tool_calls),
            ],
            "stop_reason": _stop_reason(answer),
            "usage": _at_end(Counts.of(request, answer.usage, answer.text)),
        }

    def events(self, request: LLMRequest, answer: Answer, request_id: str, chunk_size: int) -> Iterator[bytes]:
        """Yield the events of a streamed answer, up to where its ending leaves off."""
        text = sent_text(answer)
        counts = Counts.of(request, answer.usage, text)
        yield _event("message_start", message=_message(request, request_id) | {"usage": _at_start(counts)})
        index = 0
        if answer.reasoning:
            deltas = ({"type": "thinking_delta", "thinking": each} for each in pieces(answer.reasoning, chunk_size))
            yield from _block(index, _thinking(""), deltas)
            index += 1
        yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
        yield _event("ping")
        for piece in pieces(text, chunk_size):
            yield _event("content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
        if answer.ending in {"error", "failed"}:
            kind = answer.error_type or "overloaded_error"
            yield _event("error", error={"type": kind, "message": "an error in mid-stream"}, request_id=request_id)
        if answer.ending != "ok":
            return
        yield _event("content_block_stop", index=index)
        for number, call in enumerate(answer.tool_calls, index + 1):
            deltas = (_input_delta(each) for each in pieces(call.arguments, chunk_size))
            yield from _block(number, _tool_use(call), deltas)
        delta = {"stop_reason": _stop_reason(answer), "stop_sequence": None}
        yield _event("message_delta", delta=delta, usage=_at_end(counts))
        yield _event("message_stop")


def _block(index: int, block: dict[str, Any], deltas: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    yield _event("content_block_start", index=index, content_block=block)
    for delta in deltas:
        yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _at_start(counts: Counts) -> dict[str, Any]:
    return _input(counts) | {"output_tokens": min(1, counts.output)}


def _at_end(counts: Counts) -> dict[str, Any]:
    details = {"output_tokens_details": {"thinking_tokens": counts.reasoning}} if counts.reasoning else {}
    return _input(counts) | {"output_tokens": counts.output} | details


def _input(counts: Counts) -> dict[str, Any]:
    """Anthropic counts cached input apart."""
    return {
        "input_tokens": counts.input - counts.cache_read - counts.cache_write,
        "cache_creation_input_tokens": counts.cache_write,
        "cache_read_input_tokens": counts.cache_read,
    }


def _stop_reason(answer: Answer) -> str:
    return answer.stop_reason or ("tool_use" if answer.tool_calls else "end_turn")


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _input_delta(piece: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": piece}


def _message(request: LLMRequest, request_id: str) -> dict[str, Any]:
    return {
        "id": request_id.replace("req_", "msg_"),
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _event(kind: str, **fields: object) -> bytes:
    return server_sent({"type": kind, **fields}, kind)
