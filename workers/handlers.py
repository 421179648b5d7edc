"""A worker's handlers: which function is for which task type, and on what terms it is called."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from jobstore import InvalidArgument
from jobstore.workers.context import JobContext, SyncJobContext
from jobstore.workers.retries import RetryPolicy

AsyncHandler = Callable[[JobContext], Awaitable[str | None]]
SyncHandler = Callable[[SyncJobContext], str | None]


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that does jobs of one task type."""

    function: Callable[[Any], Any]
    timeout: float | None
    """Seconds."""
    retry: RetryPolicy
    is_async: bool

    @classmethod
    def of(cls, function: Callable[[Any], Any], timeout: float | None, retry: RetryPolicy) -> Handler:
        """Find out how a function is to be called.

        Raises:
            InvalidArgument: It is none, or the timeout is not positive.
        """
        if not callable(function):
            raise InvalidArgument("handler", f"must be a function, not {type(function).__name__}")
        if timeout is not None and not timeout > 0:
            raise InvalidArgument("timeout", "must be a number of seconds above 0")
        call = getattr(function, "__call__", None)  # noqa: B004 - of an object whose class has an async one
        return cls(function, timeout, retry, inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call))
