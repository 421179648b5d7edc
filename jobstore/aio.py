"""Ways of waiting, for threads and for the end of work, that asyncio leaves out."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

THREADS = 16

_threads: RunVar[anyio.CapacityLimiter] = RunVar("jobstore_threads")

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread; cancelled, wait for its end and then raise the cancellation.

    anyio's own shield holds back its cancel scopes, but not `asyncio.Task.cancel`.
    """
    return await finish(anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=_limiter()))


def _limiter() -> anyio.CapacityLimiter:
    """Return this event loop's limit of our threads, apart from anyio's own.

    A program may hold all of those in threads that wait for a call of ours.
    """
    try:
        return _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _threads.set(limiter)
        return limiter


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread of its own; cancelled, leave it to itself, and exit without it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run_for, loop, future, function), daemon=True).start()
    return await future


def run_for(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], function: Callable[[], T]) -> None:
    """Run a function and hand its outcome to a loop; one that was closed meanwhile has nobody left to tell."""
    answer: Callable[..., None]
    outcome: Any
    try:
        answer, outcome = _set_result, function()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
        answer, outcome = _set_error, error
    with contextlib.suppress(RuntimeError):  # closed
        loop.call_soon_threadsafe(answer, future, outcome)


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_error(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        # No future takes a StopIteration, and no coroutine that goes on after a GeneratorExit.
        is_refused = isinstance(error, StopIteration | GeneratorExit)
        future.set_exception(RuntimeError(f"{type(error).__name__} was raised") if is_refused else error)


def is_being_cancelled() -> bool:
    """Whether the present task is: else a cancellation that it meets is that of something which it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run several at the same time, all of them to their end, and return their values, or raise the first error."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end however often the caller is cancelled meanwhile, and only then raise the cancellation.

    The shield keeps anyio's cancellation away, which would be raised again at every wait.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                cancelled = error
            except BaseException:  # noqa: BLE001 - raised below, or less urgent than the cancellation
                break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that nobody is told that it was not
        raise cancelled
    return task.result()
