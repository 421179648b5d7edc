"""Operations on `api_calls`, the ledger: a row for each request to a model, from before it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from pydantic import JsonValue

from jobstore.calls import ApiCall, Settlement, UnknownPolicy
from jobstore.errors import CallNotFound, LeaseLost
from jobstore.models import Claim, Usage
from jobstore.sql import (
    MakeOperation,
    Operation,
    Value,
    dialect,
    execute,
    fetch_all,
    fetch_one,
    guarded,
    guarded_if,
    is_guarded,
)

T = TypeVar("T")

COLUMNS = ", ".join(ApiCall.model_fields)

_FACTS = (
    "model_answered", "http_status", "request_id", "remote_id", "error_category", "error_code", "retry_after",
    "finish_reason", "time_to_first_token", "duration", "cost_is_estimated", "price_version",
)  # fmt: skip
_SETTLED = (*_FACTS, *Usage.model_fields, "raw_usage")
_LARGEST = 2**63 - 1


_HELD = "WHERE job_id = :job_id AND attempt = :attempt AND finished_at IS NULL"
_FIND = f"SELECT job_id, attempt FROM job_attempts {_HELD}"
# Where several write at a time: whoever ends the attempt meanwhile would not see the call, and leave it open. To lock
# the row does not help against a serializable transaction, which has seen it before.
_KEEP = f"UPDATE job_attempts SET worker_id = worker_id {_HELD} RETURNING job_id, attempt"


class NewCall(NamedTuple):
    """A call that is about to be made."""

    id: str
    provider: str
    model_asked: str | None
    on_unknown: UnknownPolicy
    idempotency_key: str | None


class Settled(NamedTuple):
    """A call and what became of it."""

    call_id: str
    settlement: Settlement


@guarded
def begin(now: int, claim: Claim, new: NewCall) -> Operation[ApiCall]:
    """(new) → sent, while the attempt runs.

    Raises:
        LeaseLost: The attempt has ended: send nothing.
    """
    facts = yield from dialect()
    row = yield from fetch_one(
        f"""
        WITH held AS ({_KEEP if facts.writes_in_with else _FIND})
        INSERT INTO api_calls (id, job_id, attempt, provider, model_asked, on_unknown, idempotency_key, status, sent_at)
        SELECT :id, job_id, attempt, :provider, :model_asked, :on_unknown, :idempotency_key, 'sent', :now FROM held
        RETURNING {COLUMNS}
        """,
        **new._asdict(),
        job_id=claim.job_id,
        attempt=claim.attempt,
        now=now,
    )
    if row is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    return ApiCall.from_row(row)


@guarded
def settle(now: int, settled: Settled) -> Operation[None]:
    """Sent → what became of it; also unknown, if it becomes known after all. What was settled before stays."""
    yield from execute(
        f"""
        UPDATE api_calls SET status = :status, settled_at = :now, {", ".join(f"{name} = :{name}" for name in _SETTLED)}
        WHERE id = :id AND status IN ('sent', 'unknown')
        """,
        id=settled.call_id,
        now=now,
        **_columns(settled.settlement),
    )


def settling(settled: Sequence[Settled], make_operation: MakeOperation[..., T]) -> MakeOperation[..., T]:
    """Return an operation that ends an attempt and settles its calls with it: all of it is known, or nothing."""
    if not settled:
        return make_operation

    @guarded_if(lambda *args: is_guarded(make_operation, args))
    def end_and_settle(now: int, *args: object) -> Operation[T]:
        value = yield from make_operation(now, *args)
        for one in settled:
            yield from settle(now, one)
        return value

    return end_and_settle


def settle_all(now: int, settled: Sequence[Settled]) -> Operation[None]:
    """Settle calls whose attempt somebody else has ended."""
    for one in settled:
        yield from settle(now, one)


def calls(_now: int, job_id: str) -> Operation[list[ApiCall]]:
    """Return the calls of a job, the first first."""
    rows = yield from fetch_all(
        f"SELECT {COLUMNS} FROM api_calls WHERE job_id = :job_id ORDER BY attempt, id", job_id=job_id
    )
    return [ApiCall.from_row(row) for row in rows]


def get(_now: int, call_id: str) -> Operation[ApiCall]:
    """Return a call.

    Raises:
        CallNotFound: There is no such call.
    """
    row = yield from fetch_one(f"SELECT {COLUMNS} FROM api_calls WHERE id = :call_id", call_id=call_id)
    if row is None:
        raise CallNotFound(call_id)
    return ApiCall.from_row(row)


def key_to_reuse(_now: int, job_id: str) -> Operation[str | None]:
    """Return the idempotency key of a job's latest call, if nobody knows what became of that."""
    row = yield from fetch_one(
        "SELECT status, idempotency_key FROM api_calls WHERE job_id = :job_id ORDER BY attempt DESC, id DESC LIMIT 1",
        job_id=job_id,
    )
    return row["idempotency_key"] if row is not None and row["status"] == "unknown" else None


def _columns(settlement: Settlement) -> dict[str, Value]:
    """Return a settlement as it is stored; what a server said and no database can hold is left out."""
    values: dict[str, object] = {name: getattr(settlement, name) for name in _FACTS} | settlement.usage.model_dump()
    columns = {name: _storable(value) for name, value in values.items()}
    return columns | {"status": settlement.status.value, "raw_usage": _json(settlement.raw_usage)}


def _storable(value: object) -> Value:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if isinstance(value, int):  # a truth as well
        return int(value) if 0 <= value <= _LARGEST else None
    return value if isinstance(value, float) and 0 <= value < float("inf") else None


def _json(usage: Mapping[str, JsonValue] | None) -> str | None:
    try:
        return None if usage is None else json.dumps(dict(usage), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
