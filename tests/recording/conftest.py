"""Stores on every engine, the local LLM server, and the official SDKs' clients that talk to it."""

from tests.conformance.conftest import database, outputs, store
from tests.providers.conftest import server, speaker, speakers

__all__ = ["database", "outputs", "server", "speaker", "speakers", "store"]  # fixtures
