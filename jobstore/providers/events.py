"""What an adapter yields while a model answers: how the call stands, pieces of the answer, counts, and one end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from jobstore.errors import InvalidArgument
from jobstore.models import Model, Usage

FinishReason = Literal["stop", "length", "tool_calls", "paused", "other"]
"""`stop`: the model was done. `length`: it was cut off by `max_tokens` or by the model's context window.
`tool_calls`: it waits for the results of tools. `paused`: send the answer back to let it go on."""


@dataclass(frozen=True, slots=True)
class Sending:
    """The request is about to be sent: it leaves when the next event is asked for."""


@dataclass(frozen=True, slots=True)
class Responded:
    """The headers of a successful response came; what tells of a failed one is in the `ProviderError`."""

    http_status: int
    request_id: str | None = None
    """What the provider's support asks for."""


@dataclass(frozen=True, slots=True)
class Started:
    """The provider has begun the answer, and names it."""

    response_id: str | None
    """Its name at the provider: some answers can be asked for by it again."""
    model: str | None
    """Which model answers, as the provider names it."""


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model lets us know of its thoughts; it is no part of the answer."""

    text: str = field(repr=False)


class ToolCall(Model):
    """The model wants a tool to be used; it is told when all of the call is known."""

    id: Annotated[str, Field(min_length=1)]
    """The result is sent back with it."""
    name: Annotated[str, Field(min_length=1)]
    arguments: str = Field(repr=False)
    """A JSON object as the model wrote it: it may be none, or not what the tool's schema asks for. Custom tools of
    OpenAI's are given any text."""

    signature: str | None = Field(default=None, repr=False)
    """What Gemini wants back with the call, and what means nothing to anyone else."""

    def parsed(self) -> dict[str, JsonValue]:
        """Return the arguments.

        Raises:
            InvalidArgument: They are no JSON object.
        """
        try:
            arguments = json.loads(self.arguments)
        except ValueError:  # it quotes nothing, but keeps the whole text
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidArgument("tool_calls", f"the arguments of {self.name!r} are no JSON object")
        return arguments


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete: always the last event, and without it an answer is none."""

    finish_reason: FinishReason
    provider_reason: str
    """The finish reason in the provider's own word."""
    model: str | None = None
    """Which model answered, as the provider names it."""
    response_id: str | None = None
    request_id: str | None = None
    """What the provider's support asks for."""
    raw_usage: dict[str, JsonValue] = field(default_factory=dict, repr=False)
    """The token counts in the provider's own terms."""


Event: TypeAlias = Sending | Responded | Started | Text | Reasoning | ToolCall | Usage | Done
"""`Sending`, `Responded` and `Started` come once each, in this order, before all else.
A `Usage` tells all that is known so far: a later one replaces an earlier one."""
