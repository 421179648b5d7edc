"""What an adapter yields while a model answers: pieces of text, token counts, and one end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import JsonValue

from jobstore.models import Usage

FinishReason = Literal["stop", "length", "tool_calls", "paused", "other"]
"""`stop`: the model was done. `length`: it was cut off by `max_tokens` or by the model's context window.
`tool_calls`: it waits for the results of tools. `paused`: send the answer back to let it go on."""


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer."""

    text: str = field(repr=False)


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


Event: TypeAlias = Text | Usage | Done
"""A `Usage` tells all that is known so far: a later one replaces an earlier one."""
