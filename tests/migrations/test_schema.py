"""The schema is what the steps add up to, and the file that shows it whole says the same."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobstore import migrations
from jobstore.migrate import Migrator, load_steps

MIGRATIONS = Path(migrations.__file__).parent
CONSOLIDATED = MIGRATIONS / "consolidated_migrations.sql"


def normalised(sql: str | None) -> str | None:
    """Return SQL without comments and without what writing it in another way changes."""
    if sql is None:
        return None
    sql = re.sub(r"--[^\n]*", " ", sql).replace('"', "")
    return re.sub(r"\s*([(),])\s*", r"\1", re.sub(r"\s+", " ", sql)).strip()


def schema_of(connection: sqlite3.Connection) -> dict[tuple[str, str], str | None]:
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
    return {(kind, name): normalised(sql) for kind, name, sql in rows}


def facts_of(connection: sqlite3.Connection) -> dict[str, Any]:
    """Return what SQLite itself understood of a schema."""
    tables = connection.execute(
        "SELECT name, type, ncol, wr, strict FROM pragma_table_list WHERE schema = 'main' ORDER BY name"
    ).fetchall()
    facts: dict[str, Any] = {"tables": tables}
    for name in [table[0] for table in tables]:
        indexes = connection.execute(
            'SELECT name, "unique", origin, partial FROM pragma_index_list(?) ORDER BY name', (name,)
        ).fetchall()
        facts[name] = {
            "columns": connection.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)).fetchall(),
            "foreign keys": connection.execute("SELECT * FROM pragma_foreign_key_list(?)", (name,)).fetchall(),
            "indexes": indexes,
        }
        for index in (row[0] for row in indexes):
            facts[index] = connection.execute("SELECT * FROM pragma_index_xinfo(?)", (index,)).fetchall()
    return facts


@pytest.fixture
def migrated(database: Path) -> Path:
    Migrator(database).run()
    return database


@pytest.fixture
def consolidated(tmp_path: Path) -> Path:
    path = tmp_path / "consolidated.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(CONSOLIDATED.read_text(encoding="utf-8"))
    return path


def test_the_consolidated_file_is_the_sum_of_the_steps(migrated: Path, consolidated: Path) -> None:
    with closing(sqlite3.connect(migrated)) as steps, closing(sqlite3.connect(consolidated)) as whole:
        assert schema_of(whole) == schema_of(steps)
        assert facts_of(whole) == facts_of(steps)


def test_the_consolidated_file_gives_the_store_an_identity(consolidated: Path) -> None:
    with closing(sqlite3.connect(consolidated)) as connection:
        [(store_id,)] = connection.execute("SELECT store_id FROM store_identity").fetchall()
    assert re.fullmatch(r"[0-9a-f]{32}", store_id)


def test_every_table_of_the_consolidated_file_is_explained() -> None:
    text = CONSOLIDATED.read_text(encoding="utf-8")
    assert re.findall(r"^CREATE TABLE", text, re.MULTILINE) != []
    assert re.findall(r"(?<!\n)\n\nCREATE TABLE (\w+)", text) == []


def test_all_tables_are_strict(migrated: Path) -> None:
    with closing(sqlite3.connect(migrated)) as connection:
        lax = connection.execute(
            "SELECT name FROM pragma_table_list"
            " WHERE schema = 'main' AND type = 'table' AND NOT strict AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        ).fetchall()
    assert lax == []


def test_a_new_database_keeps_a_log_and_can_give_space_back(migrated: Path) -> None:
    with closing(sqlite3.connect(migrated)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_a_new_database_is_readable_by_its_owner_alone(migrated: Path) -> None:
    assert migrated.stat().st_mode & 0o777 == 0o600


def test_every_step_says_why_in_its_first_line() -> None:
    steps = load_steps()
    assert steps
    for step in steps:
        assert step.path.read_text(encoding="utf-8").startswith(("-- ", '"""'))


def test_the_examples_of_the_guide_work(migrated: Path) -> None:
    guide = (MIGRATIONS / "README.md").read_text(encoding="utf-8")
    colour, pets = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    with closing(sqlite3.connect(migrated, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE pets (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO pets (name) VALUES ('Rex'), (NULL)")
        for source in (colour, colour, pets):  # the first twice: it checks before it modifies
            namespace: dict[str, Any] = {}
            exec(source, namespace)  # noqa: S102 - our own guide
            namespace["upgrade"](connection)
        assert connection.execute("SELECT name FROM pets ORDER BY id").fetchall() == [("Rex",), ("?",)]
        assert connection.execute("SELECT colour FROM background_jobs").fetchall() == []
