"""What the tests of programs that use jobstore need: a clock to turn by hand, ways to run handlers, an LLM server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from jobstore.testing.clock import FakeClock
from jobstore.testing.llm_answers import Answer, LLMRequest, Refusal, default_answer

if TYPE_CHECKING:
    from jobstore.testing.llm_server import LLMServer
    from jobstore.testing.running import assert_enqueued, drain, run_handler

__all__ = [
    "Answer",
    "FakeClock",
    "LLMRequest",
    "LLMServer",
    "Refusal",
    "assert_enqueued",
    "default_answer",
    "drain",
    "run_handler",
]

_MODULES = {"LLMServer": "llm_server", "assert_enqueued": "running", "drain": "running", "run_handler": "running"}
"""Imported when they are asked for: the server needs the extra `testing`, and the others need workers."""


def __getattr__(name: str) -> object:
    """Import what is not needed by all."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"jobstore.testing.{_MODULES[name]}"), name)
