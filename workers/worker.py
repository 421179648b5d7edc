"""The worker: claims jobs for its handlers, runs them side by side, and stops without losing any."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, TypeVar, cast

import anyio

from jobstore import Claim, DatabaseError, InvalidArgument, Job, JobStore, JobStoreError, UnknownPolicy
from jobstore.aio import finish, together
from jobstore.repositories.job_work import MAX_CLAIMS
from jobstore.version import VERSION
from jobstore.workers.attempt import RETRY_SECONDS, RunningAttempt, Terms, is_passing
from jobstore.workers.handlers import AsyncHandler, Handler, SyncHandler
from jobstore.workers.hooks import Hook, Hooks
from jobstore.workers.llm import LLMHandler
from jobstore.workers.maintenance import looked_after
from jobstore.workers.retries import Retries, exponential, policy_of
from jobstore.workers.signals import heed_signals

logger = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""How long a worker that stops waits for a database that does not answer: what is not given back, leases end."""

H = TypeVar("H", bound=AsyncHandler | SyncHandler)
K = TypeVar("K", bound=Hook)


class Worker:
    """Claims jobs and runs handlers for them until it is told to stop.

    Args:
        store: An open store.
        concurrency: How many jobs run at the same time.
        lease: Seconds until others may have a job, should this process die; renewed while it runs.
        worker_id: The name that attempts carry; by default host, process and a number.
        retry: When jobs are tried again whose handler raised, unless the handler has a policy of its own.
        version: Of your code, as `jobstore workers` shows it; by default the version of jobstore.
        cancel_grace: Seconds that a handler has to end once it is cancelled. After that its outcome is recorded
            without it, its slot is free, and what it does later is refused.
        maintenance: Seconds between looks whether it is time to look after the store, see `JobStore.maintain`; one
            worker does at a time. A look is one small read. None leaves it to others.

    Example:
        >>> worker = Worker(store, concurrency=16, lease=30.0)
        >>> @worker.handles("greeting")
        ... async def greet(job: JobContext) -> str:
        ...     return "Hello!"
        >>> await worker.run(drain=True)
    """

    _count = 0

    def __init__(
        self,
        store: JobStore,
        *,
        concurrency: int = 16,
        lease: float = 30.0,
        worker_id: str | None = None,
        version: str | None = None,
        retry: Retries | None = None,
        cancel_grace: float = 5.0,
        maintenance: float | None = 60.0,
    ) -> None:
        if not isinstance(store, JobStore):
            raise InvalidArgument("store", f"must be an open JobStore, not {type(store).__name__}")
        if concurrency < 1:
            raise InvalidArgument("concurrency", "must be 1 or more")
        if not lease > 0:
            raise InvalidArgument("lease", "must be a number of seconds above 0")
        if not cancel_grace >= 0:
            raise InvalidArgument("cancel_grace", "must be a number of seconds, 0 or more")
        if maintenance is not None and not maintenance > 0:
            raise InvalidArgument("maintenance", "must be a number of seconds above 0, or None")
        Worker._count += 1
        self.id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{Worker._count}"
        self.version = VERSION if version is None else version
        self.store = store
        self.concurrency = concurrency
        self.lease = lease
        self.cancel_grace = cancel_grace
        self._maintenance = maintenance
        self._retry = policy_of(retry, exponential())
        self._hooks = Hooks()
        self._handlers: dict[str, Handler] = {}
        self._api_handlers: dict[str, Handler] = {}
        self._turns = cycle((True, False))
        self._wrappers: list[Callable[[Handler], Handler]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[tuple[str, int], RunningAttempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._unwell: type[DatabaseError] | None = None  # why it could not claim the last time
        self._stopping = self._at_once = self._was_signalled = False
        self._nudge = anyio.Event()
        self._claiming: anyio.CancelScope | None = None

    def handles(
        self, task_type: str, *, timeout: float | None = None, retry: Retries | None = None
    ) -> Callable[[H], H]:
        """Make a function the handler of a task type.

        An async function runs in the event loop and is given a `JobContext`, any other in a thread and is given a
        `SyncJobContext`. It returns the answer, or None if it has streamed it; or it raises `Retry`, `Fail`,
        `Snooze` or `Cancel`. Any other exception is retried by policy while attempts remain.

        Args:
            task_type: Which jobs it is for.
            timeout: Seconds that an attempt may take; a job's own `timeout` goes before it. Then an async handler is
                cancelled; a thread is asked to end, and what it returns later is refused.
            retry: A policy such as `exponential()`, or a mapping of error types to policies.

        Raises:
            InvalidArgument: The task type has a handler already, or an argument cannot be accepted.

        Example:
            >>> @worker.handles("plan", timeout=600, retry={ConnectionError: constant(5), ValueError: never})
            ... async def plan(job: JobContext) -> str:
            ...     return await ask_model(job.prompt)
        """
        if not isinstance(task_type, str):
            raise InvalidArgument("task_type", 'must be a str: write @worker.handles("type of task")')
        if task_type in self._handlers:
            raise InvalidArgument("task_type", f"{task_type!r} has a handler already")
        policy = policy_of(retry, self._retry)

        def register(function: H) -> H:
            self._handlers[task_type] = self._wrapped(Handler.of(function, timeout, policy))
            return function

        return register

    def handles_llm(
        self,
        task_type: str | None = None,
        *,
        client: object,
        api_type: str | None = None,
        on_unknown: UnknownPolicy = "retry",
        timeout: float | None = None,
        retry: Retries | None = None,
        **defaults: Any,  # noqa: ANN401 - fields of a Request
    ) -> None:
        """Do jobs by asking a model: all of a task type, or all for an API that no other handler is for.

        A job is asked as it is: its prompt, its `model_used`, and from its metadata the other fields of a
        `jobstore.providers.Request`, such as `system`, `max_tokens`, `temperature`, `tools` and `images`. The answer
        is streamed, and each call recorded in `store.calls`. A job is completed when the provider has said that the
        answer is complete, whatever the reason; that is in its metadata as `finish_reason`, and so are `tool_calls`.
        `outcome_of` tells what becomes of it otherwise. When a quota is used up, its API is paused for an hour.

        Args:
            task_type: Which jobs it is for; or:
            api_type: Which jobs it is for, whatever their task type.
            client: An `AsyncAnthropic`, an `AsyncOpenAI` or a `genai.Client`, whose own retries are off here. An
                OpenAI client asks the Responses API, or for jobs of the API type `openai_chat` for chat completions.
            on_unknown: What is done about a job whose process died while it asked; see `UnknownPolicy`. A job's own,
                `on_unknown` in its metadata, goes before it.
            timeout: Seconds that an attempt may take; a job's own `timeout` goes before it.
            retry: A policy such as `exponential()`.
            **defaults: Fields of the request that hold where the job says nothing, such as `model`.

        Raises:
            InvalidArgument: There is such a handler already, or an argument cannot be accepted; also a client that
                `recorded` made, whose calls would have two jobs each.

        Example:
            >>> worker.handles_llm("pathfinder", client=AsyncAnthropic(), model="claude-opus-5-5", max_tokens=4000)
            >>> worker.handles_llm(api_type="gemini", client=genai.Client(), on_unknown="hold")
        """
        handler = Handler.of(LLMHandler(client, on_unknown, defaults), timeout, policy_of(retry, self._retry))
        handlers = self._handlers if api_type is None else self._api_handlers
        name = task_type if api_type is None else api_type
        if (task_type is None) == (api_type is None) or not isinstance(name, str):
            raise InvalidArgument("task_type", "or api_type must be given, a str: one of them")
        if name in handlers:
            raise InvalidArgument("task_type" if api_type is None else "api_type", f"{name!r} has a handler already")
        handlers[name] = self._wrapped(handler)

    def _wrapped(self, handler: Handler) -> Handler:
        for wrapper in self._wrappers:
            handler = wrapper(handler)
        return handler

    def wrap(self, wrapper: Callable[[Handler], Handler]) -> None:
        """Replace each handler, those to come as well, by what a function makes of it: for tracing and the like.

        Example:
            >>> worker.wrap(lambda handler: dataclasses.replace(handler, function=timed(handler.function)))
        """
        self._wrappers.append(wrapper)
        for handlers in (self._handlers, self._api_handlers):
            handlers.update({name: wrapper(handler) for name, handler in handlers.items()})

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """Where it runs; None while it does not."""
        return self._loop

    @property
    def task_types(self) -> list[str]:
        """What it has handlers for."""
        return list(self._handlers)

    @property
    def api_types(self) -> list[str]:
        """The APIs that it does jobs for, whatever their task type."""
        return list(self._api_handlers)

    @property
    def running(self) -> int:
        """How many jobs it works on now."""
        return len(self._running)

    def on_claim(self, hook: K) -> K:
        """Call a function with an `AttemptEvent` before the handler of each attempt.

        Hooks are async or not; what is not must not block. One that raises is logged and harms nothing; so does one
        that is not done after 10 s, when it is cancelled.

        Example:
            >>> @worker.on_failure
            ... async def alert(event: AttemptEvent) -> None:
            ...     await page_someone(event.job.id, event.error_type)
        """
        return self._hooks.add("claim", hook)

    def on_complete(self, hook: K) -> K:
        """Call a function after each attempt whose answer was recorded; see `on_claim`."""
        return self._hooks.add("complete", hook)

    def on_failure(self, hook: K) -> K:
        """Call a function after each attempt that failed, whether its job is tried again or not; see `on_claim`."""
        return self._hooks.add("failure", hook)

    def on_lease_lost(self, hook: K) -> K:
        """Call a function after each attempt whose result was dropped, because its lease was lost; see `on_claim`."""
        return self._hooks.add("lease_lost", hook)

    def stop(self, *, at_once: bool = False) -> None:
        """Claim no more; `run` returns when the running jobs have ended or the grace is over.

        Stopping twice, or before `run`, is fine.

        Args:
            at_once: Without any grace: what runs is released.
        """
        self._stopping = True
        self._at_once |= at_once
        self._nudge.set()
        if self._loop is not None and self._claiming is not None:
            self._claiming.deadline = min(self._claiming.deadline, self._loop.time() + STOP_SECONDS)

    async def run(self, *, drain: bool = False, grace: float = 10.0) -> None:
        """Work until SIGTERM, SIGINT or `stop()`; then finish what runs within `grace` seconds and release the rest.

        Signals are heeded in the main thread; a second one ends the grace. If the database does not answer by then,
        what ran is left to the ends of its leases.

        Args:
            drain: End as soon as there is nothing left to claim.
            grace: Seconds; what has not ended by then becomes idle again, and the attempt does not count.

        Raises:
            InvalidArgument: There is no handler, or it runs already.
            DatabaseError: The database failed for good. What ran is released if that is possible.
            StoreClosed: The store was closed meanwhile.
        """
        if not self._handlers and not self._api_handlers:
            raise InvalidArgument("handles", "there is no handler: register one with @worker.handles(task_type)")
        if self._loop is not None:
            raise InvalidArgument("run", "this worker runs already: make another one, or raise its concurrency")
        self._loop = asyncio.get_running_loop()
        try:
            with heed_signals(self._heed):
                async with self._registered(), looked_after(self.store, self._maintenance):
                    await self._work(drain=drain, grace=grace)
        finally:
            failure = self._failure
            self._loop = self._failure = None
            self._stopping = self._at_once = self._was_signalled = False
        if failure is not None:
            raise failure

    def _registered(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self.store.workers.registered(
            self.id,
            task_types=self.task_types,
            api_types=self.api_types,
            concurrency=self.concurrency,
            version=self.version,
            running=lambda: self.running,
        )

    async def _work(self, *, drain: bool, grace: float) -> None:
        try:
            await self._claim_until_stopped(drain=drain)
            await self._wait_for_running(grace)
        finally:
            await finish(self._end_running())

    def _was_stopped(self) -> bool:
        return self._stopping or self._failure is not None

    async def _claim_until_stopped(self, *, drain: bool) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        terms = Terms(self.store, self.id, self.lease, self.cancel_grace, self._hooks, task)
        while not self._was_stopped():
            self._nudge = anyio.Event()
            free = min(MAX_CLAIMS, self.concurrency - len(self._running))
            if free <= 0:
                await self._nudge.wait()
                continue
            token = await self.store.jobs.wake()
            claims = await self._claim(free)
            if claims is None:  # it could not be asked
                continue
            if self._was_stopped():
                await finish(self._give_back(claims))
                return
            for claim in claims:
                self._start(RunningAttempt(terms, claim, self._handler_of(claim.job), self._ended))
            if claims:
                continue
            if drain and not self._running:
                return
            await self._sleep(token)

    def _start(self, attempt: RunningAttempt) -> None:
        """Run an attempt in a task of its own, which may outlive its slot if its handler does not end."""
        attempt.keep_lease()  # at once: the first of the handlers may block the event loop before the others begin
        self._running[attempt.claim.job_id, attempt.claim.attempt] = attempt
        task = asyncio.get_running_loop().create_task(attempt.run())
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._nudge.set()

    def _ended(self, attempt: RunningAttempt) -> None:
        del self._running[attempt.claim.job_id, attempt.claim.attempt]
        self._nudge.set()

    async def _claim(self, limit: int) -> list[Claim] | None:
        """Claim; None if the database was unwell for a moment, or does not answer a worker that stops."""
        claims: list[Claim] | None = None
        try:
            with anyio.CancelScope() as self._claiming:
                claims = await self._ask(limit)
        except DatabaseError as error:
            if not is_passing(error):
                raise
            if type(error) is not self._unwell:  # said once for each kind of trouble
                self._unwell = type(error)
                logger.warning("worker %s cannot claim, trying again: %s", self.id, error)
            with anyio.move_on_after(RETRY_SECONDS):
                await self._nudge.wait()
            return None
        if self._unwell is not None and claims is not None:
            self._unwell = None
            logger.info("worker %s can claim again", self.id)
        return claims

    async def _ask(self, limit: int) -> list[Claim]:
        """Claim for task types and for APIs, in turns which comes first, as neither is to wait for ever."""
        claim = partial(self.store.jobs.claim, self.id, lease=self.lease)
        by_task: dict[str, Any] = {"task_types": self.task_types}
        by_api: dict[str, Any] = {"api_types": self.api_types}
        first, second = (by_task, by_api) if not self._api_handlers or next(self._turns) else (by_api, by_task)
        claims = await claim(limit=limit, **first)
        if len(claims) < limit and self._api_handlers:
            try:
                claims += await claim(limit=limit - len(claims), **second)
            except BaseException:
                await finish(self._give_back(claims))
                raise
        return claims

    def _handler_of(self, job: Job) -> Handler:
        return self._handlers.get(job.task_type) or self._api_handlers[job.api_type]

    async def _give_back(self, claims: list[Claim]) -> None:
        """Release jobs that were claimed while the order to stop came."""
        with contextlib.suppress(JobStoreError, TimeoutError):  # their leases will end
            async with asyncio.timeout(STOP_SECONDS):
                await together([self.store.jobs.release(claim) for claim in claims])

    async def _sleep(self, token: int) -> None:
        """Wait for new work, the end of a running job, or the order to stop."""
        async with anyio.create_task_group() as waiting:

            async def wake() -> None:
                try:
                    await self.store.jobs.wake(since=token)
                except JobStoreError as error:
                    if isinstance(error, DatabaseError) and is_passing(error):
                        await anyio.sleep(RETRY_SECONDS)
                    else:  # raised here, it would come in a group
                        self._failure = self._failure or error
                waiting.cancel_scope.cancel()

            waiting.start_soon(wake)
            await self._nudge.wait()
            waiting.cancel_scope.cancel()

    async def _wait_for_running(self, grace: float) -> None:
        """Wait until all running jobs have ended, or the grace is over."""
        with anyio.move_on_after(grace):
            while self._running and not self._at_once and self._failure is None:
                await self._nudged()

    async def _end_running(self) -> None:
        """Interrupt what still runs, and wait until all of it is recorded, unless the database does not answer."""
        for attempt in list(self._running.values()):
            attempt.interrupt("stopped")
        with anyio.move_on_after(self.cancel_grace + STOP_SECONDS):
            while self._running:
                await self._nudged()
        while any(attempt.is_recorded for attempt in self._running.values()):  # hooks have a patience of their own
            await self._nudged()
        if self._running:
            logger.warning("worker %s ends before %d jobs are recorded: their leases will end", self.id, self.running)

    async def _nudged(self) -> None:
        self._nudge = anyio.Event()
        await self._nudge.wait()

    def _heed(self, number: signal.Signals) -> None:
        how = "at once" if self._was_signalled else "when what runs has ended, or the grace is over"
        about = {"event": "stop", "worker_id": self.id, "signal": number.name}
        logger.info("worker %s stops %s: %s", self.id, how, number.name, extra=about)
        self.stop(at_once=self._was_signalled)
        self._was_signalled = True
