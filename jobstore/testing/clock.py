"""A clock that stands still until it is told to go on."""

from __future__ import annotations

DEFAULT_START = 1_750_000_000_000
"""An arbitrary moment in 2025, in milliseconds since the Unix epoch."""


class FakeClock:
    """A clock for `JobStore(clock=…)`: leases, schedules and retries fall due when the test says so.

    Args:
        start: Milliseconds since the Unix epoch.

    Example:
        >>> clock = FakeClock()
        >>> clock.advance(31)  # a lease of 30 seconds has ended
    """

    def __init__(self, start: int = DEFAULT_START) -> None:
        self.now = start

    def __call__(self) -> int:
        """Return the present time in milliseconds since the Unix epoch."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass; a negative number steps back, as clocks do."""
        self.now += round(seconds * 1000)
