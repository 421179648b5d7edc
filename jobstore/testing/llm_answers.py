"""What the local LLM server says: scripted answers, and one derived from the prompt where nothing is scripted."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from jobstore.errors import InvalidArgument
from jobstore.models import Usage
from jobstore.providers import ToolCall

API = Literal["anthropic", "openai", "openai_chat", "gemini"]
"""What a request came in by: Anthropic's Messages, OpenAI's Responses or chat completions, Google's Gemini API."""

Ending = Literal["ok", "error", "failed", "abort", "early_end", "stall"]
"""`error`: an error event in mid-stream. `failed`: the same, where the protocol can as a response that has failed.
`abort`: the socket is closed in mid-stream. `early_end`: the stream ends cleanly, but without its terminal event.
`stall`: nothing more comes, and the socket stays open."""

Failure = Literal[
    "rate_limited", "overloaded", "quota", "invalid", "expired", "context_too_long", "server_error", "timeout"
]
"""Error responses by what they mean, each protocol having its own for it. `quota`: used up, to try again is no use.
`expired`: the key."""

LONG_PLAN_BYTES = 1_100_000
"""How large the answer is, at least, to a prompt whose first line asks for a long plan."""

_ASKS_FOR_LONG_PLAN = re.compile(r"\blong\b.*\bplan\b", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,40}")


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """A request as the server understood it.

    Attributes:
        model: The model's name.
        prompt: All texts of the conversation, a line each.
        system: The system prompt.
        max_tokens: How long the answer may become; 0 if that was not said.
        stream: Whether the answer is to be streamed.
        api: What it came in by.
        body: All of it.
    """

    model: str
    prompt: str = field(repr=False)
    system: str | None = field(default=None, repr=False)
    max_tokens: int = 0
    stream: bool = False
    api: API = "anthropic"
    body: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and how it is delivered.

    Attributes:
        text: All of it; an ending other than "ok" comes half-way.
        ending: How the stream ends; an answer that is not streamed fails in the same way.
        stop_reason: Why the model stopped, in the protocol's own word; None is its usual one.
        error_type: What an "error" ending says, in the protocol's own word; None is "overloaded".
        usage: Token counts, inclusive; those left out are estimated from the texts, and there is no cache. Gemini
            has no count of what is written to its cache.
        chunk_size: Characters a piece; None is the server's.
        delay: Seconds before each piece; None is the server's.
        reasoning: What the model thought before.
        tool_calls: What it asks for in the end; they come only with the ending "ok".
    """

    text: str = field(repr=False)
    ending: Ending = "ok"
    stop_reason: str | None = None
    error_type: str | None = None
    usage: Usage = field(default_factory=Usage)
    chunk_size: int | None = None
    delay: float | None = None
    reasoning: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a misspelt ending: the test would see another one, and pass or fail of that."""
        if self.ending not in get_args(Ending):
            raise InvalidArgument("ending", f"must be one of {', '.join(get_args(Ending))}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error response instead of an answer.

    Attributes:
        status: The HTTP status, or what the error means: then the protocol has the rest, but for what is said here.
        message: What the error says.
        error_type: In the protocol's own word; None is the usual one of the status.
        error_code: A finer code, where the protocol has one.
        retry_after: The header of that name: seconds or a date; None leaves it out. Gemini says seconds in the body.
        headers: Further headers.
        details: For Gemini, the error's details.

    Example:
        >>> server.script(Refusal("rate_limited", retry_after=2), Refusal("quota"), Refusal(529))
    """

    status: int | Failure
    message: str | None = None
    error_type: str | None = None
    error_code: str | None = None
    retry_after: float | str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    details: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a misspelt failure."""
        if not isinstance(self.status, int) and self.status not in get_args(Failure):
            raise InvalidArgument("status", f"must be an HTTP status or one of {', '.join(get_args(Failure))}")

    @property
    def words(self) -> str:
        """What the error says, one way or another."""
        return self.message or "refused by the script"


Reply: TypeAlias = Answer | Refusal | str
Script: TypeAlias = Reply | Callable[[LLMRequest], Reply | Awaitable[Reply]]
"""What to reply, or a function of the request that says so."""


def default_answer(request: LLMRequest) -> Answer:
    """Answer deterministically from the prompt: briefly, or with at least 1 MB if its first line asks for a long plan.

    Example:
        >>> default_answer(LLMRequest(model="any", prompt="Explain this: def area(width, height)")).ending
        'ok'
    """
    names = list(dict.fromkeys(_NAME.findall(request.prompt))) or ["nothing"]
    if _ASKS_FOR_LONG_PLAN.search(request.prompt.partition("\n")[0]):
        return Answer(_long_plan(names))
    lines = request.prompt.count("\n") + 1
    return Answer(
        "This answer comes from a local stand-in, not from a model.\n\n"
        f"The prompt has {len(request.prompt):,} characters in {lines:,} lines. "
        f"It speaks of {', '.join(names[:200])}.\n"
    )


def _long_plan(names: list[str]) -> str:
    parts = ["# A plan\n\nIt comes from a local stand-in, not from a model; it is long because that was asked for.\n"]
    size = 0
    while size < LONG_PLAN_BYTES:
        parts.append(_plan_step(len(parts), names))
        size += len(parts[-1])
    return "".join(parts)


def _plan_step(number: int, names: list[str]) -> str:
    first, second, third = (names[(number * stride) % len(names)] for stride in (1, 3, 7))
    return (
        f"\n## Step {number}: {first}\n\n"
        f"Read what {first} does and who uses it. Write a test that states what {second} promises, "
        f"see it fail, and change {first} until it passes. Look at {third} before going on: "
        f"it may rely on the old behaviour. Run the whole suite, then write down what was learnt.\n"
    )
