"""What the protocols of the local LLM server have in common: how one is spoken, and how tokens are counted."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jobstore.models import Usage
from jobstore.testing.llm_answers import API, Answer, Failure, LLMRequest, Refusal

CHARACTERS_A_TOKEN = 4


class Invalid(Exception):
    """A request that the real service would refuse; it says why."""


class Protocol(ABC):
    """One API as JSON and server-sent events: it reads requests, and writes responses, streams and errors.

    Attributes:
        api: Which one.
        paths: Where it is served, as routes of Starlette.
        request_id_header: The header that names a request, if there is one.
        failures: The error responses by what they mean.
    """

    api: ClassVar[API]
    paths: ClassVar[tuple[str, ...]]
    request_id_header: ClassVar[str | None] = None
    failures: ClassVar[Mapping[Failure, Refusal]]

    @abstractmethod
    def read(self, fields: dict[str, Any], path: Mapping[str, Any]) -> LLMRequest:
        """Return the request that a body holds; `path` has what its route matched.

        Raises:
            Invalid: It is none.
        """

    @abstractmethod
    def whole(self, request: LLMRequest, answer: Answer, request_id: str) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""

    @abstractmethod
    def events(self, request: LLMRequest, answer: Answer, request_id: str, chunk_size: int) -> Iterator[bytes]:
        """Yield the events of a streamed answer, up to where its ending leaves off."""

    @abstractmethod
    def error(self, refusal: Refusal, status: int, request_id: str) -> dict[str, Any]:
        """Return the body of an error response."""

    def resolve(self, refusal: Refusal) -> tuple[Refusal, int]:
        """Return what a refusal is in this protocol, and its HTTP status; what it says itself holds."""
        if isinstance(refusal.status, int):
            return refusal, refusal.status
        ours = self.failures[refusal.status]
        whole = replace(
            ours,
            message=refusal.message or ours.message,
            error_type=refusal.error_type or ours.error_type,
            error_code=refusal.error_code or ours.error_code,
            retry_after=refusal.retry_after,
            headers=refusal.headers,
            details=refusal.details or ours.details,
        )
        return self.resolve(whole)


@dataclass(frozen=True, slots=True)
class Counts:
    """Inclusive token counts of an answer, all of them known."""

    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int

    @classmethod
    def of(cls, request: LLMRequest, usage: Usage, sent: str) -> Counts:
        """Take the script's counts, and estimate the others."""
        read, written = usage.cache_read_tokens or 0, usage.cache_write_tokens or 0
        estimated = read + written + tokens(request.prompt) + tokens(request.system or "")
        return cls(
            estimated if usage.input_tokens is None else usage.input_tokens,
            tokens(sent) if usage.output_tokens is None else usage.output_tokens,
            read,
            written,
            usage.reasoning_tokens or 0,
        )


def sent_text(answer: Answer) -> str:
    """Return how much of an answer's text comes: half of it, if it does not end well."""
    return answer.text if answer.ending == "ok" else answer.text[: (len(answer.text) + 1) // 2]


def pieces(text: str, chunk_size: int) -> Iterator[str]:
    """Yield a text in pieces."""
    for start in range(0, len(text), chunk_size):
        yield text[start : start + chunk_size]


def server_sent(data: object, event: str | None = None) -> bytes:
    """Return a server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def tokens(text: str) -> int:
    """Estimate the tokens of a text."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


def text_of(content: object) -> str:
    """Return the text of a content: a string, or parts of which some have a text."""
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return "" if content is None else str(content)


def required(fields: Mapping[str, Any], name: str) -> str:
    """Return a text that a request must have.

    Raises:
        Invalid: It has none.
    """
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise Invalid(f"{name}: field required")
    return value


def objects(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects that a request must have, of at least one.

    Raises:
        Invalid: It has none.
    """
    value = fields.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise Invalid(f"{name}: at least one is required")
    return value


def limit(fields: Mapping[str, Any], name: str) -> int:
    """Return how long an answer may become, 0 if that is not said.

    Raises:
        Invalid: It is no whole number above 0.
    """
    value = fields.get(name)
    if value is None:
        return 0
    if type(value) is not int or value < 1:
        raise Invalid(f"{name}: a whole number above 0 is required")
    return value
