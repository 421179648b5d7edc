"""Two ways of waiting that asyncio leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread; cancelled, wait for its end and then raise the cancellation.

    anyio's own shield holds back its cancel scopes, but not `asyncio.Task.cancel`.
    """
    return await finish(anyio.to_thread.run_sync(lambda: function(*args, **kwargs)))


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
