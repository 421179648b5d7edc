"""Anthropic's Messages API as bytes: reading its requests, writing its responses, its events and its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobstore.testing.llm_answers import Answer, LLMRequest, Refusal

PATH = "/v1/messages"
REQUEST_ID_HEADER = "request-id"
CHARACTERS_A_TOKEN = 4

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


def read_request(body: bytes) -> LLMRequest | Refusal:
    """Return the request that a body holds, or the refusal of a body that holds none."""
    try:
        fields = json.loads(body)
    except ValueError:
        return _invalid("the body is not JSON")
    if not isinstance(fields, dict):
        return _invalid("the body is not an object")
    model, max_tokens, messages = (fields.get(name) for name in ("model", "max_tokens", "messages"))
    if not isinstance(model, str) or not model:
        return _invalid("model: field required")
    if type(max_tokens) is not int or max_tokens < 1:
        return _invalid("max_tokens: a whole number above 0 is required")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        return _invalid("messages: at least one message is required")
    return LLMRequest(
        model=model,
        prompt="\n".join(_text(message.get("content")) for message in messages),
        system=_text(fields["system"]) if fields.get("system") else None,
        max_tokens=max_tokens,
        stream=fields.get("stream") is True,
    )


def write_error(refusal: Refusal, request_id: str) -> bytes:
    """Return the body of an error response."""
    kind = refusal.error_type or _ERROR_TYPES.get(refusal.status, "api_error")
    error: dict[str, Any] = {"type": kind, "message": refusal.message}
    if refusal.error_code is not None:
        error["details"] = {"error_code": refusal.error_code}
    return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()


def write_message(request: LLMRequest, answer: Answer, request_id: str) -> bytes:
    """Return the body of an answer that is not streamed."""
    message = _message(request, request_id) | {
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": answer.stop_reason or "end_turn",
        "usage": _Counts.of(request, answer, answer.text).at_end(),
    }
    return json.dumps(message).encode()


def write_events(request: LLMRequest, answer: Answer, request_id: str, chunk_size: int) -> Iterator[bytes]:
    """Yield the events of a streamed answer, up to where its ending leaves off."""
    whole = answer.ending == "ok"
    text = answer.text if whole else answer.text[: (len(answer.text) + 1) // 2]
    counts = _Counts.of(request, answer, text)
    yield _event("message_start", message=_message(request, request_id) | {"usage": counts.at_start()})
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield _event("ping")
    for start in range(0, len(text), chunk_size):
        piece = text[start : start + chunk_size]
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    if answer.ending == "error":
        kind = answer.error_type or "overloaded_error"
        yield _event("error", error={"type": kind, "message": "an error in mid-stream"}, request_id=request_id)
    if not whole:
        return
    yield _event("content_block_stop", index=0)
    delta = {"stop_reason": answer.stop_reason or "end_turn", "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage=counts.at_end())
    yield _event("message_stop")


@dataclass(frozen=True, slots=True)
class _Counts:
    """Token counts of an answer. Anthropic counts cached input apart."""

    fresh: int
    cache_read: int
    cache_write: int
    output: int
    thinking: int | None

    @classmethod
    def of(cls, request: LLMRequest, answer: Answer, sent: str) -> _Counts:
        """Take the script's counts, and estimate the others."""
        usage = answer.usage
        read, written = usage.cache_read_tokens or 0, usage.cache_write_tokens or 0
        estimated = _tokens(request.prompt) + _tokens(request.system or "")
        everything = read + written + estimated if usage.input_tokens is None else usage.input_tokens
        output = _tokens(sent) if usage.output_tokens is None else usage.output_tokens
        return cls(everything - read - written, read, written, output, usage.reasoning_tokens)

    def at_start(self) -> dict[str, Any]:
        return self._input() | {"output_tokens": min(1, self.output)}

    def at_end(self) -> dict[str, Any]:
        details = {} if self.thinking is None else {"output_tokens_details": {"thinking_tokens": self.thinking}}
        return self._input() | {"output_tokens": self.output} | details

    def _input(self) -> dict[str, Any]:
        return {
            "input_tokens": self.fresh,
            "cache_creation_input_tokens": self.cache_write,
            "cache_read_input_tokens": self.cache_read,
        }


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
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN)


def _text(content: object) -> str:
    """Return the text of a content: a string, or blocks of which some are text."""
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return str(content)


def _invalid(message: str) -> Refusal:
    return Refusal(400, message)
