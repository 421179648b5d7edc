"""Heeds SIGTERM and SIGINT for all workers that run in an event loop, and SIGHUP for a program of ours."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

Heed = Callable[[signal.Signals], None]

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_heeding: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Heed]] = WeakKeyDictionary()
_handlers_before: dict[signal.Signals, Any] = {}


@contextmanager
def heed_signals(heed: Heed) -> Iterator[None]:
    """Call a function for each signal meanwhile, in the event loop; elsewhere than in the main thread, do nothing.

    Several may heed at the same time: an event loop keeps but one handler a signal. At the end of the last, the
    handlers of before are back.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return
    loop = asyncio.get_running_loop()
    all_of_loop = _heeding.setdefault(loop, [])
    if not all_of_loop:
        _install(loop, all_of_loop)
    all_of_loop.append(heed)
    try:
        yield
    finally:
        all_of_loop.remove(heed)
        if not all_of_loop:
            _restore(loop)


@contextmanager
def heed_hangup(heed: Callable[[], None], *, even_if_ignored: bool = False) -> Iterator[None]:
    """Call a function for SIGHUP meanwhile, in the event loop, unless it is ignored, as `nohup` has it."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or (signal.getsignal(hangup) is signal.SIG_IGN and not even_if_ignored):
        yield
        return
    loop = asyncio.get_running_loop()
    before = signal.getsignal(hangup)
    loop.add_signal_handler(hangup, heed)
    try:
        yield
    finally:
        loop.remove_signal_handler(hangup)
        signal.signal(hangup, before or signal.SIG_DFL)


def _install(loop: asyncio.AbstractEventLoop, all_of_loop: list[Heed]) -> None:
    def tell(number: signal.Signals) -> None:
        for heed in list(all_of_loop):
            heed(number)

    for number in SIGNALS:
        _handlers_before[number] = signal.getsignal(number)
        loop.add_signal_handler(number, tell, number)


def _restore(loop: asyncio.AbstractEventLoop) -> None:
    for number in SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, _handlers_before.pop(number) or signal.SIG_DFL)
