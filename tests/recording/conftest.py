"""The local LLM server, and the official SDKs' clients that talk to it."""

from tests.providers.conftest import server, speaker, speakers

__all__ = ["server", "speaker", "speakers"]  # fixtures
