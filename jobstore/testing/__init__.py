"""What the tests of programs that use jobstore need: a clock to turn by hand, and a local LLM server."""

from __future__ import annotations

from jobstore.testing.clock import FakeClock

__all__ = ["FakeClock"]
