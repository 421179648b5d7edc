"""The helpers serve on every engine."""

from tests.conformance.conftest import database, outputs, store

__all__ = ["database", "outputs", "store"]  # fixtures
