"""Fixtures of the adoption's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobstore.migrate import Adoption, Migrator

from .comparing import assert_nothing_is_lost

Adopt = Callable[[], Adoption]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Where the old database lies."""
    return tmp_path / "old.db"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Where the old system wrote its answers."""
    folder = tmp_path / "answers"
    folder.mkdir()
    return folder


@pytest.fixture
def adopt(old: Path) -> Adopt:
    """Adopt the old database, and compare every row and every text with what its backup holds."""

    def run() -> Adoption:
        result = Migrator(old).run()
        assert result.backup is not None
        assert result.adoption is not None
        assert_nothing_is_lost(result.backup, old)
        return result.adoption

    return run
