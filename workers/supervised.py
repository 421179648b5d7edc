"""A worker process under a supervisor: it does as it is told, and stops when nobody is left to tell it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from jobstore.workers.supervisor import STOP_AT_ONCE


class Stop(Protocol):
    """What stops a worker, such as `Worker.stop`."""

    def __call__(self, *, at_once: bool) -> None:
        """Stop it, with or without grace."""


@contextlib.contextmanager
def obeying(stop: Stop) -> Iterator[None]:
    """Stop a worker when the standard input says so, or ends.

    Example:
        >>> with obeying(worker.stop):
        ...     await worker.run()
    """
    loop = asyncio.get_running_loop()
    orders = _take_stdin()

    def listen() -> None:
        order = b" "
        # Past Python's buffer, whose lock a thread that waits would still hold at the interpreter's end.
        while order:
            order = os.read(orders, 1)
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(partial(stop, at_once=order == STOP_AT_ONCE))

    threading.Thread(target=listen, name="jobstore-orders", daemon=True).start()
    yield


def _take_stdin() -> int:
    """Return the standard input, and put nothing in its place: programs that handlers start would read the orders."""
    orders = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return orders
