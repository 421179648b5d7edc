"""What a worker tells of its attempts, to functions of the user's and to metrics."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import anyio

from jobstore import Job
from jobstore.aio import is_being_cancelled

logger = logging.getLogger(__name__)

Moment = Literal["claim", "complete", "failure", "lease_lost"]

PATIENCE = 10.0
"""Seconds that an async hook may take: its job's place in the worker is taken meanwhile."""


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """Something that happened to an attempt at a job."""

    worker_id: str
    job: Job
    """As it is now; as it was claimed, if the lease was lost. Hooks that log it must leave out its texts."""
    attempt: int
    waited: float
    """Seconds that the job waited after it was due, until this attempt began."""
    ran: float
    """Seconds that the attempt has taken; 0 when it begins."""
    error_type: str | None = None


Hook = Callable[[AttemptEvent], Awaitable[None] | None]
H = TypeVar("H", bound=Hook)


class Hooks:
    """Functions to be called, by what has happened."""

    def __init__(self) -> None:
        self._hooks: dict[Moment, list[Hook]] = {}

    def add(self, moment: Moment, hook: H) -> H:
        """Call a function from now on, async or not; what is not must not block."""
        self._hooks.setdefault(moment, []).append(hook)
        return hook

    def has(self, moment: Moment) -> bool:
        """Whether anyone wants to be told."""
        return moment in self._hooks

    async def tell(self, moment: Moment, event: AttemptEvent) -> None:
        """Call the functions. One that raises, or takes too long, harms neither the others nor the job."""
        for hook in self._hooks.get(moment, ()):
            try:
                await _call(hook, event)
            except asyncio.CancelledError:
                if is_being_cancelled():
                    raise
                _log_failure(hook, "something that it awaited was cancelled")
            except GeneratorExit:  # nothing runs any more, and this is cleared away
                raise
            except BaseException as error:  # noqa: BLE001 - it is the user's, and the job's outcome counts
                # Without its message or traceback, which could show the user's text.
                _log_failure(hook, type(error).__name__)


async def _call(hook: Hook, event: AttemptEvent) -> None:
    answer = hook(event)
    if not inspect.isawaitable(answer):
        return
    with anyio.move_on_after(PATIENCE) as scope:
        await answer
    if scope.cancelled_caught:
        _log_failure(hook, f"it took more than {PATIENCE} s")


def _log_failure(hook: Hook, why: str) -> None:
    logger.error("the hook %s failed: %s", getattr(hook, "__name__", type(hook).__name__), why)
