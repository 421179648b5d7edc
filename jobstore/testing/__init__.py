"""What the tests of programs that use jobstore need: a clock to turn by hand, and a local LLM server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobstore.testing.clock import FakeClock
from jobstore.testing.llm_answers import Answer, LLMRequest, Refusal, default_answer

if TYPE_CHECKING:
    from jobstore.testing.llm_server import LLMServer

__all__ = ["Answer", "FakeClock", "LLMRequest", "LLMServer", "Refusal", "default_answer"]


def __getattr__(name: str) -> object:
    """Import the server when it is asked for: it needs the extra `testing`, the rest does not."""
    if name != "LLMServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobstore.testing.llm_server import LLMServer  # noqa: PLC0415 - see above

    return LLMServer
