"""What a request that an SDK has made asks of a model: it is read from the request itself, as it goes out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from jobstore.providers.common import part

_APIS = (
    ("/v1/messages", "anthropic", "claude", "messages"),
    ("/responses", "openai", "openai", "input"),
    ("/chat/completions", "openai_chat", "openai_chat", "messages"),
    (":generateContent", "gemini", "gemini", "contents"),
    (":streamGenerateContent", "gemini", "gemini", "contents"),
)
"""The ends of the paths at which models answer; the adapter, the API type of its jobs, and where the request has its
conversation. Whatever else is asked of a provider, such as files or lists of models, is no call of a model."""

_MODEL = re.compile(r"/models/([^/:]+):")
LARGEST_REST = 16_384
"""Characters that a request's other fields have at most beside its prompt, in the job's metadata."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a model.

    Attributes:
        adapter: The name of the adapter that understands the answer.
        api_type: What the job has.
        model: Whom it asks, if it says so.
        streamed: Whether the answer is to come as a stream.
        prompt: The text, of a request that says one thing; else the whole request as JSON.
        rest: The other fields of a request whose prompt is its text; empty if the prompt has them.
    """

    adapter: str
    api_type: str
    model: str | None
    streamed: bool
    prompt: str = field(repr=False)
    rest: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, method: str, path: str, body: bytes) -> Self | None:
        """Read a request; None if it asks no model anything."""
        api = next((api for api in _APIS if path.endswith(api[0])), None) if method == "POST" else None
        fields = _object(body) if api is not None else None
        if api is None or fields is None:
            return None
        end, adapter, api_type, where = api
        named = _MODEL.search(path)
        model = fields.get("model", named[1] if named else None)
        prompt, rest = _split(fields, where)
        return cls(
            adapter=adapter,
            api_type=api_type,
            model=model if isinstance(model, str) else None,
            streamed=fields.get("stream") is True or end == ":streamGenerateContent",
            prompt=prompt,
            rest=rest,
        )


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _split(fields: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return the text of a request that says one thing, and its other fields; else all of it, and none."""
    text = _only_text(fields.get(where))
    rest = {name: value for name, value in fields.items() if name not in {where, "model", "stream"}}
    if text is None or len(json.dumps(rest)) > LARGEST_REST:
        return json.dumps(fields, ensure_ascii=False), {}
    return text, rest


def _only_text(conversation: object) -> str | None:
    """Return what the user says, if that is one text and all of the conversation."""
    if isinstance(conversation, list) and len(conversation) == 1 and isinstance(conversation[0], Mapping):
        turn = conversation[0]
        if turn.get("role", "user") != "user" or turn.get("type", "message") != "message":
            return None
        conversation = turn.get("content", turn.get("parts"))
        if isinstance(conversation, list) and len(conversation) == 1:
            conversation = part({"piece": conversation[0]}, "piece")
            conversation = conversation.get("text") if set(conversation) <= {"type", "text"} else None
    return conversation if isinstance(conversation, str) and conversation else None
