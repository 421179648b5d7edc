"""Google's Gemini API, as the local LLM server speaks it, at /v1 and at /v1beta."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from jobstore.testing.llm_answers import Answer, Failure, LLMRequest, Refusal
from jobstore.testing.llm_wire import (
    Counts,
    Invalid,
    Protocol,
    limit,
    objects,
    pieces,
    sent_text,
    server_sent,
    text_of,
)

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CODES = {status: code for code, status in _STATUSES.items()}
_TYPE = "type.googleapis.com/google.rpc."


def _quota(period: str) -> dict[str, Any]:
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
        "quotaId": f"GenerateRequestsPer{period}PerProjectPerModel",
    }
    return {"@type": f"{_TYPE}QuotaFailure", "violations": [violation]}


class GenerateContent(Protocol):
    """The Gemini API's generateContent and streamGenerateContent."""

    api = "gemini"
    paths = ("/v1/models/{model}:{method}", "/v1beta/models/{model}:{method}")
    failures: ClassVar[Mapping[Failure, Refusal]] = {
        "rate_limited": Refusal(429, details=(_quota("Minute"),)),
        "overloaded": Refusal(503),
        "quota": Refusal(429, details=(_quota("Day"), {"@type": f"{_TYPE}RetryInfo", "retryDelay": "31s"})),
        "invalid": Refusal(400),
        "expired": Refusal(
            400,
            "API key expired. Please renew the API key.",
            details=({"@type": f"{_TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"},),
        ),
        "context_too_long": Refusal(
            400, "The input token count (3000000) exceeds the maximum number of tokens allowed (1048576)."
        ),
        "server_error": Refusal(500),
        "timeout": Refusal(504),
    }

    def read(self, fields: dict[str, Any], path: Mapping[str, Any]) -> LLMRequest:
        """Return the request that a body holds; the path names the model, and whether to stream."""
        if path["method"] not in {"generateContent", "streamGenerateContent"}:
            raise Invalid(f"there is no method {path['method']}")
        config = fields.get("generationConfig") or {}
        return LLMRequest(
            model=path["model"],
            prompt="\n".join(text_of(content.get("parts")) for content in objects(fields, "contents")),
            system=text_of((fields.get("systemInstruction") or {}).get("parts")) or None,
            max_tokens=limit(config, "maxOutputTokens"),
            stream=path["method"] == "streamGenerateContent",
            api=self.api,
            body=fields,
        )

    def error(self, refusal: Refusal, status: int, request_id: str) -> dict[str, Any]:  # noqa: ARG002 - not in the body
        """Return the body of an error response."""
        details = list(refusal.details)
        if isinstance(refusal.retry_after, int | float):
            details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{refusal.retry_after:g}s"})
        name = refusal.error_type or _STATUSES.get(status, "UNKNOWN")
        return {"error": {"code": status, "message": refusal.words, "status": name, "details": details}}

    def whole(self, request: LLMRequest, answer: Answer, request_id: str) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        parts: list[dict[str, Any]] = [{"text": answer.reasoning, "thought": True}] if answer.reasoning else []
        parts += [{"text": answer.text}, *_calls(answer)]
        counts = Counts.of(request, answer.usage, answer.text)
        return _response(request, request_id, parts, _finish_reason(answer)) | {"usageMetadata": _usage(counts)}

    def events(self, request: LLMRequest, answer: Answer, request_id: str, chunk_size: int) -> Iterator[bytes]:
        """Yield the parts of a streamed answer, up to where its ending leaves off."""
        text = sent_text(answer)
        counts = Counts.of(request, answer.usage, text)
        for piece in pieces(answer.reasoning, chunk_size):
            yield _part(request, request_id, counts, {"text": piece, "thought": True})
        for piece in pieces(text, chunk_size):
            yield _part(request, request_id, counts, {"text": piece})
        if answer.ending in {"error", "failed"}:
            status = answer.error_type or "UNAVAILABLE"
            error = {"code": _CODES.get(status, 500), "message": "an error in mid-stream", "status": status}
            yield server_sent({"error": error})
        if answer.ending != "ok":
            return
        last = _response(request, request_id, [*_calls(answer)] or [{"text": ""}], _finish_reason(answer))
        yield server_sent(last | {"usageMetadata": _usage(counts)})


def _part(request: LLMRequest, request_id: str, counts: Counts, part: dict[str, Any]) -> bytes:
    """Return a part as Google streams it; the counts so far are those of the prompt."""
    return server_sent(_response(request, request_id, [part]) | {"usageMetadata": {"promptTokenCount": counts.input}})


def _response(
    request: LLMRequest, request_id: str, parts: list[dict[str, Any]], finish_reason: str | None = None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": parts}}
    if finish_reason is not None:
        candidate["finishReason"] = finish_reason
    return {
        "candidates": [candidate],
        "modelVersion": request.model,
        "responseId": request_id.removeprefix("req_"),
    }


def _calls(answer: Answer) -> Iterator[dict[str, Any]]:
    for call in answer.tool_calls:
        yield {"functionCall": {"id": call.id, "name": call.name, "args": call.parsed()}}


def _finish_reason(answer: Answer) -> str:
    return answer.stop_reason or "STOP"


def _usage(counts: Counts) -> dict[str, Any]:
    """Gemini counts thoughts apart from the answer, and leaves out what is 0."""
    usage = {
        "promptTokenCount": counts.input,
        "cachedContentTokenCount": counts.cache_read,
        "candidatesTokenCount": counts.output - counts.reasoning,
        "thoughtsTokenCount": counts.reasoning,
        "totalTokenCount": counts.input + counts.output,
    }
    return {name: number for name, number in usage.items() if number}
