"""Calls to models that are recorded: each has its row in the ledger, from before it is sent, and streams its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic
from typing import Any, cast, get_args

from pydantic import JsonValue
from uuid_utils import uuid4

from jobstore.calls import ApiCall, Settlement, UnknownPolicy
from jobstore.errors import InvalidArgument
from jobstore.lifecycle import CallStatus
from jobstore.models import Claim, Job, Usage
from jobstore.providers.base import Adapter
from jobstore.providers.errors import ProviderError
from jobstore.providers.events import Done, Event, Reasoning, Responded, Sending, Started, Text, ToolCall
from jobstore.providers.pricing import PriceOf, load_prices
from jobstore.providers.registry import NAMES, adapter_for, adapter_of, recorder_of
from jobstore.providers.request import Request
from jobstore.repositories.answers import AttemptAnswer
from jobstore.repositories.calls import CallRepository

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
"""How often it is told, at most, how an answer gets on."""
HEEDS_KEYS = frozenset({"anthropic", "openai"})
"""Providers whose SDKs can send an idempotency key with a request."""
KEY_HEADER = "Idempotency-Key"


class CallRecorder:
    """Writes one row of the ledger: `begin` before a request is sent, and what became of it at its end.

    Args:
        calls: The ledger.
        claim: The attempt that makes the call.
        provider: For example "anthropic".
        model: The model that is asked.
        on_unknown: What is to be done about the job if the process dies meanwhile.
        idempotency_key: What the request carries.
        flavor: An adapter's `flavor`: how its counts are to be read for their price.

    Attributes:
        usage: What is known of the counts; with the cost at the end, if that is known.

    Example:
        >>> recorder = CallRecorder(store.calls, claim, "anthropic", "claude-opus-5-5")
        >>> await recorder.begin()
        >>> async for event in events:
        ...     recorder.hear(event)
        >>> await recorder.settle()
    """

    def __init__(
        self,
        calls: CallRepository,
        claim: Claim,
        provider: str,
        model: str | None,
        *,
        on_unknown: UnknownPolicy = "retry",
        idempotency_key: str | None = None,
        flavor: str = "default",
    ) -> None:
        self.usage = Usage()
        self._calls = calls
        self._claim = claim
        self._provider = provider
        self._model = model
        self._on_unknown = on_unknown
        self._key = idempotency_key
        self._flavor = flavor
        self._price_of: PriceOf | None = None
        self._call: ApiCall | None = None
        self._sent_at = 0.0
        self._first_at: float | None = None
        self._known: dict[str, Any] = {}
        self._is_complete = False

    async def begin(self) -> None:
        """Note that the request is about to be sent; when this returns, that is on disk.

        Raises:
            LeaseLost: The attempt has ended: do not send it.
        """
        self._price_of = await load_prices()
        self._call = await self._calls.begin(
            self._claim,
            provider=self._provider,
            model=self._model,
            on_unknown=self._on_unknown,
            idempotency_key=self._key,
        )
        self._sent_at = monotonic()

    def hear(self, event: Event) -> None:
        """Take in what the answer tells of the call."""
        match event:
            case Responded():
                self._known |= {"http_status": event.http_status, "request_id": event.request_id}
            case Started():
                self._known |= {"remote_id": event.response_id, "model_answered": event.model}
            case Text() | Reasoning() | ToolCall():
                self._first_at = self._first_at or monotonic()
            case Usage():
                self.usage = event
            case Done():
                self._is_complete = True
                self._known |= {
                    "finish_reason": event.finish_reason,
                    "model_answered": event.model,
                    "remote_id": event.response_id,
                    "request_id": event.request_id,
                    "raw_usage": event.raw_usage,
                }
                self._price()

    async def settle(self, error: BaseException | None = None) -> None:
        """Note what became of the call: what was heard, or why it came to no end."""
        if self._call is not None:
            await self._calls.settle(self._call, self._settlement(error))

    def settle_with_end(self, error: BaseException | None = None) -> None:
        """The same, in the transaction that ends the attempt, or that begins its next call."""
        if self._call is not None:
            self._calls.settle_with_end(self._claim, self._call, self._settlement(error))

    def settle_soon(self, error: BaseException | None = None) -> None:
        """The same for a call that goes on after its attempt has ended."""
        if self._call is not None:
            self._calls.settle_soon(self._call, self._settlement(error))

    def _price(self) -> None:
        """Find out what the call costs: of one that broke off, what was counted until then."""
        model = self._known.get("model_answered") or self._model
        if self._price_of is None or self._call is None or model is None:
            return
        counts: dict[str, Any] = {"raw_usage": self._known.get("raw_usage"), "flavor": self._flavor}
        try:
            price = self._price_of(self._provider, model, self.usage, self._call.sent_at, **counts)
        except Exception as error:  # noqa: BLE001 - no answer is lost over what a server sends for its counts
            logger.warning("a call to %s could not be priced: %s", self._provider, type(error).__name__)
            return
        if price is not None:
            self.usage = self.usage.model_copy(update={"cost": price.usd})
            self._known |= {"price_version": price.version, "cost_is_estimated": not self._is_complete}

    def _settlement(self, error: BaseException | None) -> Settlement:
        if not self._is_complete:
            if isinstance(error, ProviderError) and error.raw_usage:
                self._known["raw_usage"] = error.raw_usage
            self._price()
        first = None if self._first_at is None else self._first_at - self._sent_at
        return Settlement(
            **{
                **self._known,
                "usage": self.usage,
                "time_to_first_token": first,
                "duration": monotonic() - self._sent_at,
                **({"status": CallStatus.SUCCEEDED} if self._is_complete or error is None else _failure(error)),
            }
        )


def _failure(error: BaseException) -> dict[str, Any]:
    """Return what an error tells of a call; one that is not the provider's means that nobody wanted its rest."""
    if not isinstance(error, ProviderError):
        return {"status": CallStatus.CANCELED, "error_code": type(error).__name__}
    told = {"http_status": error.http_status, "request_id": error.request_id}
    return {
        "status": CallStatus.TRUNCATED if error.category == "truncated" else CallStatus.FAILED,
        "error_category": error.category,
        "error_code": error.code,
        "retry_after": error.retry_after,
        **{name: value for name, value in told.items() if value is not None},
    }


