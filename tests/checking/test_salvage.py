"""What is read of a file without SQLite is what SQLite wrote into it, whatever the values, sizes and settings."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobstore.health.salvage.pages import Pages
from jobstore.health.salvage.survey import Survey

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=50).filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)),
    st.binary(max_size=50),
    st.integers(400, 20_000).map(lambda size: "é" * size),  # goes on in pages of its own
    st.integers(400, 20_000).map(bytes.fromhex("ff00").__mul__),
)
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=40)


def written(path: Path, rows: list[tuple[Any, ...]], page_size: int, encoding: str = "UTF-8", vacuum: int = 2) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute(f"PRAGMA auto_vacuum={vacuum}")
        connection.execute(f"PRAGMA encoding='{encoding}'")
        connection.execute("CREATE TABLE plain (a, b, c)")
        connection.execute("CREATE TABLE keyed (n INTEGER, a, b, c, PRIMARY KEY (c, n)) WITHOUT ROWID")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO plain VALUES (?, ?, ?)", rows)
        keyed = [(n, a, b, 0 if c is None else c) for n, (a, b, c) in enumerate(rows)]
        connection.executemany("INSERT INTO keyed VALUES (?, ?, ?, ?)", keyed)
        connection.execute("COMMIT")


def assert_read(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        plain = connection.execute("SELECT * FROM plain").fetchall()
        keyed = connection.execute("SELECT c, n, a, b FROM keyed").fetchall()  # as it lies in the file
    with Pages(path) as pages:
        survey = Survey(pages)
        assert survey.damaged == {}
        assert sorted(map(repr, survey.rows("plain"))) == sorted(repr(list(row)) for row in plain)
        assert sorted(map(repr, survey.rows("keyed"))) == sorted(repr(list(row)) for row in keyed)


@given(ROWS, st.sampled_from([512, 1024, 4096, 65536]), st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_value_is_read_as_it_was_written(rows: list[tuple[Any, ...]], page_size: int, encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.db"
        written(path, rows, page_size, encoding)
        assert_read(path)


@pytest.mark.parametrize("vacuum", [0, 1, 2])
@pytest.mark.parametrize("page_size", [512, 4096])
def test_deep_trees_are_read_with_and_without_a_map(tmp_path: Path, page_size: int, vacuum: int) -> None:
    path = tmp_path / "deep.db"
    written(path, [(n, "text" * (n % 300), -n) for n in range(4_000)], page_size, vacuum=vacuum)
    assert_read(path)


@pytest.mark.parametrize("vacuum", [0, 2])
def test_below_a_lost_root_rows_are_found_by_the_map_alone(tmp_path: Path, vacuum: int) -> None:
    path = tmp_path / "lost.db"
    written(path, [(n, "text" * 50, -n) for n in range(500)], 4096, vacuum=vacuum)
    with closing(sqlite3.connect(path)) as connection:
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'plain'").fetchall()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\0" * 4096)
    with Pages(path) as pages:
        survey = Survey(pages)
        assert survey.damaged == {"plain": {root}}
        found = len(list(survey.rows("plain")))
        assert found == (500 if vacuum else 0)
        assert bool(survey.unknown) is not bool(vacuum)  # without a map they are known by their shape alone


@pytest.mark.parametrize("at", [0, 16, 17, 20, 21, 56, 59])
@pytest.mark.parametrize("page_size", [1024, 4096])
def test_a_header_of_which_one_byte_is_wrong_is_seen_through(tmp_path: Path, page_size: int, at: int) -> None:
    path = tmp_path / "header.db"
    written(path, [(n, "text" * (n % 30), -n) for n in range(2_000)], page_size)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with Pages(path) as pages:
        assert len(list(Survey(pages).rows("plain"))) == 2_000
