"""Fixtures of the migrations' tests: folders of steps, databases of other programs, and other users' processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobstore.migrate import Step, load_steps

NOBODY = 65534

_AS_NOBODY = f"""
import os, sys
import jobstore.store
from jobstore.migrate import load_steps
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
try:
    load_steps()
except PermissionError:
    sys.exit(77)
"""


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


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="jobstore-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.fixture
def run_as_nobody() -> Callable[[str, Path], str]:
    """Run Python code as a user who may do nothing, `path` being its variable; return what it prints."""

    def run(code: str, path: Path) -> str:
        if os.name == "nt":
            pytest.skip("Windows has no users to change to")
        script = f"{_AS_NOBODY}\nfrom pathlib import Path\npath = Path({str(path)!r})\n{code}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 77:
            pytest.skip("the package lies in a folder that other users cannot read")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
