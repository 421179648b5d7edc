"""`store.calls`: the ledger of the requests to language models, by job."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, get_args

from jobstore.calls import ApiCall, Settlement, UnknownPolicy
from jobstore.encoding import check_identifier, check_name
from jobstore.errors import InvalidArgument
from jobstore.lifecycle import CallStatus
from jobstore.models import Claim
from jobstore.operations import calls
from jobstore.operations.calls import NewCall, Settled
from jobstore.repositories.arguments import check_claim, identifier
from jobstore.repositories.backend import Backend, new_id

NEVER_SENT = Settlement(status=CallStatus.CANCELED)


class CallRepository:
    """The calls of a store. Reached as `store.calls`.

    Each call is two writes: `begin` before the request is sent, `settle` when its outcome is known. If the process
    dies between, or the attempt ends otherwise, the call is `unknown`.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def begin(
        self,
        claim: Claim,
        *,
        provider: str,
        model: str | None = None,
        on_unknown: UnknownPolicy = "retry",
        idempotency_key: str | None = None,
    ) -> ApiCall:
        """Note that a request is about to be sent; when this returns, that is on disk.

        Args:
            claim: The attempt that makes it.
            provider: For example "anthropic".
            model: The model that is asked.
            on_unknown: What is to be done about the job if the process dies before the outcome is known.
            idempotency_key: What the request carries, for a provider that does not do the same work twice.

        Raises:
            InvalidArgument: An argument cannot be accepted; it names the argument.
            LeaseLost: The attempt has ended: do not send it.

        Example:
            >>> call = await store.calls.begin(claim, provider="anthropic", model="claude-opus-5-5")
            >>> response = await ask_model(claim.prompt)
            >>> await store.calls.settle(call, Settlement(status=CallStatus.SUCCEEDED, http_status=200))
        """
        check_claim(claim)
        check_identifier("provider", provider, InvalidArgument)
        for field, name in (("model", model), ("idempotency_key", idempotency_key)):
            check_name(field, name, InvalidArgument)
        if on_unknown not in get_args(UnknownPolicy):
            raise InvalidArgument("on_unknown", f"must be one of {', '.join(get_args(UnknownPolicy))}")
        new = NewCall(new_id(), provider, model, on_unknown, idempotency_key)
        settled = self._backend.settlements.take(claim)  # of earlier calls: they need not wait any longer
        try:
            begin = calls.settling(settled, calls.begin)
            return await self._backend.write(begin, claim, new, finishing=True, abandoned=self._settle_unsent)
        except BaseException:
            self._backend.settlements.put_back(claim, settled)
            raise

    async def settle(self, call: ApiCall, settlement: Settlement) -> None:
        """Note what became of a call; when this returns, that is on disk. What was settled before stays as it is.

        Also after its attempt has ended: a late outcome is better than none.

        Raises:
            InvalidArgument: An argument cannot be accepted; it names the argument.
        """
        await self._backend.write(calls.settle, _settled(call, settlement), finishing=True)

    def settle_with_end(self, claim: Claim, call: ApiCall, settlement: Settlement) -> None:
        """Let what became of a call be noted in the transaction that ends its attempt: both are known, or neither.

        For the last call of an attempt whose end `store.jobs` is about to record. If the lease is lost, it is noted
        by itself.
        """
        check_claim(claim)
        self._backend.settlements.add(claim, _settled(call, settlement))

    def settle_soon(self, call: ApiCall, settlement: Settlement) -> None:
        """Let what became of a call be noted by itself, without waiting for it: its attempt has ended."""
        self._backend.write_soon(calls.settle, _settled(call, settlement))

    @contextlib.contextmanager
    def ended_with_store(self, end: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
        """Should the store close meanwhile, let it end first what records calls beside the program, and wait for that.

        Args:
            end: Ends it, and returns when all that is known is recorded.
        """
        self._backend.to_end_first.add(end)
        try:
            yield
        finally:
            self._backend.to_end_first.discard(end)

    async def list(self, job_id: str) -> builtins.list[ApiCall]:
        """Return the calls of a job, of all its attempts, the first first; none of an unknown job.

        Example:
            >>> spent = sum(call.cost or 0 for call in await store.calls.list(job.id))
        """
        return await self._backend.read(calls.calls, identifier("job_id", job_id))

    async def get(self, call_id: str) -> ApiCall:
        """Return a call.

        Raises:
            CallNotFound: There is no such call.
        """
        return await self._backend.read(calls.get, identifier("call_id", call_id))

    async def key_to_reuse(self, job_id: str) -> str | None:
        """Return the idempotency key of a job's latest call, if nobody knows what became of that; else None."""
        return await self._backend.read(calls.key_to_reuse, identifier("job_id", job_id))

    def _settle_unsent(self, call: ApiCall | None) -> None:
        """Settle what was begun for a caller who was cancelled before it could be sent."""
        if call is not None:
            self._backend.write_soon(calls.settle, Settled(call.id, NEVER_SENT))


def _settled(call: ApiCall, settlement: Settlement) -> Settled:
    for field, value, kind in (("call", call, ApiCall), ("settlement", settlement, Settlement)):
        if not isinstance(value, kind):
            raise InvalidArgument(field, f"must be of type {kind.__name__}, not {type(value).__name__}")
    return Settled(call.id, settlement)