async def ask(
    answer: AttemptAnswer,
    calls: CallRepository,
    client: Any,  # noqa: ANN401 - each SDK has its own
    request: Request | None = None,
    *,
    on_unknown: UnknownPolicy = "retry",
    **fields: Any,  # noqa: ANN401 - those of a request
) -> AsyncGenerator[str, None]:
    """Ask a model for an attempt's answer and yield its text, once it is on its way into the outputs.

    Args:
        answer: Takes the text, the counts and the finish reason.
        calls: The ledger.
        client: Of an official SDK.
        request: What to ask; by default what the job says.
        on_unknown: What is to be done about the job if the process dies meanwhile.
        **fields: Of the request, where the job says nothing.

    Raises:
        InvalidArgument: The request cannot be put to this API; nothing was sent.
        ProviderError: There is no complete answer.
        LeaseLost: The attempt has ended.
    """
    job = answer.claim.job
    adapter = adapter_for_job(job, client)
    asked = Request.of(job, **fields) if request is None else request
    key = await _key(calls, job) if check_policy(on_unknown, adapter) == "idempotency_key" else None
    recorder = CallRecorder(
        calls,
        answer.claim,
        adapter.provider,
        asked.model,
        on_unknown=on_unknown,
        idempotency_key=key,
        flavor=adapter.flavor,
    )
    events = adapter.stream(client, asked if key is None else _with_key(asked, key))
    async with aclosing(hear_out(answer, recorder, events)) as texts:
        async for text in texts:
            yield text


