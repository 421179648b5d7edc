"""The models of the ledger: the calls to language models that were made, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field, JsonValue

from jobstore.clock import from_milliseconds
from jobstore.lifecycle import CallStatus
from jobstore.models import Model, Usage

UnknownPolicy = Literal["retry", "hold", "idempotency_key"]
"""What is done about a job whose process died while a call was under way, so that nobody knows what became of it.

`retry`: the job is tried again, and the call may be paid for twice. `hold`: the job fails with the error type
`call_unknown` and waits for a person, who looks at its calls and lets it go on with `retry`. `idempotency_key`: it is
tried again with the same key, so that a provider that heeds it does the work once.
"""


class ApiCall(Model):
    """One HTTP request to a language model."""

    id: str
    job_id: str
    attempt: int
    """The attempt at the job that made it."""
    provider: str
    model_asked: str | None
    model_answered: str | None
    """As the provider names it."""
    status: CallStatus
    on_unknown: UnknownPolicy
    idempotency_key: str | None
    """What the request carried, if it did."""
    sent_at: datetime
    """Noted before anything was sent."""
    settled_at: datetime | None
    """When its outcome was noted; None while it is `sent`."""
    http_status: int | None
    request_id: str | None
    """What the provider's support asks for."""
    remote_id: str | None
    """The provider's id of the answer."""
    error_category: str | None
    """One of `jobstore.providers.Category`."""
    error_code: str | None
    """The provider's own short name of the failure."""
    retry_after: float | None
    """Seconds to wait that the provider asked for."""
    finish_reason: str | None
    time_to_first_token: float | None
    """Seconds from sending to the first piece of the answer."""
    duration: float | None
    """Seconds from sending to the end."""
    input_tokens: int | None
    """All of the request, those read from or written to a cache included."""
    output_tokens: int | None
    """All of the answer, reasoning included."""
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost: float | None
    """In US dollars; None where nobody knows the price, never 0 for that."""
    cost_is_estimated: bool | None
    """Whether it is that of an answer which broke off, reckoned from what was counted until then."""
    price_version: str | None
    """Of the list of prices."""
    raw_usage: dict[str, JsonValue] | None = Field(repr=False)
    """The counts in the provider's own terms."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build it from its row."""
        estimated, settled = row["cost_is_estimated"], row["settled_at"]
        return cls(
            **{
                **row,
                "status": CallStatus(row["status"]),
                "sent_at": from_milliseconds(row["sent_at"]),
                "settled_at": None if settled is None else from_milliseconds(settled),
                "cost_is_estimated": None if estimated is None else bool(estimated),
                "raw_usage": None if row["raw_usage"] is None else json.loads(row["raw_usage"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of a call, as far as it is known; see `ApiCall` for the fields."""

    status: CallStatus
    model_answered: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    remote_id: str | None = None
    error_category: str | None = None
    error_code: str | None = None
    retry_after: float | None = None
    finish_reason: str | None = None
    time_to_first_token: float | None = None
    duration: float | None = None
    usage: Usage = field(default_factory=Usage)
    """With the cost, if the price is known."""
    cost_is_estimated: bool | None = None
    price_version: str | None = None
    raw_usage: Mapping[str, JsonValue] | None = field(default=None, repr=False)
