"""Time as a value: milliseconds since the Unix epoch, UTC, from a clock that can be replaced."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

Clock = Callable[[], int]
"""Returns the present time in milliseconds since the Unix epoch."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def system_clock() -> int:
    """Return the system's time in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def to_milliseconds(moment: datetime) -> int:
    """Return an aware datetime as milliseconds since the Unix epoch, cut to the millisecond."""
    return (moment - _EPOCH) // _MILLISECOND


@lru_cache(maxsize=4096)
def from_milliseconds(milliseconds: int) -> datetime:
    """Return milliseconds since the Unix epoch as an aware datetime in UTC, exactly.

    Cached, because the jobs of a batch share their times.
    """
    return _EPOCH + milliseconds * _MILLISECOND


def seconds(duration: float) -> int:
    """Return a duration in seconds as whole milliseconds, rounded."""
    return round(duration * 1000)