async def hear_out(
    answer: AttemptAnswer, recorder: CallRecorder, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[str, None]:
    """Record what the events of one call tell, and yield its text, once it is on its way into the outputs.

    Raises:
        InvalidArgument: What an earlier call left unfinished would be a part of the answer.
        ProviderError: There is no complete answer.
        LeaseLost: The attempt has ended.
    """
    heard = _Heard(answer, recorder)
    answer.begin()
    try:
        async with aclosing(events):
            async for event in events:
                recorder.hear(event)
                if isinstance(event, Sending):
                    await recorder.begin()
                elif isinstance(event, Text):
                    await answer.write_soon(event.text)
                    yield event.text
                    await asyncio.sleep(0)  # pieces that came together come without a pause: others want their turn
                await heard.take(event)
    except BaseException as error:
        (recorder.settle_soon if answer.closed else recorder.settle_with_end)(error)
        if isinstance(error, Exception):
            answer.fail(error)
        raise
    (recorder.settle_soon if answer.closed else recorder.settle_with_end)()


class _Heard:
    """Tells an attempt's answer what is heard of it."""

    def __init__(self, answer: AttemptAnswer, recorder: CallRecorder) -> None:
        self._answer = answer
        self._recorder = recorder
        self._tool_calls: list[JsonValue] = []
        self._text = self._thoughts = 0
        self._told_at = monotonic()

    async def take(self, event: Event) -> None:
        """Count what came, and tell it about once a second."""
        match event:
            case Text(text):
                self._text += len(text)
            case Reasoning(text):
                self._thoughts += len(text)
            case ToolCall():
                self._tool_calls.append(event.model_dump())
            case Done():
                await self._answer.flush()  # or the answer is not there, however complete it is
                self._answer.end(self._recorder.usage, self._metadata(event))
                return
        if monotonic() - self._told_at >= PROGRESS_SECONDS:
            await self._answer.progress(self._message(), self._recorder.usage)
            self._told_at = monotonic()

    def _message(self) -> str:
        if not self._text and self._thoughts:
            return f"it thinks: {self._thoughts:,} characters so far"
        return f"it answers: {self._text:,} characters so far"

    def _metadata(self, done: Done) -> dict[str, JsonValue]:
        """Return what the job is told of the end; calls of tools also where there are none any more."""
        metadata: dict[str, JsonValue] = {"finish_reason": done.finish_reason}
        if self._tool_calls or "tool_calls" in self._answer.claim.job.metadata:
            metadata["tool_calls"] = self._tool_calls
        return metadata


def adapter_for_job(job: Job, client: object) -> Adapter:
    """Return the adapter that speaks to the API of a job through a client: the client's, unless the job says more.

    Raises:
        InvalidArgument: The job is for another provider's API, or the client is none that can be asked.
    """
    adapter = adapter_to_ask(client)
    if job.api_type not in NAMES:
        return adapter
    wanted = adapter_for(job.api_type) if NAMES[job.api_type] != adapter.name else adapter
    if wanted.provider != adapter.provider:
        raise InvalidArgument("client", f"is {adapter.provider}'s, but the job is for {job.api_type}")
    return wanted


def adapter_to_ask(client: object) -> Adapter:
    """Return the adapter that works with a client whose calls are going to be recorded.

    Raises:
        InvalidArgument: The client is none that is known, or records its calls itself: each would have two jobs.
    """
    if recorder_of(client) is not None:
        raise InvalidArgument("client", "records its calls itself: give the one that recorded() was given")
    return adapter_of(client)


def check_policy(policy: object, adapter: Adapter) -> UnknownPolicy:
    """Check what is to be done about unknown calls.

    Raises:
        InvalidArgument: It is no policy, or it needs idempotency keys and the provider takes none.
    """
    if policy not in get_args(UnknownPolicy):
        raise InvalidArgument("on_unknown", f"must be one of {', '.join(get_args(UnknownPolicy))}")
    if policy == "idempotency_key" and adapter.provider not in HEEDS_KEYS:
        raise InvalidArgument("on_unknown", f"must be retry or hold: {adapter.provider} takes no idempotency keys")
    return cast("UnknownPolicy", policy)


async def _key(calls: CallRepository, job: Job) -> str:
    """Return the idempotency key of a job's last call, if nobody knows what became of it, else a new one."""
    return await calls.key_to_reuse(job.id) or str(uuid4())


def _with_key(request: Request, key: str) -> Request:
    headers = request.options.get("extra_headers")
    headers = {**(headers if isinstance(headers, dict) else {}), KEY_HEADER: key}
    return request.model_copy(update={"options": {**request.options, "extra_headers": headers}})
