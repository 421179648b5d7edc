"""Fixtures of the migrations' tests: folders of steps, databases of other programs, and other users' processes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from jobstore.migrate import Step, load_steps


class StepFolder:
    """A folder in which a test writes steps of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def add(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8", newline="")

    def load(self) -> list[Step]:
        return load_steps(self.path)


@pytest.fixture
def steps(tmp_path: Path) -> StepFolder:
    return StepFolder(tmp_path / "steps")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A database of another program, with a journal of the old kind and a row that lacks its parent."""
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            CREATE TABLE artists (id INTEGER PRIMARY KEY, name TEXT);
            CREATE TABLE albums (title TEXT, artist_id INTEGER REFERENCES artists (id));
            INSERT INTO artists VALUES (1, 'Ann');
            INSERT INTO albums VALUES ('First', 1), ('Orphan', 99);
            """
        )
    return path
